"""A learner built without the data it was trained on, from what a checkpoint or a model's file says of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import build
from pipeline.data.outline import Outline, outlined
from pipeline.episode import Batch
from pipeline.errors import InputError
from pipeline.labels import IGNORED
from pipeline.learners.learner import Learner, Mode, Predictor
from pipeline.models.network import Network
from pipeline.models.norm import Given, Recorded
from pipeline.restore import fill
from pipeline.schema.run import RunConfig
from pipeline.schema.task import ClassificationConfig
from pipeline.teaching.inputs import Inputs

MANY = 64
"""How many queries are predicted at a time."""


@final
class Assembled:
    """A learner with its values, and how its images are read. Calls from several threads come one after another: a learner's
    model serves one only."""

    def __init__(self, config: RunConfig, told: Outline, learner: Learner, inputs: Inputs):
        self.config, self.told, self.learner, self.inputs = config, told, learner, inputs
        self._one = threading.Lock()

    def adapt(self, support: Batch, ways: int, *, mode: Mode = Mode.INDUCTIVE) -> Predictor:
        """A predictor that has learned from the support; it may be asked from any thread.

        A head of fixed outputs learns fewer classes too, and what it says of those that there are not is left out.

        Raises:
            InputError: the learner tells fewer classes apart.
        """
        predictor = self.bare(support, ways, mode=mode)

        def ask(inputs: Tensor) -> Tensor:
            with self._one, torch.no_grad():
                # In transductive mode queries look at each other, so they are not parted.
                parts = [inputs] if mode is Mode.TRANSDUCTIVE else inputs.split(MANY)
                return torch.cat([predictor(part) for part in parts])

        return ask

    def bare(self, support: Batch, ways: int, *, mode: Mode = Mode.INDUCTIVE) -> Predictor:
        """As `adapt`, for one thread and so many queries as fit: nothing but operations on tensors, to be traced.

        Raises:
            InputError: the learner tells fewer classes apart.
        """
        if (most := self.most_ways) is not None and ways > most:
            raise InputError(
                f"{ways} classes, and this learner tells at most {most} apart; give fewer, or train with data.ways"
            )
        with self._one, torch.no_grad():
            predictor = self.learner.adapt(support, ways, mode=mode)
        outputs, is_detection = self._outputs, self.config.task.kind == "detection"
        unused = 0 if outputs is None else outputs - ways
        return lambda inputs: (
            _without(predictor(inputs), ways, unused, is_detection=is_detection) if unused else predictor(inputs)
        )

    def embedder(self, known: Tensor) -> Callable[[Tensor], Tensor]:
        """What makes the encoder's features, of length one (samples, features), of inputs; norm layers use the learner's own
        statistics, or those of the samples `known` where it keeps none."""
        bare = self.bare_embedder(known)

        def embed(inputs: Tensor) -> Tensor:
            with self._one, torch.no_grad():
                return torch.cat([bare(part) for part in inputs.split(MANY)])

        return embed

    def bare_embedder(self, known: Tensor) -> Callable[[Tensor], Tensor]:
        """As `embedder`, for one thread and so many inputs as fit: nothing but operations on tensors."""
        network, running = self.learner.get_submodule("model"), getattr(self.learner, "running", None)
        assert isinstance(network, Network)
        with self._one, torch.no_grad():
            if running is not None:
                normalise = Given(running.statistics())
            else:
                recorded = Recorded()
                network.encoder(network.standard(known), recorded)
                normalise = Given(recorded.statistics)
        return lambda inputs: F.normalize(network.encoder(network.standard(inputs), normalise).flatten(1), dim=1)

    @property
    def most_ways(self) -> int | None:
        """How many classes it can tell apart at most; None where there is no limit. A mask has values for 254."""
        is_mask = self.config.task.kind == "segmentation"
        return IGNORED - 1 if is_mask and self._outputs is None else self._outputs

    @property
    def _outputs(self) -> int | None:
        """Classes of a head that has an output for each; None where heads are made for as many as there are."""
        return self.config.data.ways if build.has_fixed_head(self.config) else None


def _without(found: Tensor, ways: int, unused: int, *, is_detection: bool) -> Tensor:
    """Predictions without the outputs of `unused` classes: the last channels, before the four sides of a box in detection."""
    if is_detection:
        return torch.cat([found[:, :ways], found[:, ways + unused :]], 1)
    return found[:, : found.shape[1] - unused]


def assembled(config: RunConfig, told: Outline, values: Mapping[str, Tensor], otherwise: str) -> Assembled:
    """The learner of a config, with these values; on a GPU where there is one, wherever it was trained.

    Raises:
        InputError: the values are not those of the learner (`otherwise` says whose), or it cannot be built.
    """
    index = outlined(told, config.data.root, config.data.train)
    learner = build.learner(config, index)
    fill(learner, values, config, otherwise)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = Inputs(build.reader(_without_targets(config), index), precision=config.meta.precision, device=device)
    return Assembled(config, told, learner.to(device), inputs)


def _without_targets(config: RunConfig) -> RunConfig:
    """The config of a learner whose images have neither masks nor boxes of their own."""
    return config.model_copy(update={"task": ClassificationConfig()})
