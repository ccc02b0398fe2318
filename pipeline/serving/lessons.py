"""What was uploaded for a class as samples of a support set, in the form of the learner's task."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from pipeline.data.images import FORMATS, MAX_PIXELS, decode_mask
from pipeline.data.source import Sample
from pipeline.errors import InputError
from pipeline.labels import IGNORED
from pipeline.serving.limits import Refused
from pipeline.serving.uploads import File, Form
from pipeline.teaching.assembled import Assembled
from pipeline.teaching.reading import Found, gathered

Value = TypeVar("Value")
TOGETHER = 2 * MAX_PIXELS
"""Pixels of all images of a lesson: they are held at once."""


def lesson(name: str, form: Form, learner: Assembled) -> Found:
    """The support set of one class that a form holds: `images`, and with them `masks` or `boxes` where the task asks for them.

    Raises:
        Refused, InputError: a field is missing, or a file is not what it should be.
    """
    images, kind = form.files.get("images", []), learner.config.task.kind
    if not images:
        raise Refused(400, "images: there are none; send at least one")
    if sum(map(_pixels, images)) > TOGETHER:
        raise Refused(413, f"images: more than {TOGETHER:,} pixels together; send fewer at once, or smaller ones")
    masks = _masks(form, len(images)) if kind == "segmentation" else [None] * len(images)
    metas = _boxes(form, len(images)) if kind == "detection" else [{}] * len(images)
    samples = [
        Sample(key=key, label=name, image=partial(_same, file.data), mask=mask, meta=partial(_same, meta))
        for key, file, mask, meta in zip(_distinct(images), images, masks, metas, strict=True)
    ]
    return gathered(samples, learner, where="images")


def _same(value: Value) -> Value:
    return value


def _pixels(file: File) -> int:
    """How many pixels a file claims; what is wrong with it is said when it is read."""
    try:
        with Image.open(io.BytesIO(file.data), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # as in data.images: Pillow's parsers raise whatever they stumble over
        return 0


def _distinct(images: Sequence[File]) -> list[str]:
    """What images are called, each otherwise."""
    found: dict[str, None] = {}
    for file in images:
        name, number = file.name, 1
        while name in found:
            number += 1
            name = f"{file.name} ({number})"
        found[name] = None
    return list(found)


def _masks(form: Form, count: int) -> list[Callable[[], np.ndarray]]:
    masks = form.files.get("masks", [])
    if len(masks) != count:
        raise Refused(400, f"masks: {len(masks)} for {count} images; send one for each, in their order")
    return [partial(_mask, file) for file in masks]


def _mask(file: File) -> np.ndarray:
    """1 where the class is, 0 where not, 255 for what is not looked at."""
    values = decode_mask(file.data, f"mask {file.name!r}")
    return np.where(values == IGNORED, IGNORED, values > 0).astype(np.uint8)


def _boxes(form: Form, count: int) -> list[dict[str, Any]]:
    """Boxes as a sample's JSON has them, all of the first of its classes."""
    try:
        said = json.loads(form.texts.get("boxes", "null"))
        found = [[[*map(float, box), 1] for box in own] for own in said]
        if len(found) != count or any(len(box) != 5 for own in found for box in own):
            raise ValueError(f"they are of {len(found)} images")
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(
            400,
            f"boxes: send as JSON a list of [left, top, right, bottom] for each of the {count} images, in their order ({error})",
        ) from error
    for number, own in enumerate(found):
        if not own:
            raise InputError(f"boxes: image {number + 1} has none; draw one, or leave the image out")
    return [{"boxes": own} for own in found]
