"""Mean and standard deviation of a data set's channels, of a part of its images that is always the same."""

from __future__ import annotations

from itertools import repeat
from typing import NamedTuple

import numpy as np

from pipeline.data.loader import Reader
from pipeline.data.sampler import classes_of
from pipeline.errors import InputError

MOST, BATCH = 2000, 100
"""Images that are looked at, and how many are in memory at a time."""


class Moments(NamedTuple):
    """One number per channel each, of pixels in 0…1."""

    mean: list[float]
    std: list[float]


def moments(reader: Reader, split: str) -> Moments:
    """Those of up to MOST images of a split, evenly spread over its classes: a pure function of the index and of how it is read.

    Raises:
        InputError: there is no such split, an image cannot be read, or a channel is the same everywhere.
    """
    index = reader.shards.index
    rows = np.unique(np.concatenate([index.postings(int(name)) for name in classes_of(index, split)]))
    # By class, so that every class has its part.
    rows = rows[np.argsort(index.class_of[rows], kind="stable")]
    rows = rows[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int)]
    count, first, second = 0, np.zeros(1), np.zeros(1)
    for part in np.array_split(rows, -(-len(rows) // BATCH)):
        reader.shards.bring(part.tolist())
        pixels = reader.inputs(part, map(reader.stored, part.tolist()), repeat(0, len(part))).double()
        count += pixels[:, 0].numel()
        first = first + pixels.sum((0, 2, 3)).numpy()
        second = second + pixels.square().sum((0, 2, 3)).numpy()
    mean = first / count
    std = np.sqrt(np.maximum(second / count - mean**2, 0))
    if flat := [number for number, spread in enumerate(std.tolist()) if spread < 1e-6]:
        raise InputError(
            f"{index.root}: channel {flat[0]} of the split {split!r} is the same everywhere, and nothing can be divided by its "
            "deviation; set data.normalise = none"
        )
    return Moments(mean.tolist(), std.tolist())
