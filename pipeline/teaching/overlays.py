"""What a model found in an image, drawn on it: masks as PNG with a palette, coloured areas, and boxes with names."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.teaching.adapted import Box

MOST_CLASSES = 254
"""Values of a mask beside 0, which is none, and 255, which is what is not looked at."""
GOLDEN = 0.618034
"""Step from a class's hue to the next one's: neighbours are far apart, however many there are."""
OPAQUE = 0.5
LETTER = 12
"""Height of letters, in pixels."""


def colours(count: int) -> np.ndarray:
    """Colours of so many classes (count, 3) uint8, each the same however many follow it."""
    found = [colorsys.hsv_to_rgb((0.58 + GOLDEN * number) % 1, 0.85, 0.95) for number in range(count)]
    return (255 * np.array(found).reshape(-1, 3)).round().astype(np.uint8)


def mask_png(mask: np.ndarray) -> bytes:
    """A PNG of the values of a mask (height, width) uint8, with a palette so that people see them too."""
    image = Image.fromarray(mask)
    image.putpalette(np.concatenate([np.zeros((1, 3), np.uint8), colours(MOST_CLASSES)]).tobytes())
    return _png(image)


def areas_png(image: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> bytes:
    """A PNG of an image (height, width, channels) with the areas of a mask (height, width) in the colours of their classes, and
    what these are called."""
    shown, there = _rgb(image), mask > 0
    palette = colours(len(classes))
    tinted = shown.astype(np.float32)
    tinted[there] = (1 - OPAQUE) * tinted[there] + OPAQUE * palette[mask[there].astype(int) - 1]
    drawn = Image.fromarray(tinted.round().astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for line, way in enumerate(sorted(set(map(int, np.unique(mask))) - {0})):
        _written(pen, (2, 2 + line * (LETTER + 4)), classes[way - 1], tuple(palette[way - 1].tolist()))
    return _png(drawn)


def boxes_png(image: np.ndarray, boxes: Sequence[Box], classes: Sequence[str]) -> bytes:
    """A PNG of an image (height, width, channels) with frames around objects, in its pixels, in the colours of their classes."""
    drawn = Image.fromarray(_rgb(image))
    pen, palette = ImageDraw.Draw(drawn), colours(len(classes))
    wide = max(1, round(min(drawn.size) / 200))
    # The surest last, so that it is on top.
    for box in reversed(boxes):
        colour = tuple(palette[classes.index(box.label)].tolist())
        left, top, right, bottom = box.box
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=wide)
        _written(pen, (left + wide + 1, top + wide + 1), f"{box.label} {100 * box.score:.0f} %", colour)
    return _png(drawn)


def _written(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: tuple[int, ...]) -> None:
    """Text on a dark ground, so that it is legible on any image."""
    font = ImageFont.load_default(LETTER)
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    pen.rectangle(pen.textbbox(at, text, font=font), fill="black")
    pen.text(at, text, fill=colour, font=font)


def _rgb(image: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 of any image: its first three channels, or its first, from its least value to its largest."""
    some = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
    if some.dtype != np.uint8:
        low, high = float(some.min()), float(some.max())
        some = (255 * (some.astype(np.float64) - low) / max(high - low, 1e-12)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(some, (*some.shape[:2], 3)))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
