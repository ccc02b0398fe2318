"""A learner that was taught some classes: what it says of images, and its file, which is all that anybody needs to ask it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import Tensor

from pipeline.config import parse
from pipeline.data.files import make_folder, write_file
from pipeline.data.outline import Outline
from pipeline.errors import InputError
from pipeline.learners.learner import Mode
from pipeline.tasks.detection import detections
from pipeline.teaching.assembled import Assembled, assembled
from pipeline.teaching.calibration import SURE, Calibration, calibrated
from pipeline.teaching.support import Support

FORMAT = 1
KEY = "metashard.model"
"""Of the file's metadata: what it is, as JSON."""
LEARNER, INPUTS, TARGETS = "learner/", "support/inputs", "support/targets"
UNKNOWN = "unknown"


class Label(NamedTuple):
    """What is said of an image: a class, or `UNKNOWN`, with the probability of each class if it is any of them.

    likeness: how much it is like anything known; it is unknown below the model's threshold.
    nearest: the sample of the support that it is most like, by number.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    likeness: float
    nearest: int


class Box(NamedTuple):
    """An object: left, top, right, bottom as shares of the image's sides."""

    label: str
    score: float
    box: tuple[float, float, float, float]


@final
class Adapted:
    """A learner with the support it was taught by; it never changes, so that several threads may ask it."""

    def __init__(
        self,
        learner: Assembled,
        support: Support,
        calibration: Calibration | None = None,
        *,
        origin: Mapping[str, Any],
        mode: Mode = Mode.INDUCTIVE,
    ):
        """Adapt to a support; without a calibration that of the support is made. In transductive mode images that are asked about
        together look at each other."""
        self.learner, self.support, self.origin = learner, support, dict(origin)
        self._ask = learner.adapt(support.batch, support.ways, mode=mode)
        self.calibration = calibrated(learner, support, self.known) if calibration is None else calibration

    @cached_property
    def _embed(self) -> Callable[[Tensor], Tensor]:
        return self.learner.embedder(self.support.inputs)

    @cached_property
    def known(self) -> Tensor:
        """The features of the support's samples, of length one (samples, features)."""
        return self._embed(self.support.inputs)

    def features(self, inputs: Tensor) -> Tensor:
        """The encoder's features of inputs, of length one (samples, features)."""
        return self._embed(inputs)

    def scores(self, inputs: Tensor) -> Tensor:
        """Predictions of the learner's task for inputs (samples, channels, height, width), float64 on the CPU.

        Raises:
            InputError: they are not finite.
        """
        found = self._ask(inputs).double().cpu()
        if not found.isfinite().all():
            raise InputError(
                f"support of {len(self.support.inputs)} images: the learner adapts to values that are not finite; give others"
            )
        return found

    def labels(self, inputs: Tensor, *, threshold: float | None = None) -> list[Label]:
        """What each image is, of classification and verification; `threshold` in the place of the model's own."""
        least = self.calibration.threshold if threshold is None else threshold
        chances = (self.scores(inputs) / self.calibration.temperature).softmax(1)
        likes, nearest = self.likeness(inputs)
        told = []
        for chance, like, near in zip(chances.tolist(), likes.tolist(), nearest.tolist(), strict=True):
            way = max(range(len(chance)), key=chance.__getitem__)
            is_known = least is None or like >= least
            label = self.support.classes[way] if is_known else UNKNOWN
            told.append(Label(label, chance[way], dict(zip(self.support.classes, chance, strict=True)), like, near))
        return told

    def likeness(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """How much inputs are like the nearest sample of the support, by the cosine of features (Sun et al. 2022,
        "Out-of-Distribution Detection with Deep Nearest Neighbors"), and the number of that one: both (samples,)."""
        likes, nearest = (self.features(inputs) @ self.known.T).max(1)
        return likes.double().cpu(), nearest.cpu()

    def maps(self, inputs: Tensor) -> Tensor:
        """The class of every pixel (samples, height, width) uint8, of segmentation: 0 is none, 1 + way."""
        return self.scores(inputs).argmax(1).to(torch.uint8)

    @property
    def sure(self) -> list[float]:
        """Of detection, the score from which on an object of each way is told."""
        return self.calibration.scores or [SURE] * self.support.ways

    def boxes(self, inputs: Tensor, *, threshold: float | None = None) -> list[list[Box]]:
        """The objects in each image, the surest first, of detection; `threshold` in the place of the classes' own."""
        least = self.sure if threshold is None else [threshold] * self.support.ways
        return [
            [
                Box(self.support.classes[int(way)], score, (left, top, right, bottom))
                for left, top, right, bottom, score, way in found
                if score >= least[int(way)]
            ]
            for found in detections(self.scores(inputs)).tolist()
        ]


def save(model: Adapted, path: Path) -> None:
    """Write a model as one file, replaced in one move.

    Raises:
        InputError: its folder cannot be written.
    """
    make_folder(path.parent)
    write_file(path, packed(model))


def packed(model: Adapted) -> bytes:
    """A model's safetensors file: the learner's values, the support, and JSON that says the rest and has a hash of all."""
    tensors = {LEARNER + name: value for name, value in model.learner.learner.state_dict().items()}
    tensors |= {INPUTS: model.support.inputs, TARGETS: model.support.targets}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    about = {
        "format": FORMAT,
        "config": model.learner.config.model_dump(mode="json", exclude={"tracking", "mirror"}),
        "data": model.learner.told._asdict(),
        "classes": list(model.support.classes),
        "names": list(model.support.names),
        "calibration": model.calibration._asdict(),
        "origin": model.origin,
    }
    about["sha256"] = _sha256(about, tensors)
    return serialised(tensors, metadata={KEY: json.dumps(about)})


def load(path: Path) -> Adapted:
    """The model of a file.

    Raises:
        InputError: it is none, was altered, or is of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[KEY])
            number = about["format"]
            tensors = {name: file.get_tensor(name) for name in file.keys()} if number == FORMAT else {}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: is no model of metashard adapt ({_one(error)}); name one, or adapt a checkpoint"
        ) from error
    if number != FORMAT:
        raise InputError(f"{path}: format {number!r}, this version reads {FORMAT}; use the version that wrote it")
    said = about.pop("sha256", "")
    if _sha256(about, tensors) != said:
        raise InputError(f"{path}: is not what was written (sha256 differs); have the model made again")
    config, told = parse(about["config"], str(path)), Outline(**about["data"])
    values = {name.removeprefix(LEARNER): value for name, value in tensors.items() if name.startswith(LEARNER)}
    learner = assembled(config, told, values, f"{path} holds no weights of its own learner")
    support = Support(tuple(about["classes"]), tensors[INPUTS], tensors[TARGETS], tuple(about["names"]))
    return Adapted(
        learner, support.to(learner.inputs.device), Calibration(**about["calibration"]), origin=about["origin"]
    )


def _one(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _sha256(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """A hash of all that a file says."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tuple(value.shape)}\0{value.dtype}\0".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
