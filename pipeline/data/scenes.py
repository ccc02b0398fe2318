"""Scenes of drawn characters: several of them on one ground, with a mask and a box for each class.

A scene belongs to one character, its class, which is there once or twice among one or two others of the same split. Drawn
characters (`pipeline.data.glyphs`) are put down one after another, where none is yet. Law 1 for pixels as there: integers
and single IEEE operations alone.
"""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from pipeline.data.glyphs import Character, characters, draw
from pipeline.noise import Noise, Purpose

SIDES = (0.38, 0.52)
"""Smallest and largest side of a character's picture, in sides of the scene."""
AGAIN = 0.3
"""How likely what is put down beside the first and its rival is the scene's own class again."""
INK = (0.55, 1.0)
GROUND = (0.0, 0.3)
"""Ranges of brightness; a ground runs from one to another along a slope of its own."""
GRAIN = 12
"""Amplitude of the noise of each pixel, in levels of 255."""
_TRIES = 60
_DRAWINGS = 40
"""Drawings of a character that scenes choose from: none is in two splits, since characters are not."""


class Box(NamedTuple):
    """Pixels from (left, top) to (right, bottom), the latter excluded, of the object of a class: 1 is the first one named."""

    left: int
    top: int
    right: int
    bottom: int
    value: int


class Scene(NamedTuple):
    """A picture (size, size, 1) uint8; its mask (size, size) uint8, 0 on the ground and else the number, from 1 on, of
    the object's class in `classes`; the boxes of its objects."""

    image: np.ndarray
    mask: np.ndarray
    classes: tuple[str, ...]
    boxes: tuple[Box, ...]


@cache
def _of_split(split: str) -> tuple[Character, ...]:
    return tuple(character for character in characters() if character.split == split)


@lru_cache(maxsize=8)
def scene(character: Character, *, seed: int, number: int, size: int) -> Scene:
    """Scene `number` of a class: a pure function of its arguments. The arrays are shared: copy before writing."""
    key = int.from_bytes(hashlib.sha256(character.name.encode()).digest()[:8])
    noise = Noise(seed, Purpose.SCENE, key, number)
    image, mask = _ground(noise, size), np.zeros((size, size), np.uint8)
    others = [other for other in _of_split(character.split) if other is not character]
    cast = [character, others[noise.below(len(others))]]
    for _ in range(1 + noise.below(2)):
        cast.append(character if noise.uniform() < AGAIN else others[noise.below(len(others))])
    classes: dict[str, int] = {}
    boxes = []
    for shown in cast:
        value = classes.get(shown.name, len(classes) + 1)
        if box := _put(image, mask, shown, value, noise, seed):
            classes[shown.name] = value
            boxes.append(box)
    image.flags.writeable = mask.flags.writeable = False
    return Scene(image[:, :, None], mask, tuple(classes), tuple(boxes))


def _ground(noise: Noise, size: int) -> np.ndarray:
    """A slope of brightness with grain on it: (size, size) uint8."""
    low, across, down = (noise.uniform(*GROUND) for _ in range(3))
    place = np.arange(size) / size
    slope = low + (across - low) * place[None, :] + (down - low) * place[:, None]
    grain = (noise.words(size * size) >> np.uint64(40)).astype(np.int64).reshape(size, size)
    levels = np.floor(slope * 255) + (grain * (2 * GRAIN + 1) >> 24) - GRAIN
    return np.clip(levels, 0, 255).astype(np.uint8)


def _put(image: np.ndarray, mask: np.ndarray, character: Character, value: int, noise: Noise, seed: int) -> Box | None:
    """Put a drawing of the character where nothing is yet; None where no room was found."""
    size = len(image)
    side = int(size * noise.uniform(*SIDES))
    ink, number = noise.uniform(*INK), noise.below(_DRAWINGS)
    glyph = draw(character, seed=seed, number=number, size=side)
    for _ in range(_TRIES):
        left, top = noise.below(size - side + 1), noise.below(size - side + 1)
        inside = (slice(top, top + side), slice(left, left + side))
        if mask[inside].any():
            continue
        # By integers: brightness of the ink over what is below, in parts of 255.
        cover = glyph.image[:, :, 0].astype(np.int64)
        below = image[inside].astype(np.int64)
        image[inside] = ((cover * int(ink * 255) + (255 - cover) * below + 127) // 255).astype(np.uint8)
        mask[inside] = np.where(glyph.mask > 0, value, 0)
        x0, y0, x1, y1 = glyph.box
        return Box(left + x0, top + y0, left + x1, top + y1, value)
    return None
