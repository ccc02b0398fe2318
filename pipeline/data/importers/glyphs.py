"""Reads the embedded data set: drawn characters, split by script."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from pipeline.data.glyphs import Character, characters, distance_squared, draw, face_of
from pipeline.data.source import Sample, Source
from pipeline.errors import InputError

SIZES = range(16, 257)
SAMPLES = range(1, 10_000)
DEPTH = "depth"


def _image(character: Character, *, seed: int, number: int, size: int) -> np.ndarray:
    return draw(character, seed=seed, number=number, size=size).image


def _mask(character: Character, *, seed: int, number: int, size: int) -> np.ndarray:
    return draw(character, seed=seed, number=number, size=size).mask


def _depth(character: Character, *, seed: int, number: int, size: int) -> np.ndarray:
    """Relief: white where there is ink, darker with the distance to it, black from a quarter of the side on."""
    distance = np.sqrt(distance_squared(_mask(character, seed=seed, number=number, size=size) > 0).astype(np.float64))
    return np.rint(255 * (1 - np.minimum(distance / (size / 4), 1))).astype(np.uint8)[..., None]


def glyphs(*, size: int = 28, samples_per_class: int = 20, seed: int = 0, modalities: Sequence[str] = ()) -> Source:
    """The data set `glyphs`: `samples_per_class` drawings of `size` x `size` pixels of every character.

    A sample is drawn when its image or mask is asked for and depends on the seed, its class and its number alone.
    `meta` holds script, character and face; the ink's box is that of the mask (`pipeline.data.glyphs.box_of`).
    Of modalities there is `depth`, a relief of the ink. Raises InputError for a size or a number of samples out of range, and
    for another modality.
    """
    if size not in SIZES:
        raise InputError(f"size = {size} does not suit glyphs: choose {SIZES[0]} to {SIZES[-1]} pixels")
    if samples_per_class not in SAMPLES:
        raise InputError(f"samples_per_class = {samples_per_class}: choose {SAMPLES[0]} to {SAMPLES[-1]}")
    if others := [name for name in modalities if name != DEPTH]:
        raise InputError(
            f"--modalities image,{others[0]}: glyphs are drawn with {DEPTH} and nothing else; leave it out"
        )
    samples, splits = [], {}
    for character in characters():
        splits.setdefault(character.split, []).append(character.name)
        for number in range(samples_per_class):
            face, given = face_of(character, seed=seed, number=number), {"seed": seed, "number": number, "size": size}
            samples.append(
                Sample(
                    key=f"{character.name}/{number:04d}",
                    label=character.name,
                    image=partial(_image, character, **given),
                    mask=partial(_mask, character, **given),
                    meta=partial(dict, script=character.script, character=character.text, face=face),
                    planes={DEPTH: partial(_depth, character, **given)} if modalities else {},
                )
            )
    return Source("glyphs", samples, splits)
