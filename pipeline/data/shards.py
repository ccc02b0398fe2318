"""Random access to the samples of an indexed data set: one checked `pread` each."""

from __future__ import annotations

import os
import threading
import zlib

import numpy as np

from pipeline.data.images import decode
from pipeline.data.index import Index
from pipeline.errors import InputError

OPEN_FILES = 512
"""Shards kept open by one reader; well below the usual limit of 1,024 files per process."""


class _File:
    """A descriptor that closes when its last reader lets go, so that another thread may evict it meanwhile."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

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
        """The bytes of a sample's "image", "json" or "mask"; `InputError` if they are not those that were indexed."""
        shard, offset, size, _ = self.index.locate(row, role)
        try:
            file = self._file(shard)  # held until the bytes are there: another thread may drop it meanwhile
            data = self._pread(file.descriptor, offset, size)
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

    def image(self, row: int) -> np.ndarray:
        """The (height, width, channels) image of a sample; raw: a read-only view of what was read, as stored."""
        return self.decoded(row, self.read(row, "image"))

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

    def _file(self, shard: int) -> _File:
        if (file := self._files.get(shard)) is not None:
            return file
        with self._lock:
            file = self._files[shard] = _File(str(self.index.path(shard)))
            while len(self._files) > OPEN_FILES:
                del self._files[next(iter(self._files))]
        return file

    @staticmethod
    def _pread(descriptor: int, offset: int, size: int) -> bytes:
        data = os.pread(descriptor, size, offset)
        # Linux gives at most 2 GiB at a time and network file systems may give less than was asked for.
        while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
            data += more
        return data
