"""Answers on their way out, one at a time: as a JSON document, a CSV table, a COCO file or lines for people."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from pipeline.data.files import make_folder
from pipeline.errors import InputError
from pipeline.teaching.adapted import Label
from pipeline.teaching.answers import Answer, Boxes, Mask
from pipeline.teaching.pairs import Compared


class Entry(NamedTuple):
    """What came of an image, or of a pair of them: an answer, or in a sentence why there is none.

    named: what it is called, by column; said: the answer as JSON values, or its `error`; size: height and width in pixels.
    """

    named: dict[str, str]
    said: dict[str, Any]
    answer: Answer | Compared | None = None
    size: tuple[int, int] | None = None

    @property
    def error(self) -> str | None:
        return self.said.get("error")


Sink = Callable[[Entry], None]
"""Takes entries in the order of the images."""


def failed(named: Mapping[str, str], error: object) -> Entry:
    """An image that has no answer."""
    return Entry(dict(named), {"error": str(error)})


@contextmanager
def json_document(file: TextIO, head: Mapping[str, Any]) -> Iterator[Sink]:
    """An object of `head` and the list `predictions`; no more than one entry is held."""
    # Letters beyond ASCII are escaped: names of files need not be text.
    file.write(json.dumps(dict(head))[:-1] + (", " if head else "") + '"predictions": [')
    count = 0

    def write(entry: Entry) -> None:
        nonlocal count
        file.write(("," if count else "") + "\n" + json.dumps({**entry.named, **entry.said}))
        count += 1

    yield write
    file.write("\n]}\n")


@contextmanager
def csv_table(file: TextIO, columns: Sequence[str]) -> Iterator[Sink]:
    """A table of these columns: a row for an image, or for each area or box in it, and one where there is none."""
    table = csv.DictWriter(file, columns, extrasaction="ignore")
    table.writeheader()
    yield lambda entry: table.writerows(_rows(entry))


@contextmanager
def coco(file: TextIO, classes: Sequence[str]) -> Iterator[Sink]:
    """Images, categories and annotations with scores, as COCO's own reader takes them; its `loadRes` takes the annotations. What
    has no answer is in `failed`."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []

    def add(entry: Entry) -> None:
        if entry.size is None or not isinstance(entry.answer, Boxes):
            errors.append({**entry.named, **entry.said})
            return
        number, (height, width) = 1 + len(images), entry.size
        images.append({"id": number, "file_name": entry.named["name"], "width": width, "height": height})
        for box in entry.answer.boxes:
            left, top, right, bottom = box.box
            wide, high = right - left, bottom - top
            told = {"image_id": number, "category_id": 1 + classes.index(box.label), "bbox": [left, top, wide, high]}
            annotations.append(
                {"id": 1 + len(annotations), **told, "area": wide * high, "iscrowd": 0, "score": box.score}
            )

    yield add
    categories = [{"id": 1 + way, "name": name} for way, name in enumerate(classes)]
    told = {"info": {}, "images": images, "categories": categories, "annotations": annotations, "failed": errors}
    json.dump(told, file)


@contextmanager
def lines() -> Iterator[Sink]:
    """A line on standard output for each image that has an answer; the others are named at the end."""

    def show(entry: Entry) -> None:
        if entry.answer is not None:
            print(legible(f"{' '.join(entry.named.values())}  {text(entry.answer)}"))

    yield show


def text(answer: Answer | Compared) -> str:
    """An answer in words."""
    match answer:
        case Label():
            likeliest = max(answer.probabilities, key=answer.probabilities.__getitem__)
            likely = f"{100 * answer.probability:.1f} %"
            return (
                f"{answer.label}  {likely}"
                if answer.label == likeliest
                else f"{answer.label}  ({likeliest} {likely} if any)"
            )
        case Mask():
            return ", ".join(f"{name} {100 * area:.1f} %" for name, area in answer.areas.items()) or "nothing"
        case Boxes():
            return ", ".join(f"{box.label} {100 * box.score:.0f} %" for box in answer.boxes) or "nothing"
        case Compared():
            return f"{'same' if answer.same else 'different'}  cosine {answer.likeness:.3f}, same from {answer.threshold:.3f}"


def legible(line: str) -> str:
    """A line that no name of a file or a class can break or colour."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


def columns_of(kind: str, classes: Sequence[str]) -> list[str]:
    """The columns of a task's table."""
    match kind:
        case "segmentation":
            return ["name", "class", "area", "mask", "overlay", "error"]
        case "detection":
            return ["name", "label", "score", "left", "top", "right", "bottom", "picture", "error"]
        case _:
            return ["name", "label", "probability", "likeness", "nearest", "error", *map(_column, classes)]


def _column(name: str) -> str:
    return f"probability of {name}"


def _rows(entry: Entry) -> list[dict[str, Any]]:
    common = {**entry.named, **entry.said}
    match entry.answer:
        case Label():
            chances = {_column(name): chance for name, chance in entry.answer.probabilities.items()}
            return [{**common, **chances}]
        case Mask():
            return [{**common, "class": name, "area": area} for name, area in entry.answer.areas.items()] or [common]
        case Boxes():
            sides = ("left", "top", "right", "bottom")
            return [
                {**common, "label": box.label, "score": box.score, **dict(zip(sides, box.box, strict=True))}
                for box in entry.answer.boxes
            ] or [common]
        case _:
            return [common]


@contextmanager
def whole(path: Path) -> Iterator[TextIO]:
    """A text file that is there as a whole in the end, or not at all. Names that are no text keep their bytes.

    Raises:
        InputError: it cannot be written.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.part")
    try:
        file = partial.open("w", newline="", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another file") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def told_at_the_end(errors: Sequence[Entry], total: int) -> None:
    """Name on standard error what has no answer, each with its reason."""
    print(f"metashard: {len(errors)} of {total} have no answer:", file=sys.stderr)
    for entry in errors:
        print(legible(f"  {entry.error}"), file=sys.stderr)
