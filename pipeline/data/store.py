"""One request to a store by HTTP, S3 or what else fsspec speaks: which version an object has now, a range of its bytes."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar, cast, final
from urllib.parse import quote

from pipeline.data.root import Url
from pipeline.errors import InputError

Answer = TypeVar("Answer")

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""The extra of this package by the scheme that needs it."""
_PASSING = frozenset((408, 425, 429))
_PASSING_CODES = frozenset(("RequestTimeout", "SlowDown", "InternalError"))
_TAGS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "mtime", "created")
"""By which of an object's facts fsspec's stores tell versions apart, the surest first."""


class Version(NamedTuple):
    """What an object was when it was looked up: its size in bytes, and the ETag or what else changes with it."""

    size: int
    tag: str


class Unanswered(Exception):
    """A request failed in a way that may pass; the text, which holds no URL, says how."""


class Absent(InputError):
    """There is no such object."""


class Store(ABC):
    """Asks once. Raises `Unanswered` for what may pass, `InputError` for what will not. Threads may share it."""

    @abstractmethod
    def version(self, url: Url, *, timeout_s: float) -> Version:
        """The version of an object now."""

    @abstractmethod
    def get(self, url: Url, start: int, stop: int, version: Version, *, timeout_s: float) -> bytes:
        """Bytes start to stop of an object in this version; `InputError` if it has another one by now."""

    @abstractmethod
    def listed(self, folder: Url, *, timeout_s: float) -> Mapping[Url, Version]:
        """The versions of all objects of a folder and those in it; `InputError` where the store does not tell."""

    @abstractmethod
    def put(self, url: Url, content: bytes, *, timeout_s: float) -> None:
        """Write an object, in the place of one that is there."""

    @abstractmethod
    def remove(self, url: Url, *, timeout_s: float) -> None:
        """Delete an object, if it is there."""


@final
class HttpStore(Store):
    """http:// and https://, through the session of fsspec's file system; proxies and ~/.netrc are those of the environment."""

    def __init__(self):
        import fsspec  # half a second with what it brings, which local data need not pay

        options = {"trust_env": True, "auto_decompress": False}
        self._files: Any = fsspec.filesystem("http", skip_instance_cache=True, encoded=True, client_kwargs=options)

    def version(self, url: Url, *, timeout_s: float) -> Version:
        async def ask() -> tuple[int, Mapping[str, str]]:
            session = await self._files.set_session()
            async with session.head(self._encoded(url), headers=_IDENTITY, allow_redirects=True) as answer:
                return answer.status, answer.headers

        status, headers = _asked(self._files.loop, ask, timeout_s)
        _judge(url, status)
        length = headers.get("Content-Length", "")
        if not length.isdecimal():
            raise InputError(f"{url}: the server does not tell its size; serve it by one that does")
        return Version(int(length), headers.get("ETag") or headers.get("Last-Modified", ""))

    def get(self, url: Url, start: int, stop: int, version: Version, *, timeout_s: float) -> bytes:
        headers = {**_IDENTITY, "Range": f"bytes={start}-{stop - 1}"}
        if version.tag.startswith('"'):  # If-Match takes no weak tags, and dates are none
            headers["If-Match"] = version.tag

        async def ask() -> bytes:
            session = await self._files.set_session()
            async with session.get(self._encoded(url), headers=headers) as answer:
                _judge(url, answer.status)
                tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified", "")
                if tag and tag != version.tag:
                    raise _changed(url)
                is_all = answer.status == 200 and answer.content_length == version.size == stop - start
                if not is_all:
                    _check_range(url, answer.status, answer.headers.get("Content-Range", ""), start, stop, version)
                return await answer.content.readexactly(stop - start)

        return _asked(self._files.loop, ask, timeout_s)

    def listed(self, folder: Url, *, timeout_s: float) -> Mapping[Url, Version]:
        raise InputError(f"{folder}: http lists no folders; use s3:// or gs://")

    def put(self, url: Url, content: bytes, *, timeout_s: float) -> None:
        raise _only_read(url)

    def remove(self, url: Url, *, timeout_s: float) -> None:
        raise _only_read(url)

    def _encoded(self, url: Url) -> Any:
        return self._files.encode_url(quote(str(url), safe="%/:!$&'()*+,;=~@[]"))


