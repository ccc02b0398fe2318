"""What learners share that decide from features alone: support and query embedded alike, norm statistics, the two modes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.episode import Batch, Episode, Outcome, Statistics
from pipeline.learners.learner import Learner, Mode, Predictor
from pipeline.models.norm import Given, Normalise, Recorded, Running, by_batch
from pipeline.tasks.task import Task
from pipeline.tensor_noise import Chance

Decide = Callable[[Tensor], Tensor]
"""Features of queries (samples, …) -> predictions (samples, ways)."""
Embed = Callable[[Tensor, Normalise], Tensor]
"""Inputs (samples, …) and how to normalise -> features (samples, …)."""


class EmbeddingLearner(Learner, ABC):
    """No gradient step is taken inside an episode; what is its own is how features of the support decide on others.

    Trained with the batch statistics of support and query together; inductive predictions use running averages of them.
    `parts` are modules beside the model whose norm layers take part in that.
    """

    def __init__(self, model: nn.Module, task: Task, *parts: nn.Module):
        super().__init__()
        self.model, self.task = model, task
        self.running = Running(nn.ModuleList([model, *parts]))

    def embed(self, support: Batch) -> Embed:
        """What makes features in an episode with this support: the model as it is, unless a learner changes it."""
        return self.model

    @abstractmethod
    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        """What the support's features (samples, …) and labels (samples,) say about queries."""

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """A scalar, mean over the queries; the task's, unless a paper has its own."""
        return self.task.loss(predictions, targets)

    def outcome(self, episode: Episode) -> Outcome:
        support, query, ways, key = episode
        recorded = Recorded(chance=Chance(key))
        predictions = self._together(support, query.inputs, ways, recorded)
        loss = self.loss(predictions, query.targets)
        return Outcome(loss, self.task.metrics(predictions, query.targets), recorded.statistics)

    @torch.no_grad()
    def adapt(self, support: Batch, ways: int, *, mode: Mode) -> Predictor:
        if mode is Mode.TRANSDUCTIVE:
            return torch.no_grad()(lambda inputs: self._together(support, inputs, ways, by_batch))
        normalise = Given(self.running.statistics())
        embed = self.embed(support)
        decide = self.learn(embed(support.inputs, normalise), support.targets, ways, normalise)
        return torch.no_grad()(lambda inputs: decide(embed(inputs, normalise)))

    def _together(self, support: Batch, inputs: Tensor, ways: int, normalise: Normalise) -> Tensor:
        known, asked = self._embedded(support, inputs, normalise)
        return self.learn(known, support.targets, ways, normalise)(asked)

    def _embedded(self, support: Batch, inputs: Tensor, normalise: Normalise) -> tuple[Tensor, Tensor]:
        """Features of the support and of the inputs, from one pass over both."""
        features = self.embed(support)(torch.cat([support.inputs, inputs]), normalise)
        return features[: len(support.inputs)], features[len(support.inputs) :]

    def absorb(self, statistics: Statistics) -> None:
        self.running.absorb(statistics)
