"""What one tar holds: a row for every sound sample, a line for every fault."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pipeline.data import images, modalities, npy
from pipeline.data.index import ROLES
from pipeline.data.modalities import IMAGE, KINDS
from pipeline.data.remote import RemoteFile
from pipeline.data.tar import Member, Walk
from pipeline.errors import InputError

PICKLES = frozenset("pkl pickle pyd pyc pt pth ckpt joblib dill cpkl".split())
"""Extensions that readers answer by running code from the file."""

MEMBER_FIELDS = {"offset": pa.int64(), "size": pa.int32(), "crc": pa.uint32()}


def schema(modalities: Sequence[str] = ()) -> pa.Schema:
    """One row per sample of a tar, in its order; offset -1 where it has no such member, picture 0 where its JSON names none."""
    return pa.schema(
        [
            ("key", pa.large_string()),
            ("label", pa.large_string()),
            ("picture", pa.uint32()),
            *((axis, pa.int32()) for axis in ("height", "width", "channels")),
            *((f"{role}_{part}", kind) for role in (*ROLES, *modalities) for part, kind in MEMBER_FIELDS.items()),
        ]
    )


_ABSENT = (-1, 0, 0)
_LARGEST = 2**31 - 1
_NAME = re.compile(r"((?:.*/|)[^./][^.]*)\.([^/]+)")
META = re.compile(r"__[^/]*__($|/)")
"""Names that WebDataset readers take for notes about the tar, not samples."""


class Scan(NamedTuple):
    """A scanned tar: `store` and `dtype` are None if it has no sound sample; `ignored` counts members by extension. `planes` are
    the channels and type of each modality that was asked for, None where no sample has it."""

    table: pa.Table
    faults: list[str]
    bytes: int
    sha256: str
    store: str | None
    dtype: str | None
    ignored: dict[str, int]
    planes: dict[str, Plane | None]


class Plane(NamedTuple):
    """What all members of a modality are: channels, and numbers of a type as NumPy writes it."""

    channels: int
    dtype: str


class _Picture(NamedTuple):
    store: str
    dtype: str
    shape: tuple[int, int, int]


def scan(path: Path | RemoteFile, *, class_field: str, modalities: Sequence[str] = ()) -> Scan:
    """Walk a tar, check every member and decode every image. A sample's class is what its member of the extension
    `class_field` says, else its JSON's field of that name, else its `cls` member. `modalities` are looked for besides the image.
    Raises `InputError` if unreadable."""
    scanner = _Scanner(path.name, class_field, modalities)
    walk = Walk(path, scanner.wanted)
    try:
        for member in walk:
            scanner.add(member)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a readable tar") from None
    scanner.finish()
    form = schema(modalities)
    columns = list(zip(*scanner.rows, strict=True)) or [[] for _ in form]
    table = pa.table([pa.array(c, t) for c, t in zip(columns, form.types, strict=True)], schema=form)
    picture = scanner.first[1] if scanner.first else None
    return Scan(
        table, walk.faults + scanner.faults, walk.size, walk.sha256,
        picture.store if picture else None, picture.dtype if picture else None, dict(scanner.ignored), scanner.planes,
    )  # fmt: skip


class _Scanner:
    """Gathers members into samples."""

    def __init__(self, shard: str, class_field: str, modalities: Sequence[str]):
        self.shard, self.class_field, self.modalities = shard, class_field, modalities
        self.planes: dict[str, Plane | None] = dict.fromkeys(modalities)
        self.rows: list[tuple] = []
        self.ignored: Counter[str] = Counter()
        self.first: tuple[str, _Picture] | None = None
        self._key = ""
        self._parts: dict[str, Member] = {}
        self._seen: dict[str, set[str]] = {}
        self._scattered: set[str] = set()
        self._faults: list[tuple[str, str]] = []

    def wanted(self, name: str) -> bool:
        """Whether a member is looked into; pickles never are."""
        match = _NAME.fullmatch(name)
        if match is None:
            return False
        extension = match[2].lower()
        return role_of(extension, self.modalities) is not None or extension in (self.class_field, "cls")

    def add(self, member: Member) -> None:
        """Take the next member."""
        match = _NAME.fullmatch(member.name)
        if META.match(member.name):
            self.ignored["__meta__"] += 1
        elif match is None:
            self._fault(f"member {member.name!r} is no KEY.EXTENSION, so readers pass over it; rename or remove it")
        elif PICKLES.intersection(match[2].lower().split(".")):
            self._fault(f"member {member.name!r} is a pickle, which could run code, and is not opened; remove it")
        else:
            self._gather(match[1], match[2].lower(), member)

    def _gather(self, key: str, extension: str, member: Member) -> None:
        seen = self._seen.setdefault(key, set())
        if extension in seen:
            self._fault(f"member {member.name!r} occurs twice; keys must be unique")
            return
        if key != self._key:
            if seen:
                self._fault(f"the members of sample {key!r} are not adjacent ({member.name!r} lies apart)")
                self._scattered.add(key)
                seen.add(extension)
                return
            self.finish()
            self._key, self._parts = key, {}
        seen.add(extension)
        self._parts[extension] = member

    def finish(self) -> None:
        """Turn the members gathered so far into a row."""
        if not self._parts:
            return
        roles: dict[str, Member] = {}
        try:
            for extension, member in self._parts.items():
                role = role_of(extension, self.modalities)
                if role in roles:
                    raise InputError(f"has two {role} members, {roles[role].name!r} and {member.name!r}")
                if role:
                    if not 0 < member.size <= _LARGEST:
                        raise InputError(f"{member.name!r} has {member.size} bytes")
                    roles[role] = member
                elif extension not in (self.class_field, "cls"):
                    self.ignored[extension] += 1
            if "image" not in roles:
                raise InputError(f"has no image member, only {', '.join(sorted(self._parts))}")
            self._row(roles)
        except InputError as error:
            self._fault(f"sample {self._key!r} {error}", self._key)
        self._parts = {}

    def _row(self, roles: dict[str, Member]) -> None:
        fields = _fields(roles["json"]) if "json" in roles else {}
        label = self._label(roles, fields)
        picture = _picture(roles["image"])
        if "mask" in roles:
            mask = images.decode_mask(roles["mask"].data, roles["mask"].name)
            if mask.shape != picture.shape[:2]:
                raise InputError(f"has a mask of {mask.shape} (height, width) for an image of {picture.shape[:2]}")
        first_key, first = self.first = self.first or (self._key, picture)
        if picture.store != first.store:
            raise InputError(f"has a {picture.store} image, {first_key!r} a {first.store} one; pack them apart")
        if picture.store == "raw" and picture != first:
            raise InputError(
                f"is {picture.shape} {picture.dtype}, {first_key!r} is {first.shape} {first.dtype}; "
                "raw images must be of one size: pack with --size, or with --store encoded"
            )
        for modality in self.modalities:
            if modality in roles:
                self._plane(modality, roles[modality], picture)
        wanted = (*ROLES, *self.modalities)
        members = [(m.offset, m.size, zlib.crc32(m.data)) if (m := roles.get(r)) else _ABSENT for r in wanted]
        shown = zlib.crc32(str(fields["picture"]).encode()) or 1 if "picture" in fields else 0
        self.rows.append(
            (self._key, label, shown, *picture.shape, *(number for member in members for number in member))
        )

    def _plane(self, modality: str, member: Member, picture: _Picture) -> None:
        """Take note of what a member of a modality is, which all samples have alike."""
        array = modalities.decoded(member.data, repr(member.name))
        if array.shape[:2] != picture.shape[:2]:
            raise InputError(
                f"has a {modality} of {array.shape[:2]} (height, width) for an image of {picture.shape[:2]}; make them equal"
            )
        found = Plane(array.shape[2], array.dtype.str)
        first = self.planes[modality] = self.planes[modality] or found
        if found != first:
            raise InputError(
                f"has a {modality} of {found.channels} channels of {found.dtype}, others of {first.channels} of {first.dtype}; "
                "make them alike"
            )

    def _label(self, roles: dict[str, Member], fields: dict) -> str:
        if member := self._parts.get(self.class_field):
            label: object = _text(member)
        elif self.class_field in fields:
            label = fields[self.class_field]
        elif "cls" in self._parts:
            label = _text(self._parts["cls"])
        else:
            known = [*sorted(fields), *sorted(extension for extension in self._parts if role_of(extension) is None)]
            hint = f"give --class-field, one of {', '.join(known)}" if known else "give it a JSON member with its class"
            raise InputError(f"has no {self.class_field!r}; {hint}")
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise InputError(f"has class {label!r}; a class is a text or a whole number")
        if not (label := str(label)) or not label.isprintable() or label != label.strip():
            raise InputError(f"has class {label!r}; a class name is one line without blanks at its ends")
        return label

    @property
    def faults(self) -> list[str]:
        """All faults so far; what a scattered sample lacks is not told twice."""
        return [fault for key, fault in self._faults if key not in self._scattered]

    def _fault(self, what: str, key: str = "") -> None:
        self._faults.append((key, f"{self.shard}: {what}"))


def role_of(extension: str, modalities: Sequence[str] = ()) -> str | None:
    """What a member of this extension is in its sample: "image", "json", "mask", or one of these modalities."""
    if extension in KINDS:
        return IMAGE
    name, _, kind = extension.partition(".")
    if kind in KINDS and (name in modalities or (modalities and name == IMAGE)):
        return name
    return {"json": "json", "mask.png": "mask"}.get(extension)


def _picture(member: Member) -> _Picture:
    if not member.name.lower().endswith(".npy"):
        return _Picture("encoded", "|u1", images.decode(member.data, repr(member.name)).shape)
    try:
        dtype, shape, _ = npy.header(member.data)
        return _Picture("raw", dtype.str, shape)
    except (ValueError, TypeError) as error:
        raise InputError(f"{member.name!r} is no npy array of numbers: {error}") from None


def _text(member: Member) -> str:
    try:
        return member.data.decode().strip()
    except UnicodeDecodeError:
        raise InputError(f"has a class in {member.name!r} that is not UTF-8") from None


def _fields(member: Member) -> dict:
    try:
        fields = json.loads(member.data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"has damaged JSON in {member.name!r}: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"has JSON in {member.name!r} that is no object with fields")
    return fields
