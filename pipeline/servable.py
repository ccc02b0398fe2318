"""A learner as others use it: images of known classes and images that are asked about come in, classes and scores go out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.episode import Batch
from pipeline.errors import InputError
from pipeline.learners.learner import Mode
from pipeline.schema.run import RunConfig
from pipeline.schema.task import ClassificationConfig, VerificationConfig
from pipeline.teaching.assembled import Assembled
from pipeline.teaching.source import of_files

COLUMNS = ("support", "labels", "queries")

Picture = str | Sequence[str]
"""A file in base64; of several modalities one file for each, in their order, "" for what the sample lacks."""


class Answer(NamedTuple):
    """What a learner says of the queries of one episode.

    classes: those of the support, in the order in which they came.
    labels, probabilities: for each query the most likely class, and how likely it is among these classes.
    scores: for each query one number for each class, more is more alike: logits, or of verification what a threshold is set on.
    """

    classes: list[str]
    labels: list[str]
    probabilities: list[float]
    scores: list[list[float]]


def check(config: RunConfig) -> None:
    """Raises InputError if a learner of this config does not say which class an image is of."""
    if not isinstance(config.task, ClassificationConfig | VerificationConfig):
        raise InputError(
            f"task.kind = {config.task.kind}: a model in MLflow says which class an image is of, not what is where in it; "
            "leave tracking.model, tracking.register_as and metashard register to classification and verification"
        )


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

    def answer(self, asked: Mapping[str, Sequence[Any]], *, mode: Mode = Mode.INDUCTIVE) -> Answer:
        """Learn from `support`, whose classes are `labels`, and say of which of them `queries` are.

        Images are of any size and lie in base64: files as `teaching.inputs` takes them.

        Raises:
            InputError: an image cannot be read, or support and labels do not fit each other or the learner.
        """
        support, labels, queries = (list(asked[name]) for name in COLUMNS)
        classes = list(dict.fromkeys(str(label) for label in labels))
        if len(support) != len(labels):
            raise InputError(
                f"support has {len(support)} images and labels {len(labels)} classes; give one class for each image"
            )
        if not support or not queries:
            raise InputError(f"support has {len(support)} images and queries {len(queries)}; give at least one of each")
        known, unknown = self._inputs(support, "support"), self._inputs(queries, "queries")
        targets = torch.tensor([classes.index(str(label)) for label in labels], device=known.device)
        scores = self.learner.adapt(Batch(known, targets), len(classes), mode=mode)(unknown).double().cpu()
        if not scores.isfinite().all():
            raise InputError(
                f"support of {len(support)} images: the learner adapts to values that are not finite; give other images"
            )
        likely, own = scores.softmax(-1).max(-1)
        return Answer(classes, [classes[number] for number in own], likely.tolist(), scores.tolist())

    def _inputs(self, pictures: Sequence[Picture], column: str) -> torch.Tensor:
        """(samples, channels, height, width), as a packed sample of these images would be read."""
        return self.learner.inputs.tensor(
            [self._sample(picture, f"{column}[{number}]") for number, picture in enumerate(pictures)]
        )

    def _sample(self, picture: Picture, what: str) -> tuple[np.ndarray | None, ...]:
        texts = [picture] if isinstance(picture, str) else list(picture)
        try:
            files = [base64.b64decode(text, validate=True) for text in texts]
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{what}: is no base64 ({error}); encode the file's bytes") from error
        return self.learner.inputs.sample(files, what)
