"""The learner that finds objects by likeness in a learned embedding."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.learners.dense import area_means
from pipeline.learners.embedding import Decide, EmbeddingLearner
from pipeline.models.norm import Normalise
from pipeline.tasks.box_maps import wanted
from pipeline.tasks.detection import SIDES, outputs_of
from pipeline.tasks.task import Task

SCALE = 10.0
"""Where the learned scale of the cosines starts."""


@final
class PrototypeDetector(EmbeddingLearner):
    """A dense detector whose classes are the mean embeddings of the support's objects (RepMet starts from such means of
    regions; Karlinsky et al. 2019, section 3).

    The score of class w at a cell is o − s · (1 − cos(e, p_w)): e is the cell's embedding, a linear map of its features; p_w
    the mean of those of the support at the centres of its objects, weighted by the objects' Gaussians; o says how much the
    cell looks like the centre of any object, which is the ground's share in the score. o and the sides of the box are told
    by one head for all classes, which an episode does not change (the class-agnostic half of TFA; Wang et al. 2020, section
    3.2).
    """

    def __init__(self, model: nn.Module, task: Task, *, features: int):
        super().__init__(model, task)
        self.embedding = nn.Conv2d(features, features, 1, bias=False)
        self.objects = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1), nn.ReLU(), nn.Conv2d(features, 1 + SIDES, 1)
        )
        self.scale = nn.Parameter(torch.tensor(SCALE))

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        heat = wanted(labels.to(support.dtype), ways, *support.shape[2:]).heat
        prototypes = F.normalize(area_means(F.normalize(self.embedding(support), dim=1), heat), dim=1)

        def decide(query: Tensor) -> Tensor:
            cosines = torch.einsum("schw,nc->snhw", F.normalize(self.embedding(query), dim=1), prototypes)
            told = self.objects(query)
            return outputs_of(told[:, :1] + self.scale * (cosines - 1), told[:, 1:])

        return decide
