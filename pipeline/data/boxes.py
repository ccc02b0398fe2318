"""Boxes around objects: what is sound, how they follow their image, how many had to be clipped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.errors import InputError

ROUNDING = 0.5
"""How far, in pixels, a box may reach beyond its image without being counted: annotations are rounded."""
SMALLEST = 1.0
"""Shortest side of a box in pixels of its image: what is smaller, or turned inside out, shows nothing."""
DIGITS = 3


class Clipped(NamedTuple):
    """A box inside its image, or none if nothing of it was left, and whether it had to be clipped."""

    box: tuple[float, float, float, float] | None
    was_outside: bool


def clip(box: Sequence[float], width: int, height: int) -> Clipped:
    """The part of (left, top, right, bottom) inside an image, in pixels."""
    if not all(math.isfinite(side) for side in box):
        return Clipped(None, False)
    left, top, right, bottom = box
    kept = (max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
    if kept[2] - kept[0] < SMALLEST or kept[3] - kept[1] < SMALLEST:
        return Clipped(None, False)
    return Clipped(kept, max(abs(a - b) for a, b in zip(box, kept, strict=True)) > ROUNDING)


def scaled(boxes: Iterable[Sequence[float]], across: float, down: float) -> list[list[float]]:
    """Boxes (left, top, right, bottom, value) of an image whose sides became so many times as long."""
    return [
        [round(left * across, DIGITS), round(top * down, DIGITS), round(right * across, DIGITS),
         round(bottom * down, DIGITS), value]
        for left, top, right, bottom, value in boxes
    ]  # fmt: skip


def sound(fields: Mapping, own: str, height: int, width: int, what: str) -> tuple[np.ndarray, list[str]]:
    """The boxes (boxes, 5) float64 that a sample's JSON tells, and the classes that their values mean from 1 on.

    A box is left, top, right, bottom in pixels of an image (height, width), and a value: n for an object of the n-th class,
    −n for what is of that class but not to be looked at. Where the sample names no classes, 1 is its `own`.

    Raises:
        InputError: there are none, or one is degenerate, leaves its image or has a value without a class.
    """
    classes = fields.get("classes", [own])
    if not isinstance(classes, list) or not isinstance(said := fields.get("boxes"), list):
        raise InputError(
            f"{what} has no boxes, which task.kind = detection needs; pack data that have, as --layout scenes, coco, voc or logos"
        )
    try:
        boxes = np.asarray(said, np.float64).reshape(-1, 5)
    except (ValueError, TypeError):
        raise InputError(f"{what}: boxes must be lists of left, top, right, bottom and value; mend its JSON") from None
    for box in boxes:
        left, top, right, bottom, value = box.tolist()
        shown = [round(side, DIGITS) for side in box.tolist()]
        if not (np.isfinite(box).all() and left < right and top < bottom):
            raise InputError(f"{what}: box {shown} has no area; take it out")
        if min(left, top) < -ROUNDING or right > width + ROUNDING or bottom > height + ROUNDING:
            raise InputError(f"{what}: box {shown} leaves its image, {width} × {height} pixels; clip it")
        if value != int(value) or not 1 <= abs(value) <= len(classes):
            raise InputError(f"{what}: box {shown} is of class {value:g}, and it names {len(classes)}; mend its JSON")
    return boxes, [str(name) for name in classes]
