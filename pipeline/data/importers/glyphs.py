"""Reads the embedded data set: drawn characters, split by script."""

from __future__ import annotations

from functools import partial

import numpy as np

from pipeline.data.glyphs import Character, characters, draw, face_of
from pipeline.data.source import Sample, Source
from pipeline.errors import InputError

SIZES = range(16, 257)
SAMPLES = range(1, 10_000)


def _image(character: Character, *, seed: int, number: int, size: int) -> np.ndarray:
    return draw(character, seed=seed, number=number, size=size).image


def _mask(character: Character, *, seed: int, number: int, size: int) -> np.ndarray:
    return draw(character, seed=seed, number=number, size=size).mask


def glyphs(*, size: int = 28, samples_per_class: int = 20, seed: int = 0) -> Source:
    """The data set `glyphs`: `samples_per_class` drawings of `size` x `size` pixels of every character.

    A sample is drawn when its image or mask is asked for and depends on the seed, its class and its number alone.
    `meta` holds script, character and face; the ink's box is that of the mask (`pipeline.data.glyphs.box_of`).
    Raises InputError for a size or a number of samples out of range.
    """
    if size not in SIZES:
        raise InputError(f"size = {size} does not suit glyphs: choose {SIZES[0]} to {SIZES[-1]} pixels")
    if samples_per_class not in SAMPLES:
        raise InputError(f"samples_per_class = {samples_per_class}: choose {SAMPLES[0]} to {SAMPLES[-1]}")
    samples, splits = [], {}
    for character in characters():
        splits.setdefault(character.split, []).append(character.name)
        for number in range(samples_per_class):
            face = face_of(character, seed=seed, number=number)
            samples.append(
                Sample(
                    key=f"{character.name}/{number:04d}",
                    label=character.name,
                    image=partial(_image, character, seed=seed, number=number, size=size),
                    mask=partial(_mask, character, seed=seed, number=number, size=size),
                    meta=partial(dict, script=character.script, character=character.text, face=face),
                )
            )
    return Source("glyphs", samples, splits)
