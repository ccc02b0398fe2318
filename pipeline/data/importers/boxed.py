"""From pictures with boxes to samples: what a layout's importer found, clipped, counted, one sample for each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.data.boxes import clip
from pipeline.data.images import FORMATS
from pipeline.data.importers.folder import sample as sample_of
from pipeline.data.source import Sample, keys_of
from pipeline.errors import InputError

MakeMask = Callable[[tuple[str, ...]], np.ndarray]
"""Class names, the sample's own first, to a mask in which the n-th of them is n; see `Sample.mask`."""


class Instance(NamedTuple):
    """An object as annotated: class, left, top, right, bottom in pixels, and whether it is not to be looked at, as a crowd."""

    label: str
    box: tuple[float, float, float, float]
    is_ignored: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture's file, its size in pixels, what is in it, and a mask if it has one."""

    path: Path
    width: int
    height: int
    instances: Sequence[Instance]
    mask: MakeMask | None = None


@dataclass
class Tally:
    """What an importer left out or changed, counted by a sentence that says how."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, number: int = 1) -> None:
        """Count something, if there is anything."""
        if number:
            self.counts[what] = self.counts.get(what, 0) + number

    def notes(self) -> tuple[str, ...]:
        """Sentences for a source's notes."""
        return tuple(f"{number} {what}" for what, number in self.counts.items())


CLIPPED = "boxes reached beyond their image and are clipped"
DEGENERATE = "boxes had less than a pixel inside their image and are left out"
SMALL = "boxes cover less than --min-area of their image and are not looked at"
EMPTY = "images have no box to be looked at and are left out"


def samples_of(pictures: Sequence[Picture], *, min_area: float, tally: Tally) -> list[Sample]:
    """A sample for each picture and class of which it has a box to be looked at, with all of the picture's boxes. Where a
    picture is several samples, they name it as `picture` in their meta, so that no episode has it twice.

    Boxes are clipped to their picture, those with less than a pixel of it are left out, those that cover less than `min_area`
    of it are not looked at; all of that, and pictures without a box, are counted.

    Raises:
        InputError: `min_area` is no share of a picture.
    """
    if not 0 <= min_area < 1:
        raise InputError(f"--min-area {min_area:g} is no share of a picture; choose 0 to below 1")
    numbers = {name: n for n, name in enumerate(sorted({i.label for p in pictures for i in p.instances}))}
    samples = []
    for picture, key in zip(pictures, keys_of([picture.path.name for picture in pictures]), strict=True):
        instances = _sound(picture, min_area, tally)
        names = sorted({instance.label for instance in instances})
        drawn = sorted({instance.label for instance in instances if not instance.is_ignored})
        tally.add(EMPTY, not drawn)
        for label in drawn:
            classes = (label, *(name for name in names if name != label))
            made = sample_of(f"{key}/{numbers[label]}", label, partial(_read, picture.path), picture.path.name)
            mask = None if picture.mask is None else partial(picture.mask, classes)
            samples.append(
                Sample(
                    made.key,
                    label,
                    made.image,
                    made.extension,
                    mask,
                    partial(_meta, classes, tuple(instances), key if len(drawn) > 1 else None),
                )
            )
    return samples


def _sound(picture: Picture, min_area: float, tally: Tally) -> list[Instance]:
    found = []
    for label, box, is_ignored in picture.instances:
        inside, was_outside = clip(box, picture.width, picture.height)
        if inside is None:
            tally.add(DEGENERATE)
            continue
        tally.add(CLIPPED, was_outside)
        area = (inside[2] - inside[0]) * (inside[3] - inside[1])
        is_small = area < min_area * picture.width * picture.height
        tally.add(SMALL, is_small and not is_ignored)
        found.append(Instance(label, inside, is_ignored or is_small))
    return found


def _meta(classes: tuple[str, ...], instances: tuple[Instance, ...], picture: str | None) -> Mapping:
    values = {name: 1 + place for place, name in enumerate(classes)}
    signed = [(*i.box, -values[i.label] if i.is_ignored else values[i.label]) for i in instances]
    told = {"classes": list(classes), "boxes": [list(box) for box in signed]}
    return told if picture is None else {**told, "picture": picture}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from None


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image in pixels, from its header.

    Raises:
        InputError: it is no image of a known format, or has too many pixels.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not an image that can be read ({reason}); mend or remove it") from None


def inside(folder: Path, name: str) -> Path:
    """The file of this name below a folder.

    Raises:
        InputError: the name leads out of it.
    """
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise InputError(f"{folder}: file name {name!r} leaves the folder; mend the annotations")
    return folder / name
