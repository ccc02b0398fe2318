"""The folder of a packed data set, whose index is mapped and whose tars are read alike on this machine and in a store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pyarrow as pa

from pipeline.data.remote import RemoteFile, remote_file, version_of, versions
from pipeline.data.root import Root, Url
from pipeline.data.store import Absent, Version
from pipeline.errors import InputError

AGAIN = "make it again with metashard index"


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One tar: its path (relative to the data set's root, or absolute), size in bytes, samples and sha256."""

    name: str
    bytes: int
    samples: int
    sha256: str


class Folder(ABC):
    """Names are relative, with slashes."""

    @abstractmethod
    def content(self, name: str) -> bytes:
        """A small file; `FileNotFoundError` if it is not there."""

    @abstractmethod
    def mapped(self, name: str, expected: dict) -> pa.NativeFile:
        """A file of the index to be mapped; `ValueError` if it has not the expected["bytes"]."""

    @abstractmethod
    def tar(self, shard: ShardInfo) -> Path | RemoteFile:
        """A tar, to be read at any place or opened with `open("rb")`."""

    @abstractmethod
    def check(self, shards: Sequence[ShardInfo]) -> None:
        """`InputError` if a tar is absent or has another size than when it was indexed."""


def folder_of(root: Root) -> Folder:
    """The folder at this place."""
    return RemoteFolder(root) if isinstance(root, Url) else LocalFolder(root)


@final
class LocalFolder(Folder):
    """A folder of this machine."""

    def __init__(self, root: Path):
        self.root = root

    def content(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def mapped(self, name: str, expected: dict) -> pa.NativeFile:
        path = self.root / name
        # The size is compared before mapping: reading past the end of a mapped file kills the process.
        _check_table(path.name, path.stat().st_size, expected)
        return pa.memory_map(str(path))

    def tar(self, shard: ShardInfo) -> Path:
        return self.root / shard.name

    def check(self, shards: Sequence[ShardInfo]) -> None:
        for shard in shards:
            path = self.tar(shard)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise InputError(
                    f"{path}: shard cannot be opened ({error.strerror}); bring it back or {AGAIN}"
                ) from None
            _check_size(path, size, shard)


@final
class RemoteFolder(Folder):
    """A folder of a store. The versions of tars are those at `check`, else those when they are first asked for."""

    def __init__(self, root: Url):
        self.root = root
        self._tars: dict[str, RemoteFile] = {}

    def content(self, name: str) -> bytes:
        try:
            return self._file(name).all()
        except Absent:
            raise FileNotFoundError(name) from None

    def mapped(self, name: str, expected: dict) -> pa.NativeFile:
        file = self._file(name)
        _check_table(name, file.version.size, expected)
        whole = file.whole(expected["sha256"])
        return pa.BufferReader(whole) if isinstance(whole, bytes) else pa.memory_map(str(whole))

    def tar(self, shard: ShardInfo) -> RemoteFile:
        if (file := self._tars.get(shard.name)) is None:
            file = self._opened(shard, version_of(self.root / shard.name))
        return file

    def check(self, shards: Sequence[ShardInfo]) -> None:
        urls = [self.root / shard.name for shard in shards]
        found = versions(self.root, urls)
        for shard, url in zip(shards, urls, strict=True):
            self._opened(shard, found[url])

    def _opened(self, shard: ShardInfo, version: Version) -> RemoteFile:
        url = self.root / shard.name
        _check_size(url, version.size, shard)
        return self._tars.setdefault(shard.name, remote_file(url, version))

    def _file(self, name: str) -> RemoteFile:
        url = self.root / name
        return remote_file(url, version_of(url))


def _check_table(name: str, size: int, expected: dict) -> None:
    if size != expected["bytes"]:
        raise ValueError(f"{name.rpartition('/')[2]} has {size} bytes, not {expected['bytes']}")


def _check_size(place: Root, size: int, shard: ShardInfo) -> None:
    if size != shard.bytes:
        raise InputError(f"{place}: {size} bytes, the index says {shard.bytes}; bring the old file back or {AGAIN}")
