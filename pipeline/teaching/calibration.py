"""How sure an adapted learner may be, and when it should say that it does not know: from its support set alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import build_task
from pipeline.adaptation import folds
from pipeline.episode import Batch
from pipeline.tasks.detection import surest
from pipeline.teaching.assembled import Assembled
from pipeline.teaching.support import Support

LEFT_OUT = 10
"""Samples of a class that are left out in turn, at most."""
ENOUGH = 200
"""Samples left out from which on no more are: by then accuracy is known to seven points at the worst, and others cost as much."""
IMAGES = 5
"""Images that are left out in turn, at most, where they have masks or boxes: each costs an adaptation of a large model."""
MEASURES = {"classification": "accuracy", "verification": "accuracy", "segmentation": "mean IoU", "detection": "AP50"}
"""What `Calibration.accuracy` is, by task: a share of samples, or a mean over classes."""
TEMPERATURES = torch.logspace(-2, 2, 81, dtype=torch.float64)
SURE = 0.3
"""Score from which on an object is told, of a class of which what was left out does not say another."""
BETTER = 0.3
"""F1 by which another score must be better on what was left out: few objects choose badly (docs/results.md)."""
WIDTH = math.log(3.0)
"""Standard deviation of the log temperature that is believed in before anything was seen: a few samples move it little."""
ROWS = 1024
"""Samples that are compared with all others at a time."""
ALIKE = 0.75
"""Quantile of how like strangers are, above which a query is known where every class has one sample and nothing says how like
a class is to itself: it errs about as often to either side (docs/results.md)."""


class Calibration(NamedTuple):
    """What samples that were left out say.

    temperature: what scores are divided by before they become probabilities (Guo et al. 2017, section 4.2).
    threshold: a query whose likeness is below it is unknown; none: nothing is known of that.
    errors: share of the support's samples that it refuses plus share of those that it takes for known as strangers, 0…2; none:
        every class has one sample.
    accuracy: how right it was of samples left out, 0…1, by the measure of the task (`MEASURES`); none: none could be left out.
    samples: how many these were; copies: whether they were only turned and moved copies of what was learned from.
    scores: of detection, by way: the score from which on an object is told; none: nothing could be left out.
    """

    temperature: float = 1.0
    threshold: float | None = None
    errors: float | None = None
    accuracy: float | None = None
    samples: int = 0
    copies: bool = False
    scores: list[float] | None = None


def calibrated(learner: Assembled, support: Support, features: Tensor) -> Calibration:
    """Leave samples out in turn and see how sure the learner was of them, and how like they are to what is left.

    `features` are those of the support's samples, of length one (samples, features).
    """
    if learner.config.task.kind in ("segmentation", "detection"):
        return _of_images(learner, support)
    if support.ways < 2:
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


def _of_images(learner: Assembled, support: Support) -> Calibration:
    """Masks or boxes of images left out one by one, those whose classes others show too; judged together, class by class."""
    members = support.members().cpu()
    is_shown_again = (members & (members.sum(0) == 1)).sum(1) == 0
    able = (is_shown_again & members.any(1)).nonzero()[:, 0].tolist()
    if not able:
        return Calibration()
    count = min(IMAGES, len(able))
    lefts, told = [able[number * len(able) // count] for number in range(count)], []
    for number in lefts:
        kept = torch.arange(len(members)) != number
        predictor = learner.adapt(Batch(support.inputs[kept], support.targets[kept]), support.ways)
        told.append(predictor(support.inputs[~kept]).double().cpu())
    task, scores, targets = build_task.task(learner.config), torch.cat(told), support.targets[lefts].cpu()
    figures = task.by_class(task.tally(scores, targets)[None], [range(support.ways)])
    own = [figures[way].mean for way in members[lefts].any(0).nonzero()[:, 0].tolist()]
    is_boxes = learner.config.task.kind == "detection"
    sure = surest(scores, targets, otherwise=SURE, margin=BETTER) if is_boxes else None
    return Calibration(accuracy=sum(own) / len(own), samples=len(lefts), scores=sure)


def _left_out(learner: Assembled, support: Support) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores (samples, ways) and targets of samples left out, in float64 on the CPU."""
    count = 0
    for kept, left in folds(support.batch, support.ways, most=LEFT_OUT):
        yield learner.adapt(kept, support.ways)(left.inputs).double().cpu(), left.targets.cpu()
        if (count := count + len(left.targets)) >= ENOUGH:
            return


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
    known, strangers = [], []
    # Of thousands of samples all pairs at once would not fit.
    for some in torch.arange(len(features), device=features.device).split(ROWS):
        cosines = features[some] @ features.T
        own = targets[some, None] == targets
        strangers.append(cosines.masked_fill(own, -torch.inf).amax(1))
        cosines[torch.arange(len(some)), some] = -torch.inf
        known.append(cosines.amax(1)[own.sum(1) > 1])
    likes, alien = torch.cat(known), torch.cat(strangers)
    return parting(likes, alien) if len(likes) else (alien.quantile(ALIKE).item(), None)


def parting(known: Tensor, strangers: Tensor) -> tuple[float, float]:
    """The value that parts (known,) from smaller (strangers,) with the least error, the share of either kind added; and that."""
    values = torch.cat([known, strangers]).unique()
    cuts = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    below = [torch.searchsorted(each.sort().values, cuts).double() / len(each) for each in (known, strangers)]
    wrong = below[0] + 1 - below[1]
    # Of equally good ones the lowest: what was shown should be known.
    return cuts[wrong.argmin()].item(), wrong.min().item()
