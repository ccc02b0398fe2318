"""How good a learner is on frozen episodes: what each of them says, and what all of them say together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline import ranks
from pipeline.episode import Episode
from pipeline.learners.learner import Learner, Mode
from pipeline.tasks.task import Pooled, Task


class Score(NamedTuple):
    """Mean over episodes and half the width of its 95 % interval, 1.96 · sd / √n."""

    mean: float
    interval: float
    episodes: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ± {100 * self.interval:.2f} %"


def shown(metric: str, value: float, *, unit: bool = True) -> str:
    """A figure as people read it: accuracies and their like are shares, told in %; a loss is in nats."""
    return f"{value:.2f}" if metric == "loss" else f"{100 * value:.2f}" + (" %" if unit else "")


def ranged(metric: str, found: Mapping[str, float]) -> str:
    """A figure, told as `mean` and (or not) `interval`, as people read it."""
    if "interval" not in found:
        return shown(metric, found["mean"])
    return f"{shown(metric, found['mean'], unit=False)} ± {shown(metric, found['interval'])}"


def score(values: Sequence[float]) -> Score:
    """The score of one value per episode, at least two."""
    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Score(mean, 1.96 * deviation / math.sqrt(n), n)


def worst_decile(values: Sequence[float]) -> float:
    """The mean of the lowest tenth of one value per episode, rounded up to whole episodes."""
    lowest = sorted(values)[: math.ceil(len(values) / 10)]
    return math.fsum(lowest) / len(lowest)


def judge(learner: Learner, episode: Episode, *, mode: Mode) -> dict[str, float]:
    """The task's metrics of one episode, its headline among them, after adapting on its support; all that validation needs."""
    task, predictor = learner.task, learner.adapt(episode.support, episode.ways, mode=mode)
    answers = predictor(episode.query.inputs), episode.query.targets
    metrics = task.metrics(*answers) | {task.headline: task.verdict(*answers)}
    return {name: value.item() for name, value in metrics.items()}


class Judgement(NamedTuple):
    """What an evaluation learns from one episode: metrics of it alone, the task's tally, which adds up over episodes, and its
    counts, from which curves are drawn."""

    metrics: dict[str, float]
    tally: Tensor
    counts: Tensor = torch.zeros(0, dtype=torch.float64)


def examine(learner: Learner, episode: Episode, *, mode: Mode, by_shots: bool = False) -> Judgement:
    """All that there is to say of one episode after adapting on its support; `by_shots`: also of its classes with many, with some
    and with few support samples apart, which the task must know to tell."""
    task, predictor = learner.task, learner.adapt(episode.support, episode.ways, mode=mode)
    answers = predictor(episode.query.inputs), episode.query.targets
    metrics = {**task.metrics(*answers), **task.details(*answers)}
    if by_shots:
        metrics |= task.by_shots(*answers, torch.bincount(episode.support.targets, minlength=episode.ways))
    told = {name: value.item() for name, value in metrics.items()}
    return Judgement(told, task.tally(*answers), task.counts(*answers))


def pooled(task: Task, judgements: Sequence[Judgement], classes: Sequence[Sequence[int]]) -> dict[str, Pooled]:
    """The metrics that only all episodes together have: the task's own, and its headline in the worst tenth of them.

    `classes` are those of the data set that each episode is about.
    """
    tallies = torch.stack([judgement.tally for judgement in judgements])
    worst = worst_decile([judgement.metrics[task.headline] for judgement in judgements])
    return {**task.pooled(tallies, classes), "worst_decile": Pooled(worst)}


Place = Callable[[Episode], Episode]
"""Brings an episode to the learner's device and floating type."""


def judged(
    learner: Learner,
    episodes: Iterable[tuple[int, Episode]],
    *,
    modes: Sequence[Mode],
    place: Place,
    by_shots: bool = False,
) -> Iterator[tuple[int, dict[Mode, Judgement]]]:
    """Yield (number, judgement by mode) for each (number, episode); `by_shots` as in `examine`."""
    for number, episode in episodes:
        here = place(episode)
        yield number, {mode: examine(learner, here, mode=mode, by_shots=by_shots) for mode in modes}


def shared_score(own: Iterable[tuple[int, float]], episodes: int, device: torch.device) -> Score:
    """The score over all ranks, each giving the (number, value) of its own episodes; equal on every rank."""
    # Every number is filled by one rank and zero on the others, so the sum is exact in any order.
    values = torch.zeros(episodes, dtype=torch.float64, device=device)
    for number, value in own:
        values[number] = value
    return score(ranks.add(values).tolist())
