"""Files that a node keeps of what it fetched: whole or not there, the least recently used gone first, shared by processes."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError

FOLDER_VARIABLE, LIMIT_VARIABLE = "METASHARD_CACHE", "METASHARD_CACHE_GIB"
DEFAULT_GIB = 50
LEAST = 64 << 20
"""Bytes that a cache must be allowed: with less a few requests push one another out."""
LOCKS = 1024
"""Lock files, over which entries are spread; they are never removed, since whoever waits for one holds it open."""
RECENT_S = 30.0
"""Uses within so many seconds count as one, so that a read seldom writes."""
STALE_S = 3600.0
"""Age at which a partial file is what a killed process left."""
AFTER_EVICTION = 0.9
"""Share of the limit to which an eviction goes down, so that not every new entry walks through the folder."""


class _Kept(NamedTuple):
    used: float
    size: int
    path: str


class Cache:
    """Entries, bytes by a name FOLDER/FILE, in a folder that threads and processes share; `limit` is in bytes.

    Nothing here fails for want of a place: what the disk or the limit has no room for is not kept, with one warning.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self.has_failed = False

    def path(self, entry: str, length: int) -> Path | None:
        """The file of an entry of so many bytes, which counts as used; None if it is not kept."""
        path = self.folder / "data" / entry
        try:
            status = path.stat()
            if status.st_size != length:
                return None
            if time.time() - status.st_mtime > RECENT_S:
                os.utime(path)
        except OSError:
            return None
        return path

    def read(self, entry: str, length: int, offset: int, size: int) -> bytes | None:
        """A part of an entry of `length` bytes; None if it is not kept."""
        if (path := self.path(entry, length)) is None:
            return None
        try:
            with open(path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, offset)
        except OSError:
            return None
        return data if len(data) == size else None

    def put(self, entry: str, size: int, pieces: Iterable[bytes]) -> Path | None:
        """Keep an entry of `size` bytes; None where there is no room. What `pieces` raises goes through, nothing is kept then."""
        if size > self.limit:
            return None
        path = self.folder / "data" / entry
        partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            self._make_room(size)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(partial, "wb") as file:
                    file.writelines(pieces)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            self._warn(error)
            return None
        return path

    def drop(self, entry: str) -> None:
        """Forget an entry."""
        try:
            (self.folder / "data" / entry).unlink(missing_ok=True)
        except OSError as error:
            self._warn(error)

    @contextmanager
    def locked(self, entries: Sequence[str]) -> Iterator[None]:
        """Keep other threads and processes of this node from fetching these entries meanwhile."""
        # In order, so that two that want the same locks never wait for each other.
        numbers = sorted({zlib.crc32(entry.encode()) % LOCKS for entry in entries})
        with ExitStack() as held:
            try:
                for number in numbers:
                    held.enter_context(self._lock(f"{number:03x}"))
            except OSError as error:
                self._warn(error)
            yield

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A lock belongs to what was opened, not to the process: threads keep each other out too.
        with open(folder / name, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self, size: int) -> None:
        """Count `size` bytes as taken before they are written, and evict what no longer fits beside them."""
        counter = self.folder / "taken"
        with self._lock("evict"):
            try:
                taken = int(counter.read_text())
            except (OSError, ValueError):
                taken = None
            if taken is None or taken + size > self.limit:
                taken = self._evict(size)
            counter.write_text(str(taken + size))

    def _evict(self, size: int) -> int:
        """Remove what was not used for longest, where `size` bytes more would not fit; the bytes that stay."""
        kept = sorted(self._all())
        taken = sum(one.size for one in kept)
        if taken + size <= self.limit:
            return taken
        for one in kept:
            if taken + size <= AFTER_EVICTION * self.limit:
                break
            if one.path.endswith(".part") and time.time() - one.used < STALE_S:
                continue
            Path(one.path).unlink(missing_ok=True)
            taken -= one.size
        return taken

    def _all(self) -> Iterator[_Kept]:
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in os.scandir(data):
            for file in os.scandir(folder.path):
                try:
                    status = file.stat()
                except FileNotFoundError:
                    continue
                yield _Kept(status.st_mtime, status.st_size, file.path)

    def _warn(self, error: OSError) -> None:
        if not self.has_failed:
            self.has_failed = True
            reason = error.strerror or type(error).__name__
            print(
                f"warning: {self.folder}: cannot keep what is fetched ({reason}), so it is fetched each time; make room, or name "
                f"another folder in {FOLDER_VARIABLE}",
                file=sys.stderr,
            )


def node_cache() -> Cache:
    """The cache of this node, as its environment says."""
    given = os.environ.get(FOLDER_VARIABLE, "")
    folder = Path(given).absolute() if given else Path.home() / ".cache" / "metashard"
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_GIB)
    try:
        limit = int(float(text) * 2**30)
    except (ValueError, OverflowError):
        limit = 0
    if limit < LEAST:
        raise InputError(
            f"{LIMIT_VARIABLE} = {text!r} is no number of GiB from {LEAST / 2**30:g} on; {DEFAULT_GIB} is the default"
        )
    return _cache(folder, limit)


@lru_cache
def _cache(folder: Path, limit: int) -> Cache:
    return Cache(folder, limit)
