"""Learners that classify by distance in a learned embedding."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from pipeline.episode import Batch, Episode, Outcome, Statistics
from pipeline.learners.learner import Learner, Mode, Predictor
from pipeline.models.norm import Given, Recorded, Running, by_batch
from pipeline.tasks.task import Task


def class_means(features: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Mean feature of every class: (samples, features), (samples,) -> (ways, features)."""
    # A matrix product instead of index_add: the same sum in one order on every device, and vmap-friendly.
    members = (labels[None, :] == torch.arange(ways, device=labels.device)[:, None]).to(features.dtype)
    return members @ features / members.sum(1, keepdim=True)


def squared_distance(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Squared Euclidean distances: (samples, features), (ways, features) -> (samples, ways)."""
    return (queries[:, None, :] - prototypes[None, :, :]).square().sum(-1)


@final
class PrototypeLearner(Learner):
    """Prototypical networks: the nearest class mean in squared Euclidean distance (Snell et al. 2017, equations 1 and 2).

    Trained with the batch statistics of support and query together; inductive predictions use running averages of them.
    """

    def __init__(self, model: nn.Module, task: Task):
        super().__init__()
        self.model, self.task = model, task
        self.running = Running(model)

    def outcome(self, episode: Episode) -> Outcome:
        support, query, ways = episode
        recorded = Recorded()
        features = self.model(torch.cat([support.inputs, query.inputs]), recorded)
        prototypes = class_means(features[: len(support.inputs)], support.targets, ways)
        logits = -squared_distance(features[len(support.inputs) :], prototypes)
        loss = self.task.loss(logits, query.targets)
        return Outcome(loss, self.task.metrics(logits, query.targets), recorded.statistics)

    @torch.no_grad()
    def adapt(self, support: Batch, ways: int, *, mode: Mode) -> Predictor:
        if mode is Mode.TRANSDUCTIVE:
            return self._transductive(support, ways)
        normalise = Given(self.running.statistics())
        prototypes = class_means(self.model(support.inputs, normalise), support.targets, ways)
        return torch.no_grad()(lambda inputs: -squared_distance(self.model(inputs, normalise), prototypes))

    def _transductive(self, support: Batch, ways: int) -> Predictor:
        @torch.no_grad()
        def predict(inputs: Tensor) -> Tensor:
            features = self.model(torch.cat([support.inputs, inputs]), by_batch)
            prototypes = class_means(features[: len(support.inputs)], support.targets, ways)
            return -squared_distance(features[len(support.inputs) :], prototypes)

        return predict

    def absorb(self, statistics: Statistics) -> None:
        self.running.absorb(statistics)
