"""What the page says, as HTML in which everything that came from elsewhere is text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from pipeline.serving.client import Box, Compared, Learned, Taught

UNKNOWN = "unknown"
NOTHING = ""


def told(text: str) -> str:
    """Something that went well."""
    return f'<p role="status" class="told">{escape(text)}</p>'


def refused(error: Exception) -> str:
    """Something that did not, and why."""
    return f'<p role="alert" class="refused">{escape(str(error))}</p>'


def learned(of: Learned) -> str:
    """A class that was taught, and the server's warnings."""
    plural = "" if of.samples == 1 else "s"
    lines = [told(f"{of.name!r} is taught: {of.samples} image{plural}.")]
    lines += [f'<p role="status" class="warned">{escape(warning)}</p>' for warning in of.warnings]
    return "".join(lines)


def summary(of: Taught) -> str:
    """How many classes there are, and how good the model is by what was left out of its support."""
    most = "" if of.most is None else f" of at most {of.most}"
    said = [f"{of.total} class{'' if of.total == 1 else 'es'}{most}."]
    if of.lacks:
        said.append(f"{of.lacks[0].upper()}{of.lacks[1:]}.")
    elif of.accuracy is not None:
        what = "turned and moved copies of what was learned from" if of.copies else "images left out in turn"
        said.append(f"{of.measure[0].upper()}{of.measure[1:]}: {100 * of.accuracy:.1f} % of {of.samples} {what}.")
    else:
        said.append(f"{of.measure[0].upper()}{of.measure[1:]}: not known.")
    return f'<p id="summary">{escape(" ".join(said))}</p>'


def table(of: Taught, *, offset: int) -> str:
    """The classes as a table."""
    if not of.classes:
        return "<p>Nothing is taught yet.</p>"
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{samples}</td></tr>' for name, samples in of.classes)
    caption = f"Classes {offset + 1} to {offset + len(of.classes)} of {of.total}"
    head = '<thead><tr><th scope="col">class</th><th scope="col">images</th></tr></thead>'
    return f'<table class="classes"><caption>{caption}</caption>{head}<tbody>{rows}</tbody></table>'


def verdict(answer: dict[str, Any]) -> str:
    """What an image is taken for, or that it is nothing known."""
    likeness = f"likeness {answer['likeness']:.4g}"
    if answer["label"] == UNKNOWN:
        said = f"If it is any of the classes, then with the probabilities below; {likeness}."
        return f'<div role="status"><p class="verdict unknown">{UNKNOWN}</p><p>{escape(said)}</p></div>'
    said = f"{100 * answer['probability']:.1f} %; {likeness}."
    return f'<div role="status"><p class="verdict">{escape(str(answer["label"]))}</p><p>{escape(said)}</p></div>'


def found(count: int) -> str:
    """How much was found in an image."""
    kind, said = ("", f"{count} found") if count else (" unknown", "nothing found")
    return f'<div role="status"><p class="verdict{kind}">{said}</p></div>'


def compared(of: Compared) -> str:
    """Whether two images show one identity."""
    said = f"likeness {of.likeness:.4g}; same from {of.threshold:.4g} on."
    kind, verdict = ("", "same") if of.same else (" unknown", "different")
    return f'<div role="status"><p class="verdict{kind}">{verdict}</p><p>{escape(said)}</p></div>'


def marked(boxes: Sequence[Box]) -> str:
    """The boxes that were marked in an image, in words."""
    if not boxes:
        return told("No box is marked yet.")
    items = "; ".join(", ".join(f"{side:.0f}" for side in box) for box in boxes)
    return told(f"{len(boxes)} marked (left, top, right, bottom): {items}")


def painted(name: str, pixels: int, total: int) -> str:
    """How much of an image was marked when it was last looked at."""
    return told(f"{name}: {pixels:,} of {total:,} pixels are marked." if pixels else f"{name}: nothing is marked yet.")
