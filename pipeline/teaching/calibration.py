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
from pipeline.teaching.support import Support

LEFT_OUT = 10
"""Samples of a class that are left out in turn, at most."""
TEMPERATURES = torch.logspace(-2, 2, 81, dtype=torch.float64)
WIDTH = math.log(3.0)
"""Standard deviation of the log temperature that is believed in before anything was seen: a few samples move it little."""
ALIKE = 0.75
"""Quantile of how like strangers are, above which a query is known where every class has one sample and nothing says how like
a class is to itself: it errs about as often to either side (docs/results.md)."""


class Calibration(NamedTuple):
    """What samples that were left out say.

    temperature: what scores are divided by before they become probabilities (Guo et al. 2017, section 4.2).
    threshold: a query whose likeness is below it is unknown; none: nothing is known of that.
    errors: share of the support's samples that it refuses plus share of those that it takes for known as strangers, 0…2; none:
        every class has one sample.
    accuracy: share of the samples left out that were told rightly; none: none could be left out.
    samples: how many these were; copies: whether they were only turned and moved copies of what was learned from.
    """

    temperature: float = 1.0
    threshold: float | None = None
    errors: float | None = None
    accuracy: float | None = None
    samples: int = 0
    copies: bool = False


def calibrated(learner: Assembled, support: Support, features: Tensor) -> Calibration:
    """Leave samples out in turn and see how sure the learner was of them, and how like they are to what is left.

    `features` are those of the support's samples, of length one (samples, features).
    """
    if learner.config.task.kind not in ("classification", "verification") or support.ways < 2:
        return Calibration()
    least, errors = threshold(features.double().cpu(), support.targets.cpu())
    told = list(_left_out(learner, support))
    if not told:
        return Calibration(1.0, least, errors)
    scores, targets = (torch.cat(values) for values in zip(*told, strict=True))
    accuracy = (scores.argmax(1) == targets).double().mean().item()
    if bool((torch.bincount(support.targets) == 1).all()):
        # Copies are easier than new images, and would make it far too sure.
        return Calibration(1.0, least, errors, accuracy, len(scores), copies=True)
    return Calibration(temperature(scores, targets), least, errors, accuracy, len(scores))


def _left_out(learner: Assembled, support: Support) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores (samples, ways) and targets of samples left out, in float64 on the CPU."""
    for kept, left in folds(support.batch, support.ways, most=LEFT_OUT):
        yield learner.adapt(kept, support.ways)(left.inputs).double().cpu(), left.targets.cpu()


def temperature(scores: Tensor, targets: Tensor) -> float:
    """The temperature of the highest posterior: likelihood of the targets times a log-normal around 1."""
    # One after another: of thousands of classes all at once would not fit.
    losses = torch.stack([F.cross_entropy(scores / heat, targets, reduction="sum") for heat in TEMPERATURES])
    return TEMPERATURES[(losses + (TEMPERATURES.log() / WIDTH) ** 2 / 2).argmin()].item()


def threshold(features: Tensor, targets: Tensor) -> tuple[float, float | None]:
    """The likeness that best parts what is known from strangers, errors of both kinds counted as shares, and their sum.

    A sample of the support (samples, features) is known while the others of its class are there, and a stranger when its whole
    class is left out; where no class has two samples, only the latter is to be had.
    """
    cosines = (features @ features.T).fill_diagonal_(-torch.inf)
    own = targets[:, None] == targets[None, :]
    strangers = cosines.masked_fill(own, -torch.inf).amax(1)
    known = cosines.amax(1)[own.sum(1) > 1]
    return parting(known, strangers) if len(known) else (strangers.quantile(ALIKE).item(), None)


def parting(known: Tensor, strangers: Tensor) -> tuple[float, float]:
    """The value that parts (known,) from smaller (strangers,) with the least error, the share of either kind added; and that."""
    values = torch.cat([known, strangers]).unique()
    cuts = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    below = [torch.searchsorted(each.sort().values, cuts).double() / len(each) for each in (known, strangers)]
    wrong = below[0] + 1 - below[1]
    # Of equally good ones the lowest: what was shown should be known.
    return cuts[wrong.argmin()].item(), wrong.min().item()
