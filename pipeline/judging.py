"""How good a learner is on frozen episodes: each episode's metrics, their mean, its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from pipeline import ranks
from pipeline.episode import Episode
from pipeline.learners.learner import Learner, Mode


class Score(NamedTuple):
    """Mean over episodes and half the width of its 95 % interval, 1.96 · sd / √n."""

    mean: float
    interval: float
    episodes: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ± {100 * self.interval:.2f} %"


def score(values: Sequence[float]) -> Score:
    """The score of one value per episode, at least two."""
    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Score(mean, 1.96 * deviation / math.sqrt(n), n)


def judge(learner: Learner, episode: Episode, *, mode: Mode) -> dict[str, float]:
    """The task's metrics of one episode after adapting on its support."""
    predictor = learner.adapt(episode.support, episode.ways, mode=mode)
    metrics = learner.task.metrics(predictor(episode.query.inputs), episode.query.targets)
    return {name: value.item() for name, value in metrics.items()}


Place = Callable[[Episode], Episode]
"""Brings an episode to the learner's device and floating type."""


def judged(
    learner: Learner, episodes: Iterable[tuple[int, Episode]], *, modes: Sequence[Mode], place: Place
) -> Iterator[tuple[int, dict[Mode, dict[str, float]]]]:
    """Yield (number, metrics by mode) for each (number, episode)."""
    for number, episode in episodes:
        here = place(episode)
        yield number, {mode: judge(learner, here, mode=mode) for mode in modes}


def shared_score(own: Iterable[tuple[int, float]], episodes: int, device: torch.device) -> Score:
    """The score over all ranks, each giving the (number, value) of its own episodes; equal on every rank."""
    # Every number is filled by one rank and zero on the others, so the sum is exact in any order.
    values = torch.zeros(episodes, dtype=torch.float64, device=device)
    for number, value in own:
        values[number] = value
    return score(ranks.add(values).tolist())
