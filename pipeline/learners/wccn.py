"""A learner that divides out of features how samples of one class differ."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from pipeline.episode import Episode, Outcome, Statistics
from pipeline.errors import InputError
from pipeline.learners.embedding import Decide, EmbeddingLearner
from pipeline.learners.metric import class_means, imprinted
from pipeline.models.heads import cosine_logits, directions
from pipeline.models.norm import Normalise, Recorded
from pipeline.tasks.losses import memberships
from pipeline.tasks.task import Task
from pipeline.tensor_noise import Chance

WITHIN = "within_classes"
"""The name of what it adds to the norm layers' statistics."""


@final
class WccnLearner(EmbeddingLearner):
    """Cosines after within-class covariance normalisation (Hatch et al. 2006, section 3).

    The direction of a feature, less the mean direction m, becomes C⁻¹ (x - m), where C Cᵀ = W + shrink · mean variance · 1 and W
    is the covariance within classes. Along what changes from one picture of a person to the next, likeness counts less. W and m
    are no parameters but averages over training episodes, support and query together, equal on all ranks: over all of them at
    first, exponential ones later (`MOMENTUM`), as an encoder that is trained too changes. Before the first, W is 1 and m is 0.

    Meant for features of a frozen encoder; with batch norm, W is that of features by the statistics of their episode.
    """

    MOMENTUM = 0.01

    mean: Tensor
    within: Tensor
    absorbed: Tensor

    def __init__(self, model: nn.Module, task: Task, *, features: int, scale: float, shrink: float):
        super().__init__(model, task)
        self.shrink, self.scale = shrink, nn.Parameter(torch.tensor(scale))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("within", torch.eye(features))
        self.register_buffer("absorbed", torch.zeros((), dtype=torch.int64))

    def spare(self, backward: int) -> None:
        raise InputError(
            f"learner.backward = {backward}: learner.kind = wccn keeps what all samples of an episode say; set it to 0"
        )

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        variance = self.shrink * self.within.diagonal().mean()
        lower = torch.linalg.cholesky(self.within + variance * torch.eye(len(self.mean)).to(self.within))
        weight = imprinted(self._whitened(support, lower), labels, ways)
        return lambda query: cosine_logits(self._whitened(query, lower), weight, self.scale)

    def _whitened(self, features: Tensor, lower: Tensor) -> Tensor:
        """(samples, features) -> the same, of which cosines are taken"""
        # Solvers need all digits, whatever the encoder computes in.
        with torch.autocast(features.device.type, enabled=False):
            centred = directions(features.to(self.mean.dtype)) - self.mean
            return torch.linalg.solve_triangular(lower, centred.mT, upper=False).mT

    def outcome(self, episode: Episode) -> Outcome:
        support, query, ways, key = episode
        recorded = Recorded(chance=Chance(key))
        known, asked = self._embedded(support, query.inputs, recorded)
        predictions = self.learn(known, support.targets, ways, recorded)(asked)
        found = within_classes(torch.cat([known, asked]), torch.cat([support.targets, query.targets]), ways)
        loss = self.loss(predictions, query.targets)
        return Outcome(loss, self.task.metrics(predictions, query.targets), {**recorded.statistics, WITHIN: found})

    @torch.no_grad()
    def absorb(self, statistics: Statistics) -> None:
        super().absorb(statistics)
        self.absorbed += 1
        share = max(1 / int(self.absorbed), self.MOMENTUM)
        for average, new in zip((self.mean, self.within), statistics[WITHIN], strict=True):
            average.lerp_(new.to(average.dtype).reshape(average.shape), share)


def within_classes(features: Tensor, labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    """The mean direction (features,) and the covariance of directions about the mean of their class, (features²,), detached."""
    seen = directions(features.detach())
    apart = seen - memberships(labels, ways, seen.dtype) @ class_means(seen, labels, ways)
    return seen.mean(0), (apart.mT @ apart / max(len(seen) - ways, 1)).flatten()
