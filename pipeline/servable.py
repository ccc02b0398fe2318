"""A learner as others use it: images of known classes and images that are asked about come in, answers go out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.data.boxes import sound
from pipeline.data.images import decode_mask, encode_png, resize_mask
from pipeline.errors import InputError
from pipeline.labels import IGNORED
from pipeline.learners.learner import Mode
from pipeline.schema.task import TaskConfig
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.answers import Asked, Boxes, Mask, answers
from pipeline.teaching.assembled import Assembled
from pipeline.teaching.calibration import Calibration
from pipeline.teaching.source import of_files
from pipeline.teaching.support import Support

IMAGES = ("support", "labels", "queries")

Picture = str | Sequence[str]
"""A file in base64; of several modalities one file for each, in their order, "" for what the sample lacks."""


class ClassAnswer(NamedTuple):
    """What a learner says of the queries of one episode.

    classes: those of the support, in the order in which they came.
    labels, probabilities: for each query the most likely class, and how likely it is among these classes.
    scores: for each query one number for each class, more is more alike: logits, or of verification what a threshold is set on.
    """

    classes: list[str]
    labels: list[str]
    probabilities: list[float]
    scores: list[list[float]]


class MaskAnswer(NamedTuple):
    """For each query a PNG of its size in base64, whose values are 0 for no class and n for the n-th of `classes`."""

    classes: list[str]
    masks: list[str]


class BoxAnswer(NamedTuple):
    """For each query the objects in it, the surest first: left, top, right, bottom in its pixels, score, and n for the n-th of
    `classes`."""

    classes: list[str]
    boxes: list[list[list[float]]]


Answer = ClassAnswer | MaskAnswer | BoxAnswer


def columns(task: TaskConfig) -> tuple[str, ...]:
    """What a request has. `labels` are the classes of the support's images, one for each; where the task has masks or boxes, they
    are the classes that the values of these mean, from 1 on.

    `masks` are PNG files in base64, one for each image: 0 is none, n the n-th label, 255 is not looked at. `boxes` are for each
    image a list of (left, top, right, bottom, n) in its pixels, minus n for what is not to be looked at.
    """
    return (*IMAGES, *{"segmentation": ("masks",), "detection": ("boxes",)}.get(task.kind, ()))


def answer_of(task: TaskConfig) -> type[Answer]:
    """What an answer has."""
    return {"segmentation": MaskAnswer, "detection": BoxAnswer}.get(task.kind, ClassAnswer)


def opened(about: Path, weights: Path) -> Servable:
    """The learner of these two files.

    Raises:
        InputError: they are damaged, of another format, or do not belong together.
    """
    return Servable(of_files(about, weights).assembled())


class Servable:
    """A learner that is asked about whole episodes."""

    def __init__(self, learner: Assembled):
        self.learner = learner

    def answer(self, asked: Mapping[str, Any], *, mode: Mode = Mode.INDUCTIVE) -> Answer:
        """Learn from `support` and say what `queries` are; see `columns`.

        Images are of any size and lie in base64: files as `teaching.inputs` takes them.

        Raises:
            InputError: an image cannot be read, or support and labels do not fit each other or the learner.
        """
        names = columns(self.learner.config.task)
        support, labels, queries, *targets = (list(_given(asked, name)) for name in names)
        if not support or not queries:
            raise InputError(f"support has {len(support)} images and queries {len(queries)}; give at least one of each")
        known = [self._asked(picture, f"support[{number}]") for number, picture in enumerate(support)]
        unknown = [self._asked(picture, f"queries[{number}]") for number, picture in enumerate(queries)]
        inputs, called = self.learner.inputs.tensor([each.arrays for each in known]), [str(label) for label in labels]
        if targets:
            classes, (made,) = tuple(called), targets
            if len(made) != len(support):
                raise InputError(
                    f"support has {len(support)} images and {names[-1]} {len(made)}; give one for each image"
                )
            read: Callable[..., Tensor] = self._masks if names[-1] == "masks" else _boxes
            wanted = read(made, known, classes)
        else:
            if len(support) != len(called):
                raise InputError(
                    f"support has {len(support)} images and labels {len(called)} classes; give one class for each image"
                )
            classes = tuple(dict.fromkeys(called))
            wanted = torch.tensor([classes.index(label) for label in called])
        shown = Support(classes, inputs, wanted.to(inputs.device), tuple(each.name for each in known))
        if not shown.members().any(0).all():
            raise InputError(f"labels: not every one of {', '.join(classes)} is in {names[-1]}; leave out what is not")
        return _answer(Adapted(self.learner, shown, Calibration(), origin={}, mode=mode), unknown)

    def _asked(self, picture: Picture, what: str) -> Asked:
        texts = [picture] if isinstance(picture, str) else list(picture)
        arrays = self.learner.inputs.sample([_decoded(text, what) for text in texts], what)
        shape = next(array for array in arrays if array is not None).shape
        return Asked(what, arrays, (shape[0], shape[1]))

    def _masks(self, texts: Sequence[str], known: Sequence[Asked], classes: Sequence[str]) -> Tensor:
        """(samples, height, width) int64 as the learner sees them."""
        height, width, _ = self.learner.inputs.shape
        found = []
        for number, (text, own) in enumerate(zip(texts, known, strict=True)):
            what = f"masks[{number}]"
            mask = decode_mask(_decoded(text, what), what)
            if mask.shape != own.size:
                raise InputError(f"{what}: is {mask.shape} (height, width), its image {own.size}; make them equal")
            if (beyond := mask[(mask > len(classes)) & (mask != IGNORED)]).size:
                raise InputError(
                    f"{what}: value {beyond.min()} means nothing, labels has {len(classes)} classes; name it there"
                )
            found.append(mask if mask.shape == (height, width) else resize_mask(mask, height))
        return torch.from_numpy(np.stack(found).astype(np.int64))


def _given(asked: Mapping[str, Any], name: str) -> Sequence[Any]:
    if name not in asked or asked[name] is None:
        raise InputError(f"{name}: is not given; this learner's requests have it")
    return asked[name]


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise InputError(f"{what}: is no base64 ({error}); encode the file's bytes") from error


def _boxes(boxes: Sequence[Any], known: Sequence[Asked], classes: Sequence[str]) -> Tensor:
    """(samples, boxes, 5) float32, in shares of the images' sides."""
    found = []
    for number, (own, image) in enumerate(zip(boxes, known, strict=True)):
        height, width = image.size
        told = {"classes": list(classes), "boxes": [list(box) for box in own]}
        values, _ = sound(told, "", height, width, f"boxes[{number}]")
        values[:, :4] = np.clip(values[:, :4] / (width, height, width, height), 0, 1)
        found.append(torch.from_numpy(values).float())
    most = max(1, *map(len, found))
    return torch.stack([pad(each, (0, 0, 0, most - len(each))) for each in found])


def _answer(model: Adapted, queries: Sequence[Asked]) -> Answer:
    classes, task = list(model.support.classes), model.learner.config.task
    if task.kind not in ("segmentation", "detection"):
        scores = model.scores(model.learner.inputs.tensor([each.arrays for each in queries]))
        likely, own = scores.softmax(-1).max(-1)
        return ClassAnswer(classes, [classes[number] for number in own], likely.tolist(), scores.tolist())
    masks, boxes = [], []
    for found in answers(model, queries, threshold=0.0):
        match found:
            case Mask():
                masks.append(base64.b64encode(encode_png(found.mask)).decode())
            case Boxes():
                boxes.append(
                    [[*box.box, box.score, 1.0 + classes.index(box.label)] for box in found.boxes if box.score > 0]
                )
    return MaskAnswer(classes, masks) if task.kind == "segmentation" else BoxAnswer(classes, boxes)
