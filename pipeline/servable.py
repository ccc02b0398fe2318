"""A learner as others use it: images of known classes and images that are asked about come in, classes and scores go out."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from pipeline import build
from pipeline.config import parse
from pipeline.data import modalities, npy
from pipeline.data.images import decode
from pipeline.data.loader import Reader
from pipeline.data.modalities import IMAGE
from pipeline.data.outline import Outline, outlined
from pipeline.episode import Batch
from pipeline.errors import InputError
from pipeline.learners.learner import Learner, Mode
from pipeline.restore import fill
from pipeline.schema.run import RunConfig
from pipeline.schema.task import ClassificationConfig, VerificationConfig

FORMAT = 1
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


def about(config: RunConfig, told: Outline, weights: bytes, *, step: int) -> dict[str, Any]:
    """What `opened` needs beside the weights, as JSON values; where the run was tracked is nobody's business."""
    plain = config.model_dump(mode="json", exclude={"tracking", "mirror"})
    sha256 = hashlib.sha256(weights).hexdigest()
    return {"format": FORMAT, "step": step, "sha256": sha256, "data": told._asdict(), "config": plain}


def opened(about: Path, weights: Path) -> Servable:
    """The learner of these two files.

    Raises:
        InputError: they are damaged, of another format, or do not belong together.
    """
    try:
        said, content = json.loads(about.read_text()), weights.read_bytes()
        number, sha256, told = said["format"], said["sha256"], Outline(**said["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{about}: is no model's description ({error}); have the model made again") from error
    if number != FORMAT:
        raise InputError(f"{about}: format {number!r}, this version reads {FORMAT}; use the version that wrote it")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{weights}: is not what was written (sha256 differs); have the model made again")
    config = parse(said["config"], str(about))
    index = outlined(told, config.data.root, config.data.train)
    learner = build.learner(config, index)
    try:
        values = load_tensors(content)
    except SafetensorError as error:
        raise InputError(f"{weights}: no safetensors ({error}); have the model made again") from error
    fill(learner, values, config, f"{weights} holds no weights of the learner of {about}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    height, _, _ = index.shape(0)
    # Images of any size come as large as those that were trained on; features stay as they are.
    reader = build.reader(config, index)._replace(size=None if index.encoder else config.data.size or height)
    return Servable(config, reader, learner.to(device), device)


class Servable:
    """A learner and how its images are read; requests are answered one at a time, since a learner's model serves one only."""

    def __init__(self, config: RunConfig, reader: Reader, learner: Learner, device: torch.device):
        self.config, self.learner, self._reader, self._device = config, learner, reader, device
        self._one = threading.Lock()

    def answer(self, asked: Mapping[str, Sequence[Any]], *, mode: Mode = Mode.INDUCTIVE) -> Answer:
        """Learn from `support`, whose classes are `labels`, and say of which of them `queries` are.

        Images are of any size and lie in base64: files of PNG, JPEG or another format of `data.images`, or npy arrays (height,
        width, channels), whose integers mean shares of their type's largest value, as in a packed data set.

        Raises:
            InputError: an image cannot be read, or support and labels do not fit each other or the learner.
        """
        support, labels, queries = (list(asked[name]) for name in COLUMNS)
        classes = list(dict.fromkeys(str(label) for label in labels))
        self._check(len(support), len(labels), len(queries), len(classes))
        known, unknown = self._inputs(support, "support"), self._inputs(queries, "queries")
        targets = torch.tensor([classes.index(str(label)) for label in labels], device=self._device)
        with self._one, torch.no_grad():
            predictor = self.learner.adapt(Batch(known, targets), len(classes), mode=mode)
            scores = predictor(unknown).double().cpu()
        if not scores.isfinite().all():
            raise InputError(
                f"support of {len(support)} images: the learner adapts to values that are not finite; give other images"
            )
        likely, own = scores.softmax(-1).max(-1)
        return Answer(classes, [classes[number] for number in own], likely.tolist(), scores.tolist())

    def _check(self, support: int, labels: int, queries: int, ways: int) -> None:
        if support != labels:
            raise InputError(f"support has {support} images and labels {labels} classes; give one class for each image")
        if not support or not queries:
            raise InputError(f"support has {support} images and queries {queries}; give at least one of each")
        if build.has_fixed_head(self.config) and ways != self.config.data.ways:
            raise InputError(
                f"labels name {ways} classes, and this learner tells {self.config.data.ways} apart; give images of as many"
            )

    def _inputs(self, pictures: Sequence[Picture], column: str) -> torch.Tensor:
        """(samples, channels, height, width), as a packed sample of these images would be read."""
        stored = [self._stored(picture, f"{column}[{number}]") for number, picture in enumerate(pictures)]
        found = self._reader.inputs([0] * len(stored), stored, [0] * len(stored))
        return found.to(self._device, torch.float64 if self.config.meta.precision == "float64" else torch.float32)

    def _stored(self, picture: Picture, what: str) -> tuple[np.ndarray | None, ...]:
        reader = self._reader
        files = [picture] if isinstance(picture, str) else list(picture)
        if len(files) != len(reader.modalities):
            raise InputError(
                f"{what}: has {len(files)} files, and this learner takes {', '.join(reader.modalities)}; give one for each"
            )
        if not any(files) or (not all(files) and not reader.told):
            raise InputError(f"{what}: a file is empty, and this learner takes no sample without it; give it")
        parts = zip(reader.modalities, files, strict=True)
        return tuple(self._array(text, name, what) if text else None for name, text in parts)

    def _array(self, text: str, modality: str, what: str) -> np.ndarray:
        index = self._reader.shards.index
        height, width, _ = index.shape(0)
        channels = index.channels(modality)
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{what}: is no base64 ({error}); encode the file's bytes") from error
        if modality == IMAGE and not data.startswith(npy.MAGIC):
            array = decode(data, what, channels=channels if channels in (1, 3) else None)
        else:
            array = modalities.decoded(data, what)
        if not np.isfinite(array).all():
            raise InputError(f"{what}: has values that are not finite; replace them")
        if array.shape[2] != channels:
            raise InputError(f"{what}: has {array.shape[2]} channels and this learner takes {channels}; give as many")
        if index.encoder and array.shape[:2] != (height, width):
            raise InputError(
                f"{what}: is {array.shape}, and this learner takes features of ({height}, {width}, {channels}) values; embed "
                "the image by the encoder it was trained with"
            )
        return array
