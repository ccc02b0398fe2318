"""Random access to the samples of an indexed data set: one checked `pread` each, or a checked read through the cache."""

from __future__ import annotations

import itertools
import json
import os
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pipeline.data import modalities
from pipeline.data.boxes import sound
from pipeline.data.images import decode, decode_mask
from pipeline.data.index import Index
from pipeline.data.modalities import IMAGE
from pipeline.data.remote import RemoteFile, bring
from pipeline.data.root import Url
from pipeline.errors import InputError
from pipeline.labels import IGNORED

OPEN_FILES = 512
"""Shards kept open by one reader; well below the usual limit of 1,024 files per process."""


class _File:
    """A descriptor that closes when its last reader lets go, so that another thread may evict it meanwhile."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file, fewer where it ends."""
        data = os.pread(self.descriptor, size, offset)
        # Linux gives at most 2 GiB at a time and network file systems may give less than was asked for.
        while len(data) < size and (more := os.pread(self.descriptor, size - len(data), offset + len(data))):
            data += more
        return data

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class Shards:
    """Reads members of an index's tars. Threads may share it; a pickled or forked copy opens its own files."""

    def __init__(self, index: Index):
        self.index = index
        self._files: dict[int, _File] = {}
        self._lock = threading.Lock()

    def __reduce__(self):
        return Shards, (self.index,)

    def read(self, row: int, role: str) -> bytes:
        """The bytes of a sample's "json", "mask" or modality; `InputError` if they are not those that were indexed."""
        shard, offset, size, crc = self.index.locate(row, role)
        try:
            file = self._file(shard)  # held until the bytes are there: another thread may drop it meanwhile
            data = file.read(offset, size)
            if isinstance(file, RemoteFile) and zlib.crc32(data) != crc:
                data = file.again(offset, size)
        except OSError as error:
            raise InputError(f"{self._what(row, role)}: {error.strerror}; is the disk still there?") from None
        if len(data) != size:
            raise InputError(f"{self._what(row, role)}: shard ends {size - len(data)} bytes early; copy it again")
        return self.checked(row, role, data)

    def checked(self, row: int, role: str, data: bytes) -> bytes:
        """The bytes, however they were read; `InputError` if they are not those that were indexed."""
        if zlib.crc32(data) != self.index.locate(row, role).crc:
            raise InputError(f"{self._what(row, role)}: bytes changed since they were indexed (crc32); copy it again")
        return data

    def bring(self, rows: Iterable[int], roles: Sequence[str] = ("image",)) -> None:
        """Fetch these members of these rows side by side where they lie in a store and this node has not got them."""
        if not isinstance(self.index.root, Url):
            return
        wanted: dict[RemoteFile, set[int]] = defaultdict(set)
        for row, role in itertools.product(rows, roles):
            if role in self.index.modalities and not self.index.has(row, role):
                continue  # whoever reads it decides whether that is an error
            shard, offset, size, _ = self.index.locate(row, role)
            if isinstance(file := self._file(shard), RemoteFile):
                wanted[file].update(file.absent(offset, size))
        if sum(map(len, wanted.values())) > 1:
            bring({file: sorted(numbers) for file, numbers in wanted.items()})

    def image(self, row: int) -> np.ndarray:
        """The (height, width, channels) image of a sample; raw: a read-only view of what was read, as stored."""
        return self.decoded(row, self.read(row, "image"))

    def plane(self, row: int, modality: str) -> np.ndarray:
        """The (height, width, channels) array of a sample's modality; `InputError` if it has none."""
        if modality == IMAGE:
            return self.image(row)
        return modalities.decoded(self.read(row, modality), self._what(row, modality))

    def mask(self, row: int, own: str) -> tuple[np.ndarray, list[str]]:
        """The (height, width) uint8 mask of a sample, and the classes that its values mean from 1 on; 0 is no class of the data
        set, 255 is not to be looked at. Where the sample names none, 1 is its `own` class.

        Raises:
            InputError: it has no mask, or its mask has a value without a class.
        """
        what = self._what(row, "mask")
        mask = decode_mask(self.read(row, "mask"), what)
        said = json.loads(self.read(row, "json")).get("classes", [own]) if self.index.has(row, "json") else [own]
        if not isinstance(said, list) or len(said) >= IGNORED:
            raise InputError(f"{what}: classes must be a list of at most {IGNORED - 1} names; mend its JSON")
        classes = [str(name) for name in said]
        beyond = mask[(mask > len(classes)) & (mask < IGNORED)]
        if beyond.size:
            raise InputError(
                f"{what}: value {beyond.min()} means nothing, it names {len(classes)} classes; 0 is none, {IGNORED} is left out"
            )
        return mask, classes

    def boxes(self, row: int, own: str) -> tuple[np.ndarray, list[str]]:
        """The boxes (boxes, 5) float64 of a sample, left, top, right, bottom as shares of its sides, and the classes that their
        values mean; see `data.boxes.sound`.

        Raises:
            InputError: it has none, or one means nothing.
        """
        what, (height, width, _) = self._what(row, "json"), self.index.shape(row)
        boxes, classes = sound(json.loads(self.read(row, "json")), own, height, width, what)
        boxes[:, :4] = np.clip(boxes[:, :4] / (width, height, width, height), 0, 1)
        return boxes, classes

    def decoded(self, row: int, data: bytes) -> np.ndarray:
        """As `image`, from the bytes of the sample's image."""
        if self.index.store == "encoded":
            return decode(data, self._what(row, "image"))
        height, width, channels = self.index.shape(row)
        count = height * width * channels
        start = len(data) - count * self.index.dtype.itemsize
        return np.frombuffer(data, self.index.dtype, count, start).reshape(height, width, channels)

    def _what(self, row: int, role: str) -> str:
        path = self.index.path(int(self.index.shard_of[row]))
        return f"{path}: {role} of sample {self.index.key(row)!r}"

    def _file(self, shard: int) -> _File | RemoteFile:
        if (file := self._files.get(shard)) is not None:
            return file
        if isinstance(path := self.index.path(shard), RemoteFile):
            return path
        with self._lock:
            file = self._files[shard] = _File(path)
            while len(self._files) > OPEN_FILES:
                del self._files[next(iter(self._files))]
        return file
