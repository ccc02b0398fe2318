"""Learners that label every pixel by likeness in a learned embedding."""

from __future__ import annotations

import math
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
    With `threshold` a pixel must be liker to a class than that cosine to be taken for it: what is like nothing in the support is
    ground too, as in anomaly detection (Hansen et al. 2022, ADNet, which has no mean of the ground besides). The number is where
    learning begins.
    """

    def __init__(self, model: nn.Module, task: Task, *, align: float = 0.0, threshold: float | None = None):
        super().__init__(model, task)
        self.align = align
        self.threshold = None if threshold is None else nn.Parameter(torch.tensor(threshold))

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

    def _decide(self, means: Tensor) -> Decide:
        directions = F.normalize(means, dim=1)

        def decide(query: Tensor) -> Tensor:
            logits = SCALE * torch.einsum("schw,ac->sahw", F.normalize(query, dim=1), directions)
            if self.threshold is None:
                return logits
            ground = torch.logaddexp(logits[:, :1], SCALE * self.threshold)
            return torch.cat([ground, logits[:, 1:]], 1)

        return decide


@final
class DenseRidgeLearner(EmbeddingLearner):
    """R2D2 for pixels: ridge regression of each pixel's one-hot area, ground or class, on its features and a constant.

    W minimises Σₐ meanₚ |xₚ W − yₚ|² + λ |W|² over the areas a and their pixels p: each area counts alike, however small an
    object is. Unlike a mean feature it may tell a class from a ground of several kinds. Logits are scale · x W, and those of the
    ground have a number more, since it is what most pixels show; λ, the scale and that number are learned. Where `LinearLearner`
    solves in the samples, here pixels are many: (features + 1)² is solved.
    """

    def __init__(self, model: nn.Module, task: Task, *, penalty: float, scale: float, unit: bool = False):
        super().__init__(model, task)
        self.unit = unit
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))
        self.ground = nn.Parameter(torch.zeros(()))

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        # Solvers need all digits, whatever the encoder computes in.
        with torch.autocast(support.device.type, enabled=False):
            seen = self._seen(support).movedim(1, -1).flatten(0, 2)
            names = torch.arange(1 + ways, device=labels.device)
            areas = (labels.flatten()[:, None] == names).to(seen.dtype)
            counts = areas.sum(0).clamp(min=1)
            # One that is not looked at is of no area, and counts for nothing.
            weighed = seen * (areas / counts).sum(1)[:, None]
            ridge = self.log_penalty.exp() * torch.eye(seen.shape[1], dtype=seen.dtype, device=seen.device)
            weights = torch.linalg.solve(weighed.T @ seen + ridge, seen.T @ (areas / counts))

        def decide(query: Tensor) -> Tensor:
            with torch.autocast(query.device.type, enabled=False):
                logits = self.log_scale.exp() * torch.einsum("schw,ca->sahw", self._seen(query), weights)
                return torch.cat([logits[:, :1] + self.ground, logits[:, 1:]], 1)

        return decide

    def _seen(self, features: Tensor) -> Tensor:
        """Features (samples, channels, height, width) and a constant beside them."""
        features = features.to(self.log_scale.dtype)
        features = F.normalize(features, dim=1) if self.unit else features
        return torch.cat([features, torch.ones_like(features[:, :1])], 1)
