"""Image files that a model is asked about, and its answers in their own pixels: what `predict` writes and `serve` sends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.teaching.adapted import Adapted, Box, Label


class Asked(NamedTuple):
    """An image file, read: its modalities as stored, and its height and width in pixels."""

    name: str
    arrays: tuple[np.ndarray | None, ...]
    size: tuple[int, int]


class Mask(NamedTuple):
    """The class of every pixel of an image: (height, width) uint8, 0 for none, 1 + the place in `classes`; and shares of it."""

    mask: np.ndarray
    classes: tuple[str, ...]

    @property
    def areas(self) -> dict[str, float]:
        """Which share of the image each class covers, of those that are there."""
        counts = np.bincount(self.mask.ravel(), minlength=1 + len(self.classes))[1:]
        return {
            name: count / self.mask.size for name, count in zip(self.classes, counts.tolist(), strict=True) if count
        }


class Boxes(NamedTuple):
    """The objects in an image, the surest first; left, top, right, bottom in its pixels."""

    boxes: list[Box]


Answer = Label | Mask | Boxes


def opened(model: Adapted, data: bytes, name: str) -> Asked:
    """An image file that the model is to be asked about.

    Raises:
        InputError: `name` cannot be read, or is not what the learner takes.
    """
    arrays = model.learner.inputs.sample([data], f"image {name!r}")
    shape = next(array for array in arrays if array is not None).shape
    return Asked(name, arrays, (shape[0], shape[1]))


def answers(model: Adapted, asked: Sequence[Asked], *, threshold: float | None = None) -> list[Answer]:
    """As `answered`, of images as they were read.

    Raises:
        InputError: the learner takes other images.
    """
    inputs = model.learner.inputs.tensor([each.arrays for each in asked])
    return answered(model, inputs, [each.size for each in asked], threshold=threshold)


def answered(
    model: Adapted, inputs: Tensor, sizes: Sequence[tuple[int, int]], *, threshold: float | None = None
) -> list[Answer]:
    """What the model says of each image by itself: inputs (samples, channels, height, width), as the learner takes them, of
    images of these heights and widths. `threshold` in the place of the model's own: the likeness below which an image is
    unknown, or the score from which on an object is told.

    Raises:
        InputError: what the learner says is not finite.
    """
    match model.learner.config.task.kind:
        case "segmentation":
            maps = model.maps(inputs).numpy()
            return [Mask(_of_size(own, size), model.support.classes) for own, size in zip(maps, sizes, strict=True)]
        case "detection":
            found = model.boxes(inputs, threshold=threshold)
            return [Boxes([_in_pixels(box, size) for box in own]) for own, size in zip(found, sizes, strict=True)]
        case _:
            return list(model.labels(inputs, threshold=threshold))


def as_json(answer: Answer, model: Adapted) -> dict[str, Any]:
    """An answer as JSON values; a mask tells its areas alone."""
    match answer:
        case Label():
            return {**answer._asdict(), "nearest": model.support.names[answer.nearest]}
        case Mask():
            return {"areas": answer.areas}
        case Boxes():
            return {"boxes": [box._asdict() for box in answer.boxes]}


def _of_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By nearest neighbour: values are names, not amounts."""
    height, width = size
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def _in_pixels(box: Box, size: tuple[int, int]) -> Box:
    height, width = size
    left, top, right, bottom = box.box
    return box._replace(box=(left * width, top * height, right * width, bottom * height))
