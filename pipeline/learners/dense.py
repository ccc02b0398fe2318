"""Learners that label every pixel by likeness in a learned embedding."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.episode import Batch, Episode, Outcome
from pipeline.learners.embedding import Decide, EmbeddingLearner
from pipeline.models.norm import Normalise, Recorded
from pipeline.tasks.task import Task
from pipeline.tensor_noise import Chance

SCALE = 20.0
"""What cosines are multiplied by before the softmax (PANet, section 3.3)."""


def area_means(features: Tensor, weights: Tensor) -> Tensor:
    """Means of features (samples, channels, height, width) over areas, by weights (samples, areas, height, width): (areas,
    channels). An area that is nowhere has mean 0."""
    sums = torch.einsum("sahw,schw->ac", weights, features)
    return sums / weights.sum((0, 2, 3)).clamp(min=1e-6)[:, None]


@final
class DensePrototypeLearner(EmbeddingLearner):
    """PANet: a pixel belongs to the area, ground or class, whose mean feature its own is likest by cosine (Wang et al. 2019,
    section 3.3). Means are over all pixels of an area in all shots, so that a large object counts more than a small one.

    With `align` λ the loss is that of the queries + λ · that of the support as the queries' predictions label it (section 3.4).
    """

    def __init__(self, model: nn.Module, task: Task, *, align: float = 0.0):
        super().__init__(model, task)
        self.align = align

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        names = torch.arange(1 + ways, device=labels.device)[:, None, None]
        return self._decide(area_means(support, (labels[:, None] == names).to(support.dtype)))

    def outcome(self, episode: Episode) -> Outcome:
        if not self.align:
            return super().outcome(episode)
        support, query, ways, key = episode
        recorded = Recorded(chance=Chance(key))
        known, asked = self._embedded(support, query.inputs, recorded)
        predictions = self.learn(known, support.targets, ways, recorded)(asked)
        # Hard labels, as in the paper: no gradient flows through what the queries were taken for.
        guessed = Batch(query.inputs, predictions.detach().argmax(1))
        back = self.learn(asked, guessed.targets, ways, recorded)(known)
        loss = self.loss(predictions, query.targets) + self.align * self.loss(back, support.targets)
        return Outcome(loss, self.task.metrics(predictions, query.targets), recorded.statistics)

    @staticmethod
    def _decide(means: Tensor) -> Decide:
        directions = F.normalize(means, dim=1)
        return lambda query: SCALE * torch.einsum("schw,ac->sahw", F.normalize(query, dim=1), directions)
