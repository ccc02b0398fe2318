"""A strict walk over a tar's members that notices whatever ordinary readers pass over in silence.

Python's tarfile, and so WebDataset's reader, takes a damaged or zeroed header for the end of the archive. This walk
reports it, looks for the next sound header and goes on, so that one pass lists every fault. Nothing is extracted.
Layout: POSIX.1-1988 ustar, with pax and GNU long names and GNU binary sizes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.data.remote import RemoteFile

BLOCK = 512
_REGULAR, _FOLDER = (b"0", b"\0", b"7"), b"5"
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK = b"x", b"g", b"L", b"K"
_SPARSE = b"S"
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a pipe",
    _SPARSE: "a sparse file",
}
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_OTHER_NUMBERS = ((100, 108), (108, 116), (116, 124), (136, 148))  # mode, owner, group, time of change
_LONGEST_NAME = 1 << 20
_ZERO = bytes(BLOCK)


class Member(NamedTuple):
    """A regular file in a tar: its name, where its bytes start, how many they are, and they themselves if wanted."""

    name: str
    offset: int
    size: int
    data: bytes


class Walk:
    """One pass over a tar. Iterate it to its end; then `faults`, `sha256` and `size` (bytes) are complete.

    `wanted` says by name which members' bytes to keep; the others' are only hashed.
    """

    def __init__(self, path: Path | RemoteFile, wanted: Callable[[str], bool]):
        self.path, self._wanted = path, wanted
        self.faults: list[str] = []
        self.sha256 = ""
        self.size = 0
        self._hash = hashlib.sha256()
        self._file: BinaryIO
        self._at = 0

    def __iter__(self) -> Iterator[Member]:
        with self.path.open("rb") as self._file:
            self.size = self._file.seek(0, os.SEEK_END)
            self._file.seek(0)
            yield from self._members()
            self._skip(self.size - self._at)
        self.sha256 = self._hash.hexdigest()

    def _members(self) -> Iterator[Member]:
        name: str | None = None
        size: int | None = None
        while (block := self._header()) is not None:
            kind, at = block[156:157], self._at - BLOCK
            length = _number(block[124:136]) if size is None or kind in (_PAX, _GNU_NAME) else size
            if length is None or length < 0 or any(_number(block[a:b]) is None for a, b in _OTHER_NUMBERS):
                self._fault(at, "a header with a field that is no number")
                name = size = None
            elif length > self.size - self._at:
                self._fault(at, f"truncated: {self.size - self._at} bytes are left of a member of {length}")
                return
            elif kind in (_PAX, _GNU_NAME):
                name, size = self._extended(kind, length, at, name, size)
            elif kind == _PAX_GLOBAL:
                if {"path", "size"} & self._records(kind, length, at).keys():
                    self._fault(at, "a global header that renames or resizes members")
            elif kind == _GNU_LINK:
                self._skip(length)
            else:
                yield from self._member(block, name, length, at)
                name = size = None
            if not self._padding():
                return
        if name is not None or size is not None:
            self._fault(self._at, "truncated: an extended header has no member after it")

    def _member(self, block: bytes, name: str | None, length: int, at: int) -> Iterator[Member]:
        kind = block[156:157]
        name = name if name is not None else _name(block)
        if name is None:
            self._fault(at, "a member's name cannot be read")
        elif (trouble := _trouble(name)) is not None:
            self._fault(at, trouble)
        elif kind in _REGULAR and not name.endswith("/"):
            offset = self._at
            if self._wanted(name):
                yield Member(name, offset, length, self._read(length))
            else:
                self._skip(length)
                yield Member(name, offset, length, b"")
            return
        elif kind not in (*_REGULAR, _FOLDER):
            self._fault(at, f"member {name!r} is {_KINDS.get(kind, f'of the unknown kind {kind!r}')}, not a file")
        # Links and devices have no data, whatever their size field says.
        self._skip(length if kind not in _KINDS or kind == _SPARSE else 0)

    def _header(self) -> bytes | None:
        """The next sound header; None at the end of the archive, faults noted."""
        lost: int | None = None
        while self._at < self.size:
            start, block = self._at, self._read(BLOCK)
            if len(block) < BLOCK:
                cut = "truncated inside a header" if any(block) else "truncated inside the end mark"
                self._fault(start, _damage(block) if block.startswith(_COMPRESSED) else cut)
                return None
            if _sound(block):
                return block
            if block == _ZERO and lost is None and self._ends():
                return None
            if lost is None:
                lost = start
                self._fault(start, _damage(block))
        if lost is None:
            self._fault(self.size, "truncated: the end mark (two blocks of zeros) is missing")
        return None

    def _ends(self) -> bool:
        """After one zero block: whether all that follows is zeros. Leaves the position where it was."""
        place, zeros = self._file.tell(), True
        while zeros and (chunk := self._file.read(1 << 20)):
            zeros = not any(chunk)
        self._file.seek(place)
        if zeros and self.size - place < BLOCK:
            self._fault(place, "truncated inside the end mark")
        return zeros

    def _extended(
        self, kind: bytes, length: int, at: int, name: str | None, size: int | None
    ) -> tuple[str | None, int | None]:
        """Name and size for the next member, from an extended header and those before it."""
        records = self._records(kind, length, at)
        # Readers differ in which of two names they take.
        if (name is not None and "path" in records) or (size is not None and "size" in records):
            self._fault(at, "a second extended header for one member")
        return records.get("path", name), int(records["size"]) if "size" in records else size

    def _records(self, kind: bytes, length: int, at: int) -> dict[str, str]:
        """What a pax or GNU long-name header says; nothing if it is damaged."""
        if length > _LONGEST_NAME:
            self._fault(at, f"an extended header of {length} bytes")
            self._skip(length)
            return {}
        data = self._read(length)
        try:
            records = {"path": data.rstrip(b"\0").decode()} if kind == _GNU_NAME else _pax(data)
            if not records.get("size", "0").isdecimal():
                raise ValueError(f"size {records['size']!r}")
            if any(key.startswith("GNU.sparse") for key in records):
                raise ValueError("a sparse file")
        except ValueError as error:
            self._fault(at, f"a damaged extended header ({error})")
            return {}
        return records

    def _padding(self) -> bool:
        missing = -self._at % BLOCK
        if self._at + missing > self.size:
            self._fault(self.size, "truncated inside the padding after a member")
            return False
        self._skip(missing)
        return True

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        self._hash.update(data)
        self._at += len(data)
        return data

    def _skip(self, count: int) -> None:
        while count > 0 and (data := self._read(min(count, 1 << 20))):
            count -= len(data)

    def _fault(self, at: int, what: str) -> None:
        self.faults.append(f"{self.path.name}: at byte {at}: {what}")


def _damage(block: bytes) -> str:
    if block.startswith(_COMPRESSED):
        return "compressed data; single samples can only be read from plain tars: decompress it"
    what = "a block of zeros where a header should be" if block == _ZERO else "a damaged header"
    return f"{what}; members after it may be lost"


def _sound(block: bytes) -> bool:
    expected = _number(block[148:156])
    # Eight blanks stand for the checksum itself while it is summed.
    return block != _ZERO and expected == sum(block) - sum(block[148:156]) + 8 * 32


def _number(field: bytes) -> int | None:
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:] if field[0] == 0x80 else field, "big", signed=field[0] == 0xFF)
    text = field.split(b"\0")[0].strip()
    if not text or text.strip(b"01234567"):
        return 0 if not text else None
    return int(text, 8)


def _name(block: bytes) -> str | None:
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0]
    if prefix and block[257:263] != b"ustar\0":
        return None  # what stands there in other dialects is taken for a name by some readers
    try:
        return (prefix + b"/" + name if prefix else name).decode()
    except UnicodeDecodeError:
        return None


def _trouble(name: str) -> str | None:
    if not name or not name.isprintable():
        return f"member name {name!r} is empty or has control characters"
    if name[0] in "/\\" or name[1:2] == ":":
        return f"member name {name!r} is absolute; names must stay inside the tar"
    if ".." in name.replace("\\", "/").split("/"):
        return f"member name {name!r} leaves its folder with '..'; names must stay inside the tar"
    return None


def _pax(data: bytes) -> dict[str, str]:
    records, at, end = {}, 0, len(data.rstrip(b"\0"))
    while at < end:
        blank = data.index(b" ", at)
        length = int(data[at:blank])
        key, equals, value = data[blank + 1 : at + length].partition(b"=")
        if length < 5 or at + length > end or not equals or not value.endswith(b"\n"):
            raise ValueError("a record's length is wrong")
        records[key.decode()] = value[:-1].decode()
        at += length
    return records
