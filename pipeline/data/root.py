"""Where a data set lies: a folder of this machine or a URL of a store; the one place that tells the two apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from pipeline.errors import InputError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.ASCII | re.IGNORECASE)
_HOST = re.compile(r"([^@:\[\]]+|\[[0-9a-f:.]+\])(:\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Url:
    """A folder or an object in a store, as s3://bucket/folder, without a slash at its end.

    It holds no credentials: a user, a password or a query in it is refused, with an error that does not repeat them.
    """

    text: str

    def __post_init__(self):
        scheme, _, rest = self.text.partition("://")
        if not _SCHEME.fullmatch(scheme) or scheme.lower() == "file" or not rest.strip("/") or not rest.isprintable():
            raise InputError(
                "a URL is SCHEME://HOST/FOLDER or SCHEME://BUCKET/FOLDER; a local folder is named by its path"
            )
        if not _HOST.fullmatch(rest.split("/")[0]) or "?" in rest or "#" in rest:
            raise InputError(
                f"{scheme}://…: a URL holds no user, password, query or fragment; credentials come from the environment of the "
                "store, as AWS_PROFILE or AWS_ACCESS_KEY_ID"
            )
        object.__setattr__(self, "text", f"{scheme.lower()}://{rest.rstrip('/')}")

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Url:
        """The URL of what has this relative name in the folder, which no name leaves."""
        if name.startswith("/") or "://" in name or {"", ".", ".."} & set(name.split("/")):
            raise InputError(
                f"{self}: its index names {name!r}, which does not lie in this folder; index the tars there"
            )
        return Url(f"{self.text}/{quote(name) if self.scheme in ('http', 'https') else name}")

    def absolute(self) -> Url:
        """Itself: a URL means the same wherever a process runs."""
        return self

    @property
    def scheme(self) -> str:
        """As "s3" or "https"."""
        return self.text.partition("://")[0]

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.text.rpartition("/")[2]

    @property
    def place(self) -> tuple[str, str]:
        """Host or bucket, and the path or key in there."""
        split = urlsplit(self.text)
        return split.netloc, split.path.lstrip("/")


Root = Path | Url


def root_of(given: object) -> Root:
    """What a person or a config names as the place of a data set."""
    match given:
        case Path() | Url():
            return given
        case str() if "://" in given:
            return Url(given)
        case str():
            return Path(given)
        case _:
            raise InputError(f"{given!r} is neither a path nor a URL")
