"""Objects of stores as files: read through the node's cache, and asked for again while the network fails."""

from __future__ import annotations

import hashlib
import io
import os
import random
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from pipeline.data.cache import Cache, node_cache
from pipeline.data.root import Url
from pipeline.data.store import Store, Unanswered, Version, store
from pipeline.errors import InputError

Answer = TypeVar("Answer")

CHUNK = 1 << 20
"""Bytes that a cold sample fetches, aligned: the block of a class it lies in is often there too."""
TOGETHER = 16
"""Chunks that one request brings at most, and a plain stream fetches ahead."""
REQUESTS = 16
"""Requests at once."""
TRIES = 6
FIRST_WAIT_S, LONGEST_WAIT_S = 0.3, 20.0
REQUEST_S, DEADLINE_S = 60.0, 180.0
LISTING = ("s3", "s3a")
"""Schemes whose listing tells the versions that reading checks."""
_CRC_BYTES = 4
# Waiting has no part in what a run computes: it draws from no stream of the run.
_jitter = random.Random()


def tried(url: Url, ask: Callable[[float], Answer], done: str = "read") -> Answer:
    """What `ask(timeout_s)` gives, asked again with growing waits; `InputError` when tries or time are used up."""
    began = time.monotonic()
    for number in range(TRIES):
        left = DEADLINE_S - (time.monotonic() - began)
        try:
            return ask(max(0.001, min(REQUEST_S, left)))
        except Unanswered as error:
            reason = str(error)
        wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**number) * _jitter.uniform(0.5, 1)
        if number + 1 == TRIES or time.monotonic() - began + wait > DEADLINE_S:
            break
        time.sleep(wait)
    spent = time.monotonic() - began
    raise InputError(f"{url}: cannot be {done}, tried {number + 1} times in {spent:.0f} s ({reason}); is the store up?")


