"""The questions that a vision task answers: members, head, loss, metrics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.episode import Metrics


class Pooled(NamedTuple):
    """A figure that only all episodes together have, and half the width of its 95 % interval where that is known."""

    mean: float
    interval: float | None = None


class Task(ABC):
    """What an episode is about, apart from how it is learned."""

    members: tuple[str, ...]
    """Which members of a sample are read, beside its class."""
    headline: str
    """The metric by which models are chosen; more is better."""
    per_way: tuple[str, ...] = ("weight", "bias")
    """Parameters of a head, other than a cosine head, that have an output for each way: a fresh head starts these anew."""

    @abstractmethod
    def head(self, features: int, ways: int) -> nn.Module:
        """A head from (samples, features) to predictions."""

    def outputs(self, ways: int) -> int:
        """How many outputs what `per_way` names has for so many classes."""
        return ways

    @abstractmethod
    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """A scalar, mean over the samples."""

    @abstractmethod
    def metrics(self, predictions: Tensor, targets: Tensor) -> Metrics:
        """Scalars by name, means over the samples, without gradient; asked in training too, inside `torch.func.vmap`."""

    def verdict(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The headline of an episode, asked where episodes are judged one by one."""
        return self.metrics(predictions, targets)[self.headline]

    def details(self, predictions: Tensor, targets: Tensor) -> Metrics:
        """More scalars of one episode by name, which evaluations alone ask for."""
        return {}

    def by_shots(self, predictions: Tensor, targets: Tensor, shots: Tensor) -> Metrics:
        """More scalars of one episode by name, of its classes by how many support samples (ways,) each of them had."""
        return {}

    def tally(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Sums over the samples of an episode, in float64 on the CPU, of which `pooled` takes those of all episodes."""
        return torch.zeros(0, dtype=torch.float64)

    def pooled(self, tallies: Tensor, classes: Sequence[Sequence[int]]) -> dict[str, Pooled]:
        """Metrics by name of all samples of all episodes together, from their tallies (episodes, …) and the data set's classes
        that each episode is about; the means do not depend on the episodes' order."""
        return {}

    def counts(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Sums over the samples of an episode, in float64 on the CPU, which no metric needs but what is drawn at the end."""
        return torch.zeros(0, dtype=torch.float64)

    def by_class(self, tallies: Tensor, classes: Sequence[Sequence[int]]) -> dict[int, Pooled]:
        """The task's figure of every class of the data set by its number, for tasks that report a mean over these; with an
        interval for classes of two episodes or more."""
        return {}


RESAMPLES = 1000
"""Of a bootstrap over episodes."""


def resamples(episodes: int, count: int = RESAMPLES) -> Tensor:
    """How often each of the episodes counts, (1 + count, episodes) float64: once, and then in every resample of a bootstrap
    (Efron 1979), the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(episodes, (count, episodes), generator=generator)
    drawn = torch.stack([torch.bincount(pick, minlength=episodes) for pick in picks]).double()
    return torch.cat([torch.ones(1, episodes, dtype=torch.float64), drawn])


def half_width(values: Tensor) -> float:
    """Half the middle 95 % of values (resamples,)."""
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return (high - low) / 2


def of_class(values: Tensor, episodes: int) -> Pooled:
    """The figure of a class that so many episodes are about, from those of all episodes and of resamples (1 + resamples,), which
    are nan where it was not drawn; one episode alone says nothing of an interval."""
    spread = values[1:][~values[1:].isnan()]
    return Pooled(values[0].item(), half_width(spread) if episodes > 1 else None)


def exact_sums(tallies: Tensor) -> Tensor:
    """The sum over episodes, (episodes, …) -> (…) in float64, rounded once: it does not depend on their order."""
    sums = [math.fsum(column) for column in tallies.flatten(1).T.tolist()]
    return torch.tensor(sums, dtype=torch.float64).reshape(tallies.shape[1:])
