"""Reads the embedded scenes: several drawn characters in a picture, split by script."""

from __future__ import annotations

from functools import partial

import numpy as np

from pipeline.data.glyphs import Character, characters
from pipeline.data.scenes import scene
from pipeline.data.source import Sample, Source
from pipeline.errors import InputError

SIZES = range(48, 257)
SAMPLES = 10


def _image(character: Character, **given: int) -> np.ndarray:
    return scene(character, **given).image


def _mask(character: Character, **given: int) -> np.ndarray:
    return scene(character, **given).mask


def _meta(character: Character, **given: int) -> dict[str, list]:
    made = scene(character, **given)
    return {"classes": list(made.classes), "boxes": [list(box) for box in made.boxes]}


def scenes(*, size: int = 64, samples_per_class: int = SAMPLES, seed: int = 0) -> Source:
    """The data set `scenes`: `samples_per_class` pictures of `size` x `size` pixels for every character.

    A sample's `meta` holds `classes`, the names of the mask's values from 1 on, its own first, and `boxes`, (left, top, right,
    bottom, value) of every object. Raises InputError for a size out of range.
    """
    if size not in SIZES:
        raise InputError(f"size = {size} does not suit scenes: choose {SIZES[0]} to {SIZES[-1]} pixels")
    samples, splits = [], {}
    for character in characters():
        splits.setdefault(character.split, []).append(character.name)
        for number in range(samples_per_class):
            given = {"seed": seed, "number": number, "size": size}
            samples.append(
                Sample(
                    key=f"{character.name}/{number:04d}",
                    label=character.name,
                    image=partial(_image, character, **given),
                    mask=partial(_mask, character, **given),
                    meta=partial(_meta, character, **given),
                )
            )
    return Source("scenes", samples, splits)