@final
class S3Store(Store):
    """s3://, with endpoint, region and credentials from the environment and files that all of Amazon's tools read."""

    def __init__(self):
        import s3fs

        # Tries are counted in one place, ours.
        options: dict[str, Any] = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
        self._files: Any = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False, **options)

    def version(self, url: Url, *, timeout_s: float) -> Version:
        bucket, key = url.place

        async def ask() -> Version:
            client = await self._files.set_session()
            answer = await client.head_object(Bucket=bucket, Key=key)
            return Version(answer["ContentLength"], answer["ETag"])

        with _s3_errors(url):
            return _asked(self._files.loop, ask, timeout_s)

    def get(self, url: Url, start: int, stop: int, version: Version, *, timeout_s: float) -> bytes:
        bucket, key = url.place
        wanted = {"Range": f"bytes={start}-{stop - 1}", "IfMatch": version.tag}

        async def ask() -> bytes:
            client = await self._files.set_session()
            answer = await client.get_object(Bucket=bucket, Key=key, **wanted)
            async with answer["Body"] as body:
                if answer["ETag"] != version.tag:
                    raise _changed(url)
                status = answer["ResponseMetadata"]["HTTPStatusCode"]
                _check_range(url, status, answer.get("ContentRange", ""), start, stop, version)
                return await body.read()

        with _s3_errors(url):
            return _exactly(_asked(self._files.loop, ask, timeout_s), stop - start)

    def listed(self, folder: Url, *, timeout_s: float) -> Mapping[Url, Version]:
        bucket, prefix = folder.place

        async def ask() -> dict[Url, Version]:
            client = await self._files.set_session()
            found = {}
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=f"{prefix}/" if prefix else ""
            )
            async for page in pages:
                for item in page.get("Contents", ()):
                    if not item["Key"].endswith("/") and not {"?", "#"} & set(item["Key"]):
                        found[Url(f"{folder.scheme}://{bucket}/{item['Key']}")] = Version(item["Size"], item["ETag"])
            return found

        with _s3_errors(folder):
            return _asked(self._files.loop, ask, timeout_s)

    def put(self, url: Url, content: bytes, *, timeout_s: float) -> None:
        bucket, key = url.place

        async def ask() -> None:
            client = await self._files.set_session()
            await client.put_object(Bucket=bucket, Key=key, Body=content)

        with _s3_errors(url):
            _asked(self._files.loop, ask, timeout_s)

    def remove(self, url: Url, *, timeout_s: float) -> None:
        bucket, key = url.place

        async def ask() -> None:
            client = await self._files.set_session()
            await client.delete_object(Bucket=bucket, Key=key)

        with _s3_errors(url):
            _asked(self._files.loop, ask, timeout_s)


@final
class OtherStore(Store):
    """Whatever else fsspec knows, as gs://. It may try again by itself, and its requests keep their own limits of time."""

    def __init__(self, scheme: str):
        import fsspec

        self._files: Any = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)

    def version(self, url: Url, *, timeout_s: float) -> Version:
        with _file_errors(url):
            return _version_in(self._files.info(str(url)))

    def get(self, url: Url, start: int, stop: int, version: Version, *, timeout_s: float) -> bytes:
        with _file_errors(url):
            data = self._files.cat_file(str(url), start=start, end=stop)
        # There is no asking for a version here, so it is looked at again once the bytes are there.
        if self.version(url, timeout_s=timeout_s) != version:
            raise _changed(url)
        return _exactly(data, stop - start)

    def listed(self, folder: Url, *, timeout_s: float) -> Mapping[Url, Version]:
        with _file_errors(folder):
            found = self._files.find(str(folder), detail=True)
        prefix = self._files._strip_protocol(str(folder)).rstrip("/") + "/"
        return {folder / name.removeprefix(prefix): _version_in(facts) for name, facts in found.items()}

    def put(self, url: Url, content: bytes, *, timeout_s: float) -> None:
        with _file_errors(url):
            self._files.pipe_file(str(url), content)

    def remove(self, url: Url, *, timeout_s: float) -> None:
        with _file_errors(url), suppress(FileNotFoundError):
            self._files.rm_file(str(url))


