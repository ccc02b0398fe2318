"""What a page is made of, and how it becomes HTML: everything that is shown is escaped, nothing is fetched, nothing runs."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.errors import InputError
from pipeline.shipment import plain_uri
from pipeline.tables import Grid

TEMPLATE = "page.html.jinja"
PNG = b"\x89PNG\r\n\x1a\n"
MOST_PICTURE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Facts:
    """What is what, in pairs."""

    kind: ClassVar[str] = "facts"
    pairs: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A table with what it is about; columns from `numbers` on hold figures."""

    kind: ClassVar[str] = "table"
    caption: str
    grid: Grid
    numbers: int = 1


@dataclass(frozen=True)
class Picture:
    """A picture as a data: URI, what those hear who do not see it, and what stands below it."""

    kind: ClassVar[str] = "picture"
    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Code:
    """Text that is kept as it is: a file, a command."""

    kind: ClassVar[str] = "code"
    caption: str
    text: str


@dataclass(frozen=True)
class Note:
    """A paragraph; a warning is told from a remark by a word too."""

    kind: ClassVar[str] = "note"
    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Link:
    """A place elsewhere; only the reader goes there."""

    kind: ClassVar[str] = "link"
    address: str
    text: str


Part = Facts | Table | Picture | Code | Note | Link


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """Where links inside the page lead."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """A page: its title, what it tells of in a line, and its sections, of which those without parts are left out."""

    title: str
    subtitle: str
    sections: Sequence[Section] = field(default_factory=list)


def picture(path: Path, alt: str, caption: str) -> Picture | Note:
    """A PNG file as part of a page; a warning where it is none."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_PICTURE_BYTES + 1)
    except OSError as error:
        return Note(f"{path.name} cannot be read: {error.strerror}", is_warning=True)
    if not content.startswith(PNG) or len(content) > MOST_PICTURE_BYTES:
        return Note(f"{path.name} is no PNG file of at most {MOST_PICTURE_BYTES // 2**20} MiB", is_warning=True)
    return Picture("data:image/png;base64," + base64.b64encode(content).decode(), alt, caption)


def link(address: str, text: str) -> Link | Note:
    """A link to a page of a server; an address that is something else is only told."""
    return Link(address, text) if re.match(r"https?://", address) else Note(f"{text}: {address}")


def html(page: Page) -> str:
    """The page as one HTML document."""
    made = Environment(
        loader=PackageLoader("pipeline", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_fit,
    )
    return made.get_template(TEMPLATE).render(
        page=page, sections=[section for section in page.sections if section.parts]
    )


def write(page: Page, path: Path) -> Path:
    """Write a page in one move: a browser may be reading it.

    Raises:
        InputError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(html(page), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"--out {path}: {error.strerror}; name a file that can be written") from error
    return path


def _fit(value: object) -> object:
    """Text without passwords in addresses, and without characters that no HTML may hold."""
    if not isinstance(value, str):
        return value
    return re.sub(r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", plain_uri(value))
