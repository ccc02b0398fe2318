"""What `metashard serve` can be asked over HTTP, each a method."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, final
from urllib.parse import quote, urlsplit

import httpx

from pipeline.errors import InputError

TIMEOUT = httpx.Timeout(120.0, connect=5.0)
"""Seconds: until an answer comes, and until somebody listens."""
PAGE = 100
"""Classes that are listed at a time."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the image."""


class Image(NamedTuple):
    """An image file as it was given: nobody has looked at it."""

    name: str
    data: bytes


class Taught(NamedTuple):
    """What a server knows: `classes` (name, samples) from one place on, `total` of all; `most` that it can tell apart.

    size: height, width and channels that the learner sees.
    lacks: what is missing before anything can be asked, empty if nothing is.
    accuracy: how right it was of `samples` left out of the support, 0…1, by `measure`; `copies`: these were turned copies of it.
    """

    task: str
    total: int
    most: int | None
    size: tuple[int, int, int]
    lacks: str
    measure: str
    accuracy: float | None
    samples: int
    copies: bool
    classes: list[tuple[str, int]]


class Learned(NamedTuple):
    """A class after it was taught: its samples, what is known of the whole, and what is odd about the images."""

    name: str
    samples: int
    accuracy: float | None
    warnings: list[str]


class Compared(NamedTuple):
    """Whether two images show one identity: so if their likeness reaches the threshold."""

    same: bool
    likeness: float
    threshold: float


@final
class Server:
    """A server at a URL; it may be asked from several threads.

    Every method raises `InputError` with the server's own sentence where it refuses, or with one that says that nobody answers.
    """

    def __init__(self, url: str, *, token: str = ""):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise InputError(f"{url!r}: is no URL of metashard serve; give one as http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        # A proxy of the environment is for the internet; what is asked here is near.
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=TIMEOUT,
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def taught(self, *, offset: int = 0) -> Taught:
        """`PAGE` classes from the one at `offset`, in the server's order."""
        with self._as_agreed():
            found = self._asked("GET", "/classes", params={"offset": offset, "limit": PAGE}).json()
            found["classes"] = [(str(each["name"]), int(each["samples"])) for each in found["classes"]]
            return Taught(**{name: found[name] for name in Taught._fields})

    def teach(
        self,
        name: str,
        images: Sequence[Image],
        *,
        masks: Sequence[bytes] = (),
        boxes: Sequence[Sequence[Box]] = (),
    ) -> Learned:
        """Add images to a class; of segmentation each with a PNG mask, of detection each with the boxes of the class."""
        files = [("images", (each.name, each.data)) for each in images]
        files += [("masks", (f"{number}.png", mask)) for number, mask in enumerate(masks)]
        data = {"name": name, **({"boxes": json.dumps(boxes)} if boxes else {})}
        with self._as_agreed():
            found = self._asked("POST", "/classes", data=data, files=files).json()
            return Learned(**{field: found[field] for field in Learned._fields})

    def forget(self, name: str) -> None:
        """Delete a class."""
        # A name of dots alone would be taken for a way through folders.
        self._asked("DELETE", f"/classes/{quote(name, safe='').replace('.', '%2E')}")

    def predict(self, image: Image, *, threshold: float | None = None) -> dict[str, Any]:
        """What is said of an image, as `pipeline.teaching.answers.as_json` has it; of segmentation with `mask`, a PNG."""
        params = {} if threshold is None else {"threshold": threshold}
        with self._as_agreed():
            files = [("images", (image.name, image.data))]
            (found,) = self._asked("POST", "/predict", params=params, files=files).json()["predictions"]
            if "error" in found:
                raise InputError(str(found["error"]))
            return {**found, "mask": base64.b64decode(found["mask"], validate=True)} if "mask" in found else found

    def compare(self, one: Image, other: Image) -> Compared:
        """Whether both show one identity."""
        files = [("images", (each.name, each.data)) for each in (one, other)]
        with self._as_agreed():
            found = self._asked("POST", "/compare", files=files).json()
            return Compared(**{name: found[name] for name in Compared._fields})

    def sample(self, number: int) -> bytes:
        """PNG of a sample of the support, as the learner sees it."""
        return self._asked("GET", f"/samples/{int(number)}").content

    def model(self) -> bytes:
        """The file of the adapted model, which `metashard predict` takes."""
        return self._asked("GET", "/model").content

    def _asked(self, method: str, path: str, **what: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **what)
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise InputError(f"{self.url}: does not answer ({said}); start metashard serve, or give its URL") from error
        if answer.is_success:
            return answer
        raise InputError(_refusal(answer) or f"{self.url}: answers {answer.status_code}; {_AGREED}")

    @contextmanager
    def _as_agreed(self) -> Iterator[None]:
        """An answer that lacks something, or is no JSON, comes from another program."""
        try:
            yield
        except InputError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.url}: answers otherwise than metashard serve does ({error!r}); {_AGREED}"
            ) from error


_AGREED = "give the URL of a metashard serve of this version"


def _refusal(answer: httpx.Response) -> str:
    """The sentence in which a server refuses; empty where it says none."""
    try:
        said = answer.json()
    except ValueError:
        return ""
    return str(said.get("error") or "") if isinstance(said, Mapping) else ""
