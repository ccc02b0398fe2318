"""What is in a PNG file, for tests of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageColor


def pixels(path: Path) -> np.ndarray:
    """(height, width, 3) uint8 of a PNG file."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB"))


def size(path: Path) -> tuple[int, int]:
    """Width and height."""
    height, width, _ = pixels(path).shape
    return width, height


def painted(path: Path, colour: str) -> int:
    """How many pixels have exactly this colour, as "#0072b2"."""
    return int((pixels(path) == np.array(ImageColor.getrgb(colour))).all(-1).sum())