class RemoteFile:
    """One object in the version that it had when it was opened. Threads may share it."""

    def __init__(self, url: Url, version: Version, cache: Cache):
        self.url, self.version, self._cache = url, version, cache
        self._key = hashlib.sha256(f"{url} {version.size} {version.tag}".encode()).hexdigest()[:32]

    def __str__(self) -> str:
        return str(self.url)

    @property
    def name(self) -> str:
        return self.url.name

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the object, fewer where it ends; from the cache, or fetched in whole chunks that it keeps."""
        stop = max(offset, min(offset + size, self.version.size))
        spans = {number: self._span(number) for number in _chunks(offset, stop)}
        parts = {number: self._part(number, max(offset, a), min(stop, b)) for number, (a, b) in spans.items()}
        absent = [number for number, part in parts.items() if part is None]
        for number, chunk in self.fetched(absent):
            begin, end = spans[number]
            parts[number] = chunk[max(offset, begin) - begin : min(stop, end) - begin]
        return b"".join(part for part in parts.values() if part is not None)

    def again(self, offset: int, size: int) -> bytes:
        """As `read`, but what the cache has of them is taken for damaged and fetched anew."""
        for number in _chunks(offset, min(offset + size, self.version.size)):
            self._cache.drop(self._entry(number))
        return self.read(offset, size)

    def absent(self, offset: int, size: int) -> list[int]:
        """The chunks of these bytes that the cache has not got and would keep."""
        if self._cache.has_failed:
            return []
        chunks = _chunks(offset, min(offset + size, self.version.size))
        return [number for number in chunks if self._cache.path(self._entry(number), self._kept_bytes(number)) is None]

    def fetched(self, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """(number, bytes) of these chunks, in their order; whoever else wants one of them waits for it."""
        for at in range(0, len(numbers), TOGETHER):
            some = numbers[at : at + TOGETHER]
            with self._cache.locked([self._entry(number) for number in some]):
                # Somebody else may have fetched them while we waited for the locks.
                found = {number: chunk for number in some if (chunk := self._chunk(number)) is not None}
                for run in _runs([number for number in some if number not in found]):
                    found.update(self._fetch(run))
            yield from ((number, found[number]) for number in some)

    def open(self, mode: str = "rb") -> BinaryIO:
        """The object as a file to be read from front to back."""
        assert mode == "rb"
        return cast(BinaryIO, io.BufferedReader(_Sequential(self), CHUNK))

    def sequential(self, position: int) -> tuple[int, bytes]:
        """(begin, bytes) of a stretch with this position in it: a chunk that is kept, else it and those behind it."""
        number = position // CHUNK
        begin, _ = self._span(number)
        if (chunk := self._chunk(number)) is not None:
            return begin, chunk
        last = min(number + TOGETHER, -(-self.version.size // CHUNK))
        return begin, b"".join(chunk for _, chunk in self.fetched(range(number, last)))

    def whole(self, sha256: str) -> Path | bytes:
        """All of it as one file of the cache, with its hash checked when it was fetched; as bytes where there is no room."""
        entry, size = f"{self._key}/whole", self.version.size
        with self._cache.locked([entry]):
            if (path := self._cache.path(entry, size)) is not None:
                return path
            return self._cache.put(entry, size, self._pieces(sha256)) or b"".join(self._pieces(sha256))

    def all(self) -> bytes:
        """All of it."""
        return self.read(0, self.version.size)

    def _pieces(self, sha256: str) -> Iterator[bytes]:
        known = hashlib.sha256()
        for begin in range(0, self.version.size, TOGETHER * CHUNK):
            piece = self._get(begin, min(begin + TOGETHER * CHUNK, self.version.size))
            known.update(piece)
            yield piece
        if known.hexdigest() != sha256:
            raise InputError(f"{self}: is not what the manifest says (sha256); copy the index folder there again")

    def _fetch(self, run: range) -> dict[int, bytes]:
        """The chunks of a run in one request, kept."""
        begin, stop = run.start * CHUNK, min(run.stop * CHUNK, self.version.size)
        data = self._get(begin, stop)
        found = {number: data[self._span(number)[0] - begin : self._span(number)[1] - begin] for number in run}
        for number, chunk in found.items():
            crc = zlib.crc32(chunk).to_bytes(_CRC_BYTES, "big")
            self._cache.put(self._entry(number), len(chunk) + _CRC_BYTES, (chunk, crc))
        return found

    def _get(self, start: int, stop: int) -> bytes:
        kind = store_of(self.url)
        return tried(self.url, lambda timeout_s: kind.get(self.url, start, stop, self.version, timeout_s=timeout_s))

    def _part(self, number: int, begin: int, end: int) -> bytes | None:
        """Bytes of a kept chunk, unchecked: a member has a crc32 of its own."""
        first, _ = self._span(number)
        return self._cache.read(self._entry(number), self._kept_bytes(number), begin - first, end - begin)

    def _chunk(self, number: int) -> bytes | None:
        """A kept chunk; None if it is absent, or damaged and therefore dropped."""
        length = self._kept_bytes(number)
        if (data := self._cache.read(self._entry(number), length, 0, length)) is None:
            return None
        chunk, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
        if zlib.crc32(chunk).to_bytes(_CRC_BYTES, "big") != crc:
            self._cache.drop(self._entry(number))
            return None
        return chunk

    def _entry(self, number: int) -> str:
        return f"{self._key}/{number:08d}"

    def _span(self, number: int) -> tuple[int, int]:
        return number * CHUNK, min((number + 1) * CHUNK, self.version.size)

    def _kept_bytes(self, number: int) -> int:
        begin, end = self._span(number)
        return end - begin + _CRC_BYTES


class _Sequential(io.RawIOBase):
    """A remote file read from front to back."""

    def __init__(self, file: RemoteFile):
        self._file, self._at = file, 0
        self._begin, self._held = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.version.size}[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        if self._at >= self._file.version.size:
            return 0
        if not self._begin <= self._at < self._begin + len(self._held):
            self._begin, self._held = self._file.sequential(self._at)
        start = self._at - self._begin
        data = self._held[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def store_of(url: Url) -> Store:
    """The store of a URL, one for a process: what is forked must not use the connections of its parent."""
    return _store(url.scheme, os.getpid())


@lru_cache
def _store(scheme: str, process: int) -> Store:
    return store(scheme)


def version_of(url: Url) -> Version:
    """The version of an object now."""
    kind = store_of(url)
    return tried(url, lambda timeout_s: kind.version(url, timeout_s=timeout_s))


def versions(folder: Url, urls: Sequence[Url]) -> dict[Url, Version]:
    """The versions of objects of a folder now: from one listing where the store lists, else asked for one by one."""
    # One by one where listing is not known to tell the same versions, or not allowed where reading is.
    found: Mapping[Url, Version] = {}
    if folder.scheme in LISTING:
        with suppress(InputError):
            found = listed(folder)
    unlisted = [url for url in urls if url not in found]
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="versions") as pool:
        asked = dict(zip(unlisted, pool.map(version_of, unlisted), strict=True))
    return {url: found[url] if url in found else asked[url] for url in urls}


def listed(folder: Url) -> Mapping[Url, Version]:
    """The versions of all objects in a folder."""
    kind = store_of(folder)
    return tried(folder, lambda timeout_s: kind.listed(folder, timeout_s=timeout_s), "listed")


def content(url: Url) -> bytes:
    """All of an object as it is now, past the cache: for what may be another one the next time."""
    kind, version = store_of(url), version_of(url)
    pieces = [
        range(start, min(start + TOGETHER * CHUNK, version.size)) for start in range(0, version.size, TOGETHER * CHUNK)
    ]
    return b"".join(
        tried(url, lambda timeout_s, piece=piece: kind.get(url, piece.start, piece.stop, version, timeout_s=timeout_s))
        for piece in pieces
    )


def put(url: Url, content: bytes) -> None:
    """Write an object."""
    kind = store_of(url)
    tried(url, lambda timeout_s: kind.put(url, content, timeout_s=timeout_s), "written")


def remove(url: Url) -> None:
    """Delete an object, if it is there."""
    kind = store_of(url)
    tried(url, lambda timeout_s: kind.remove(url, timeout_s=timeout_s), "removed")


def remote_file(url: Url, version: Version) -> RemoteFile:
    """An object in this version, through this node's cache."""
    return RemoteFile(url, version, node_cache())


def bring(wanted: Mapping[RemoteFile, Sequence[int]]) -> None:
    """Fetch these chunks side by side; those who read them then find them in the cache."""
    jobs = [(file, run) for file, numbers in wanted.items() for run in _runs(sorted(numbers))]
    with ThreadPoolExecutor(min(REQUESTS, len(jobs)), thread_name_prefix="bring") as pool:
        list(pool.map(_kept, jobs))


def _kept(job: tuple[RemoteFile, range]) -> None:
    file, numbers = job
    for _ in file.fetched(numbers):
        pass


def _chunks(begin: int, end: int) -> range:
    return range(begin // CHUNK, -(-end // CHUNK) if end > begin else begin // CHUNK)


def _runs(numbers: Sequence[int]) -> list[range]:
    """Ascending numbers as ranges without gaps."""
    grouped = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in group] for _, group in grouped]
    return [range(run[0], run[-1] + 1) for run in runs]
