"""A first look at labelled images: how many each class has, and what they are like."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.data.images import decode
from pipeline.data.source import Sample, Source
from pipeline.errors import InputError

LOOKED_AT = 64
"""Images that are opened, spread evenly over all."""
EDGE = 51
"""Grey values up to this one, and as many below white, are ink or paper."""
INK = 0.8
"""Share of ink and paper from which on grey images are drawings, as characters are."""


class Survey(NamedTuple):
    """What there is: by class the number of its images, and the splits that the folders bring, if any.

    side: pixels of the shorter side of half of the images, or more. channels: 1 where all are grey, else 3. is_ink: drawn in one
    tone on another; is_inverted: dark on light.
    """

    counts: Mapping[str, int]
    splits: Mapping[str, Sequence[str]]
    side: int
    channels: int
    is_ink: bool
    is_inverted: bool


def survey(source: Source) -> Survey:
    """Look at a source of labelled images.

    Raises:
        InputError: there are none, or one that is looked at is no image.
    """
    if not source.samples:
        raise InputError(f"{source.name}: no images found; give a folder with a folder of images for each class")
    spread = source.samples[:: max(1, len(source.samples) // LOOKED_AT)]
    images = [_pixels(sample) for sample in spread]
    is_grey = all(image.shape[2] == 1 or np.ptp(image, axis=2).max() == 0 for image in images)
    tones = np.concatenate([image[..., 0].ravel() for image in images]) if is_grey else np.zeros(0)
    is_ink = is_grey and float(((tones <= EDGE) | (tones >= 255 - EDGE)).mean()) >= INK
    return Survey(
        counts=dict(sorted(Counter(sample.label for sample in source.samples).items())),
        splits=source.splits,
        side=int(statistics.median_low([min(image.shape[:2]) for image in images])),
        channels=1 if is_grey else 3,
        is_ink=is_ink,
        is_inverted=is_ink and float(tones.mean()) > 127,
    )


def _pixels(sample: Sample) -> np.ndarray:
    """(height, width, channels) uint8."""
    image = sample.image()
    return decode(image, f"image {sample.key!r}") if isinstance(image, bytes) else image
