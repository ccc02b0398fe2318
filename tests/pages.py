"""What a browser would make of a page, as far as a parser can tell: its text, its pictures, and that nothing in it is amiss."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img"}
ALLOWED = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "nav",
        "section",
        "h1",
        "h2",
        "p",
        "a",
        "strong",
    ),
    *(
        "ul",
        "li",
        "dl",
        "dt",
        "dd",
        "div",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "figure",
        "figcaption",
    ),
    *("img", "pre", "code"),
}


class Read(HTMLParser):
    """A page that was read: `text` of all that is shown, `pictures` by alternative text, `code` blocks, `links`, `headings`."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.text, self.style = "", ""
        self.pictures: dict[str, bytes] = {}
        self.code: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.notes: list[str] = []
        source = path.read_text(encoding="utf-8")
        assert source.startswith("<!DOCTYPE html>")
        self.feed(source)
        self.close()
        assert not self.open, f"{self.open} is never closed"
        self._check()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, f"<{tag}> in a page"
        given = dict(attrs)
        assert len(given) == len(attrs) and not [name for name in given if name.startswith("on")]
        assert "style" not in given and given.get("http-equiv", "Content-Security-Policy") == "Content-Security-Policy"
        if "id" in given:
            self.ids.append(str(given["id"]))
        match tag:
            case "img":
                source, alt = str(given["src"]), given.get("alt")
                assert alt and alt.strip(), "a picture without words"
                assert source.startswith("data:image/png;base64,")
                self.pictures[alt] = base64.b64decode(source.partition(",")[2], validate=True)
            case "a":
                self.links.append(str(given["href"]))
            case "th":
                assert given.get("scope") in ("row", "col")
            case "pre":
                self.code.append("")
            case "h1" | "h2":
                self.headings.append("")
            case "p":
                self.notes.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"<{tag}/> means nothing in HTML")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.style += data
            return
        self.text += data
        for tag, kept in (("pre", self.code), ("h1", self.headings), ("h2", self.headings), ("p", self.notes)):
            if tag in self.open:
                kept[-1] += data

    @property
    def warnings(self) -> list[str]:
        """What the page warns of."""
        return [note for note in self.notes if note.startswith("Warning:")]

    def _check(self) -> None:
        assert len(self.headings) == len(set(self.headings)) and len(self.ids) == len(set(self.ids))
        inside = [link.removeprefix("#") for link in self.links if link.startswith("#")]
        assert inside == self.ids, "every section is linked from above, and nothing else"
        assert all(re.match(r"#|https?://", link) for link in self.links)
        assert not re.search(r"url\(|@import|expression", self.style), "a style that fetches"
        assert all(picture.startswith(b"\x89PNG") for picture in self.pictures.values())
        assert not [letter for letter in self.text if ord(letter) < 32 and letter not in "\t\n\r"]
