"""Taught classes on disk: a file for each group of samples, named after its hash, and one that says which of them count."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple, TextIO, final

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as tensors_of
from safetensors.torch import save as serialised
from torch import Tensor

from pipeline.data.files import write_file
from pipeline.errors import InputError
from pipeline.teaching.support import Support, without

FORMAT = 1
FILE, LOCK_FILE, SUFFIX = "taught.json", "lock", ".safetensors"
KEY = "metashard.taught"
"""Of a group's file: classes, names and numbers of its samples, as JSON."""
INPUTS, TARGETS = "inputs", "targets"
LOOK_S = 0.1


class Group(NamedTuple):
    """Samples that came together, on the CPU, and what they are asked for by: `ids` are used once and never again.

    file: where they lie; empty while they lie nowhere.
    """

    support: Support
    ids: tuple[int, ...]
    file: str = ""

    def without(self, name: str) -> Group:
        """The group as if nobody had told of this class."""
        way = self.support.classes.index(name)
        others = self.support.members()
        others[:, way] = False
        ids = tuple(number for number, is_in in zip(self.ids, others.any(1).tolist(), strict=True) if is_in)
        return Group(without(self.support, way), ids)


class State(NamedTuple):
    """All that was taught: `version` counts the changes, `next` is the number of the next sample."""

    version: int
    next: int
    groups: tuple[Group, ...]


@final
class Store:
    """A folder that one process at a time writes to, and that is whole after each step of it.

    `origin` says what the classes were taught to: those of another model are not taken for its own.
    """

    def __init__(self, folder: Path, origin: str, *, wait_s: float = 0):
        self.folder, self.origin = folder, origin
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder, wait_s)
        except OSError as error:
            raise InputError(f"--state {folder}: cannot be written ({error}); name another folder") from error

    def close(self) -> None:
        self._lock.close()

    def read(self) -> State | None:
        """What was committed last; None: nothing ever was.

        Raises:
            InputError: a file was altered, is of another format, or belongs to another model.
        """
        path = self.folder / FILE
        if not path.exists():
            return None
        try:
            said = json.loads(path.read_text())
            number, sha256 = said["format"], said.pop("sha256")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: says nothing of taught classes ({error}); {self._way_out()}") from error
        if number != FORMAT:
            raise InputError(
                f"{path}: format {number!r}, this version reads {FORMAT}; use the version that wrote it, or name another --state"
            )
        if _sha256(json.dumps(said, sort_keys=True).encode()) != sha256:
            raise InputError(f"{path}: is not what was written (sha256 differs); {self._way_out()}")
        if said["origin"] != self.origin:
            raise InputError(
                f"--state {self.folder}: holds classes that were taught to another model; serve that one, or name another --state"
            )
        return State(said["version"], said["next"], tuple(self._group(name) for name in said["groups"]))

    def write(self, state: State) -> State:
        """Commit a state; once this returns, it outlives a crash. Groups that lie nowhere yet are given files.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            groups = tuple(group if group.file else self._put(group) for group in state.groups)
            names = [group.file for group in groups]
            said = {
                "format": FORMAT,
                "origin": self.origin,
                "version": state.version,
                "next": state.next,
                "groups": names,
            }
            said["sha256"] = _sha256(json.dumps(said, sort_keys=True).encode())
            _write(self.folder / FILE, json.dumps(said).encode())
            for path in self.folder.glob(f"*{SUFFIX}"):
                if path.name not in names:
                    path.unlink()
        except OSError as error:
            raise InputError(
                f"--state {self.folder}: cannot be written ({error}); make room, or name another"
            ) from error
        return state._replace(groups=groups)

    def _put(self, group: Group) -> Group:
        support = group.support
        about = {"format": FORMAT, "classes": support.classes, "names": support.names, "ids": group.ids}
        tensors = {INPUTS: support.inputs.contiguous(), TARGETS: support.targets.contiguous()}
        content = serialised(tensors, metadata={KEY: json.dumps(about)})
        name = _sha256(content) + SUFFIX
        _write(self.folder / name, content)
        return group._replace(file=name)

    def _group(self, name: str) -> Group:
        path = self.folder / Path(name).name
        try:
            content = path.read_bytes()
            if _sha256(content) + SUFFIX != name:
                raise InputError(f"{path}: is not what was written (sha256 differs); {self._way_out()}")
            tensors: dict[str, Tensor] = tensors_of(content)
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[KEY])
            support = Support(tuple(about["classes"]), tensors[INPUTS], tensors[TARGETS], tuple(about["names"]))
            return Group(support, tuple(about["ids"]), name)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: holds no taught samples ({error}); {self._way_out()}") from error

    def _way_out(self) -> str:
        return f"restore the folder from a copy, or name another --state than {self.folder}"


def _locked(folder: Path, wait_s: float) -> TextIO:
    """The lock of a folder, free again when this is closed or its process dead, which may take `wait_s` seconds."""
    lock, limit = (folder / LOCK_FILE).open("w"), time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as error:
            if time.monotonic() >= limit:
                lock.close()
                raise InputError(
                    f"--state {folder}: another metashard serve has it; end that one, or name another folder"
                ) from error
            time.sleep(LOOK_S)


def _write(path: Path, content: bytes) -> None:
    """A file as a whole, on the disk when this returns, its name too."""
    write_file(path, content)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
