"""The questions that a vision task answers: members, head, loss, metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pipeline.episode import Metrics


class Task(ABC):
    """What an episode is about, apart from how it is learned."""

    members: tuple[str, ...]
    """Which members of a sample are read, beside its class."""
    headline: str
    """The metric by which models are chosen; more is better."""

    @abstractmethod
    def head(self, features: int, ways: int) -> nn.Module:
        """A head from (samples, features) to predictions."""

    @abstractmethod
    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """A scalar, mean over the samples."""

    @abstractmethod
    def metrics(self, predictions: Tensor, targets: Tensor) -> Metrics:
        """Scalars by name, means over the samples, without gradient; asked in training too, inside `torch.func.vmap`."""

    def details(self, predictions: Tensor, targets: Tensor) -> Metrics:
        """More scalars of one episode by name, which evaluations alone ask for."""
        return {}

    def tally(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Sums over the samples, in float64 on the CPU, that add up over episodes to what `pooled` takes."""
        return torch.zeros(0, dtype=torch.float64)

    def pooled(self, tally: Tensor) -> dict[str, float]:
        """Metrics by name of all samples of all episodes together, from the sum of their tallies."""
        return {}
