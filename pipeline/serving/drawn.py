"""Pictures of the page as arrays: images large enough to be marked, what was painted on them, boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.images import decode, decode_mask
from pipeline.errors import InputError
from pipeline.serving.client import Box

SIDE = 512
"""The longer side of a picture on the page, in pixels: a character of 28 could not be painted on."""
LINE = "#d55e00"
"""Colour of what a person marks: Okabe and Ito's vermilion, which the colour-blind see too."""
SHADE = 160
"""How opaque a painted mask is, of 255: what is under it is still seen."""


class Picture(NamedTuple):
    """An image (height, width, 3) uint8 and, of the same proportions, what is `shown` of it."""

    image: np.ndarray
    shown: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels shown for each of the image, across and down."""
        return self.shown.shape[1] / self.image.shape[1], self.shown.shape[0] / self.image.shape[0]


def picture(data: bytes, name: str) -> Picture:
    """An image file to look at.

    Raises:
        InputError: it is no whole image.
    """
    image = decode(data, f"image {name!r}", channels=3)
    height, width = image.shape[:2]
    factor = SIDE / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    # Pixels of a small image stay what they are.
    how = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    return Picture(image, np.asarray(Image.fromarray(image).resize(size, how)))


def canvas(of: Picture, mask: np.ndarray) -> dict[str, Any]:
    """The value of an image editor whose canvas is a square of `SIDE`: a picture at its left top, and a mask
    (height, width) bool of the image painted over it. On a canvas of another form the editor moves layers."""
    height, width = of.shown.shape[:2]
    background, layer = np.full((SIDE, SIDE, 3), 255, np.uint8), np.zeros((SIDE, SIDE, 4), np.uint8)
    background[:height, :width] = of.shown
    large = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    layer[:height, :width][large] = [*(int(LINE[at : at + 2], 16) for at in (1, 3, 5)), SHADE]
    return {"background": background, "layers": [layer] if mask.any() else [], "composite": None}


def painted(editor: dict[str, Any] | None, of: Picture) -> np.ndarray:
    """Where the brush has been on a picture of `canvas`, as a mask (height, width) bool of the image."""
    (height, width), (down, across) = of.size, of.shown.shape[:2]
    found = np.zeros((height, width), bool)
    for layer in (editor or {}).get("layers", ()):
        if layer is not None and layer.ndim == 3 and layer.shape[2] == 4:
            alpha = Image.fromarray(np.ascontiguousarray(layer[:down, :across, 3]))
            found |= np.asarray(alpha.resize((width, height), Image.Resampling.BOX)) > SHADE // 2
    return found


def boxed(of: Picture, boxes: Sequence[Box], corner: tuple[float, float] | None = None) -> np.ndarray:
    """What is shown of a picture with boxes drawn, and a cross at the first corner of one to come."""
    across, down = of.scale
    drawn = Image.fromarray(of.shown)
    pen = ImageDraw.Draw(drawn)
    for left, top, right, bottom in boxes:
        edges = (left * across, top * down, right * across - 1, bottom * down - 1)
        # A line of one colour is not seen on everything.
        pen.rectangle(edges, outline="white", width=5)
        pen.rectangle(edges, outline=LINE, width=3)
    if corner is not None:
        x, y = corner[0] * across, corner[1] * down
        for colour, width in (("white", 5), (LINE, 3)):
            pen.line((x - 10, y, x + 10, y), fill=colour, width=width)
            pen.line((x, y - 10, x, y + 10), fill=colour, width=width)
    return np.asarray(drawn)


def box(values: Sequence[float | None], size: tuple[int, int]) -> Box:
    """A box from the numbers of two opposite corners, in any order.

    Raises:
        InputError: a number lacks, or nothing of the image is inside.
    """
    height, width = size
    numbers = [float(value) for value in values if value is not None]
    if len(numbers) < 4:
        raise InputError("box: lacks a number; give left, top, right and bottom, in pixels of the image")
    (left, right), (top, bottom) = sorted(numbers[0::2]), sorted(numbers[1::2])
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if right <= left or bottom <= top:
        raise InputError(f"box {numbers}: has no pixel of the image of {width} × {height}; give other corners")
    return left, top, right, bottom


def filled(mask: np.ndarray, of: Box) -> np.ndarray:
    """A mask with a box of it filled."""
    left, top, right, bottom = of
    found = mask.copy()
    found[int(top) : max(int(top) + 1, round(bottom)), int(left) : max(int(left) + 1, round(right))] = True
    return found


Annotated = tuple[np.ndarray, list[tuple[Any, str]]]
"""A picture, and what is drawn over it with a label each: masks (height, width) or boxes of whole pixels."""


def masks_over(of: Picture, answer: dict[str, Any]) -> Annotated:
    """A picture and the mask of each class that was found in it.

    Raises:
        InputError: the server's mask is none.
    """
    mask = decode_mask(answer["mask"], "the mask of the answer")
    height, width = of.shown.shape[:2]
    large = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    places = [(place, name) for place, name in enumerate(answer["classes"], 1) if name in answer["areas"]]
    return of.shown, [(large == place, f"{name}: {100 * answer['areas'][name]:.1f} %") for place, name in places]


def boxes_over(of: Picture, answer: dict[str, Any]) -> Annotated:
    """A picture and the boxes that were found in it, the surest first."""
    (across, down), (height, width) = of.scale, of.shown.shape[:2]
    told = []
    for each in answer["boxes"]:
        left, top, right, bottom = each["box"]
        corners = (
            min(max(round(left * across), 0), width - 1),
            min(max(round(top * down), 0), height - 1),
            min(max(round(right * across), 1), width),
            min(max(round(bottom * down), 1), height),
        )
        told.append((corners, f"{each['label']}: {100 * each['score']:.0f} %"))
    return of.shown, told
