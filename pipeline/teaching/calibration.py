"""How sure an adapted learner may be, and when it should say that it does not know: from its support set alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.adaptation import folds
from pipeline.teaching.assembled import Assembled
from pipeline.teaching.support import Support, without

LEFT_OUT = 10
"""Samples of a class that are left out in turn, and classes that are, at most."""
TEMPERATURES = torch.logspace(-2, 2, 81, dtype=torch.float64)
WIDTH = math.log(3.0)
"""Standard deviation of the log temperature that is believed in before anything was seen: a few samples move it little."""
STRICT = 0.05
"""Share of the known samples that may be taken for unknown, where no class can be left out to learn of strangers."""


class Calibration(NamedTuple):
    """What samples that were left out say.

    temperature: what scores are divided by before they become probabilities (Guo et al. 2017, section 4.2).
    threshold: a query whose likeness is below it is unknown; none: nothing is known of that.
    accuracy: share of the samples left out that were told rightly; none: none could be left out.
    samples: how many these were; copies: whether they were only turned and moved copies of what was learned from.
    """

    temperature: float = 1.0
    threshold: float | None = None
    accuracy: float | None = None
    samples: int = 0
    copies: bool = False


def likeness(scores: Tensor) -> Tensor:
    """How much a query is like anything known (queries,), from its scores (queries, ways): the largest one (Vaze et al. 2022,
    "Open-Set Recognition: A Good Closed-Set Classifier is All You Need?", maximum logit score)."""
    return scores.amax(1)


def calibrated(learner: Assembled, support: Support) -> Calibration:
    """Leave samples out in turn and see how sure the learner was of them; leave classes out and see how they look to it."""
    if learner.config.task.kind not in ("classification", "verification") or support.ways < 2:
        return Calibration()
    told = list(_left_out(learner, support))
    if not told:
        return Calibration()
    scores, targets = (torch.cat(values) for values in zip(*told, strict=True))
    known, strangers = likeness(scores), _strangers(learner, support)
    is_alone = bool((torch.bincount(support.targets, minlength=support.ways) == 1).all())
    return Calibration(
        temperature(scores, targets),
        threshold(known, strangers),
        (scores.argmax(1) == targets).double().mean().item(),
        len(scores),
        is_alone,
    )


def _left_out(learner: Assembled, support: Support) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores (samples, ways) and targets of samples left out, in float64 on the CPU."""
    for kept, left in folds(support.batch, support.ways, most=LEFT_OUT):
        yield learner.adapt(kept, support.ways)(left.inputs).double().cpu(), left.targets.cpu()


def _strangers(learner: Assembled, support: Support) -> Tensor:
    """The likeness of samples whose class the learner was not told of, (samples,)."""
    if support.ways < 3:
        return torch.zeros(0, dtype=torch.float64)
    every = max(1, math.ceil(support.ways / LEFT_OUT))
    found = []
    for way in range(0, support.ways, every):
        others = without(support, way)
        predictor = learner.adapt(others.batch, others.ways)
        found.append(likeness(predictor(support.inputs[support.targets == way]).double().cpu()))
    return torch.cat(found)


def temperature(scores: Tensor, targets: Tensor) -> float:
    """The temperature of the highest posterior: likelihood of the targets times a log-normal around 1."""
    losses = F.cross_entropy(
        (scores / TEMPERATURES[:, None, None]).flatten(0, 1), targets.repeat(len(TEMPERATURES)), reduction="none"
    )
    total = losses.view(len(TEMPERATURES), -1).sum(1) + (TEMPERATURES.log() / WIDTH) ** 2 / 2
    return TEMPERATURES[total.argmin()].item()


def threshold(known: Tensor, strangers: Tensor) -> float:
    """The likeness that parts (known,) from (strangers,) with the least error, shares of both kinds added."""
    if not len(strangers):
        return known.quantile(STRICT).item()
    values = torch.cat([known, strangers]).unique()
    cuts = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    wrong = (known < cuts[:, None]).double().mean(1) + (strangers >= cuts[:, None]).double().mean(1)
    # Of equally good ones the lowest: what was shown should be known.
    return cuts[wrong.argmin()].item()