def store(scheme: str) -> Store:
    """The store of URLs of a scheme."""
    try:
        match scheme:
            case "http" | "https":
                return HttpStore()
            case "s3" | "s3a":
                return S3Store()
            case _:
                return OtherStore(scheme)
    except ImportError:
        extra = f"'metashard[{EXTRAS[scheme]}]'" if scheme in EXTRAS else "the package that fsspec needs for it"
        raise InputError(f"{scheme}://: what reads it is not installed; pip install {extra}") from None
    except ValueError:
        raise InputError(f"{scheme}://: no such kind of store; use s3://, gs://, http:// or https://") from None


_IDENTITY = {"Accept-Encoding": "identity"}


def _asked(loop: asyncio.AbstractEventLoop, ask: Callable[[], Awaitable[Answer]], timeout_s: float) -> Answer:
    """What the coroutine gives, run on the loop of fsspec's thread."""
    import aiohttp
    from fsspec.asyn import sync

    async def limited() -> Answer:
        return await asyncio.wait_for(ask(), timeout_s)

    try:
        return cast(Answer, sync(loop, limited))
    except TimeoutError:
        raise Unanswered(f"no answer within {timeout_s:.0f} s") from None
    except asyncio.IncompleteReadError as error:
        raise Unanswered(f"the answer ended after {len(error.partial)} bytes") from None
    except (aiohttp.ClientError, OSError) as error:
        raise Unanswered(_kind(error)) from None


def _kind(error: Exception) -> str:
    """The kind of an error: its text may hold the URL that a server redirected to, with a signature in it."""
    reason = getattr(error, "strerror", None)
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise Unanswered(f"{len(data)} bytes instead of {size}")
    return data


def _check_range(url: Url, status: int, content_range: str, start: int, stop: int, version: Version) -> None:
    """The answer is the range that was asked for, of an object of the known size."""
    if status == 200:
        raise Unanswered("the server sends the whole object instead of a range")
    span, _, total = content_range.partition("/")
    if total.isdecimal() and int(total) != version.size:
        raise _changed(url)
    if span != f"bytes {start}-{stop - 1}":
        raise Unanswered(f"the server sends {content_range[:60]!r} instead of bytes {start}-{stop - 1}")


def _changed(url: Url) -> InputError:
    return InputError(
        f"{url}: changed since it was opened; start again, and with metashard index where its samples changed"
    )


def _only_read(url: Url) -> InputError:
    return InputError(f"{url}: http can only be read from; write to s3:// or gs://")


def _judge(url: Url, status: int, code: str = "") -> None:
    if status < 300:
        return
    what = f"HTTP {status}" + (f" {code}" if code and code != str(status) else "")
    if status in _PASSING or status >= 500 or code in _PASSING_CODES:
        raise Unanswered(what)
    if status in (404, 410):
        raise Absent(f"{url}: is not there ({what}); mend the URL or bring it back")
    if status in (401, 403):
        raise InputError(f"{url}: access is refused ({what}); give this environment credentials that may do this")
    if status in (412, 416):
        raise _changed(url)
    raise InputError(f"{url}: cannot be used ({what}); mend the URL, the region or the credentials")


@contextmanager
def _s3_errors(url: Url):
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, IncompleteReadError

    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        _judge(url, status, str(error.response.get("Error", {}).get("Code", "")))
        raise
    except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
        raise Unanswered(type(error).__name__) from None
    except BotoCoreError as error:
        raise InputError(
            f"{url}: {type(error).__name__}; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and the region"
        ) from None


@contextmanager
def _file_errors(url: Url):
    try:
        yield
    except FileNotFoundError:
        raise Absent(f"{url}: is not there; mend the URL or bring it back") from None
    except PermissionError:
        raise InputError(f"{url}: access is refused; give this environment credentials that may do this") from None
    except (TimeoutError, OSError) as error:
        raise Unanswered(_kind(error)) from None


def _version_in(facts: Mapping[str, Any]) -> Version:
    size = facts.get("size")
    if not isinstance(size, int):
        raise Unanswered("the store does not tell the size")
    return Version(size, next((str(facts[tag]) for tag in _TAGS if facts.get(tag)), ""))
