"""Supervised training on the classes of the training split: the baseline that knows no episodes."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from pipeline.episode import Episode, Outcome
from pipeline.learners.embedding import Decide, EmbeddingLearner
from pipeline.learners.metric import class_means, imprinted, squared_distance
from pipeline.models.heads import CosineLinear, cosine_logits, directions
from pipeline.models.norm import Given, Normalise, Recorded
from pipeline.tasks.task import Task
from pipeline.tensor_noise import Chance


@final
class SupervisedLearner(EmbeddingLearner):
    """A classifier of the base classes; new classes go to the nearest centroid of its features.

    In training an episode is a part of a mini-batch: its query is labelled by base class, its support is not looked at. On
    new classes the head is left out. Under a linear one the centroids are those of SimpleShot, "L2N": squared distances
    between features of length one (Wang et al. 2019). Under a cosine one they are its imprinted weights: cosines
    times the learned scale (Qi et al. 2018).
    """

    def __init__(self, model: nn.Module, task: Task, head: nn.Module):
        super().__init__(model, task)
        self.head = head

    def outcome(self, episode: Episode) -> Outcome:
        images, labels = episode.query
        recorded = Recorded(chance=Chance(episode.key))
        predictions = self.head(self.model(images, recorded))
        return Outcome(self.loss(predictions, labels), self.task.metrics(predictions, labels), recorded.statistics)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Logits of the base classes, by the running norm statistics: (samples, …) -> (samples, classes)."""
        return self.head(self.model(images, Given(self.running.statistics())))

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        if isinstance(self.head, CosineLinear):
            weight, scale = imprinted(support, labels, ways), self.head.scale
            return lambda query: cosine_logits(query, weight, scale)
        centroids = class_means(directions(support), labels, ways)
        return lambda query: -squared_distance(directions(query), centroids)
