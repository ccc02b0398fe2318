"""How many inner steps a gradient learner takes, and at what pace: chosen from a support set alone by leaving samples out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.episode import Batch
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.learner import Learner, Mode, Predictor

FOLDS = 3
"""Samples of a class that are left out in turn, at most."""
STEPS = (0, 1, 2, 5)
PACES = (1.0, 3.0, 10.0)
"""What is tried, beside the steps of the config: all of the one with all of the other."""
TURN, SHIFT = math.radians(8), 0.07
"""By how much copies of a lone sample are turned (radians) and moved (shares of the side)."""

MOST_LOSS = 20.0
"""Nats; a loss on samples left out counts as this much at most, also where steps have led out of all bounds."""

SURE = 2.0
"""Standard errors by which a gain on samples left out must exceed zero to be believed."""


class Settings(NamedTuple):
    """Inner steps, and what every update of the rule is multiplied by: 1 is as configured."""

    steps: int
    pace: float


class Held(NamedTuple):
    """How well samples that were left out are told: accuracy, and cross-entropy in nats."""

    accuracy: float
    loss: float


class Trial(NamedTuple):
    """Of every sample that was left out (samples,), in one order: whether it was told rightly, and its cross-entropy in nats."""

    hits: Tensor
    losses: Tensor

    @property
    def held(self) -> Held:
        return Held(self.hits.mean().item(), self.losses.mean().item())


def own_settings(learner: GradientLearner) -> Settings:
    """What the learner does unless told otherwise."""
    return Settings(learner.test_steps, 1.0)


def folds(support: Batch, ways: int, *, most: int = FOLDS) -> Iterator[tuple[Batch, Batch]]:
    """Pairs of what is learned from and what that is judged on.

    The n-th pair is without the n-th sample of every class that has others, for n up to `most`. Where all classes have one
    sample, the only pair judges on copies of all, turned and moved a little; of what has no height and width there are none.
    """
    inputs, targets = support
    counts, order = torch.bincount(targets, minlength=ways), targets.argsort(stable=True)
    # Which of its class's samples each one is.
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[targets[order]]
    count = min(most, int(counts.max()))
    if count > 1:
        for number in range(count):
            left = (place == number) & (counts[targets] > 1)
            yield Batch(inputs[~left], targets[~left]), Batch(inputs[left], targets[left])
    elif inputs.ndim >= 4 and min(inputs.shape[-2:]) >= 2:
        copies = _copies(inputs)
        yield support, Batch(copies, targets.repeat(len(copies) // len(targets)))


def _copies(images: Tensor) -> Tensor:
    """Every image (samples, channels, height, width) four times: turned either way, moved across and down; borders go on."""
    moves = [(TURN, 0.0, 0.0), (-TURN, 0.0, 0.0), (0.0, SHIFT, -SHIFT), (0.0, -SHIFT, SHIFT)]
    made = []
    for angle, across, down in moves:
        cos, sin = math.cos(angle), math.sin(angle)
        matrix = images.new_tensor([[cos, -sin, 2 * across], [sin, cos, 2 * down]]).expand(len(images), 2, 3)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        made.append(F.grid_sample(images, grid, padding_mode="border", align_corners=False))
    return torch.cat(made)


def held_out(learner: Learner, support: Batch, ways: int) -> Held | None:
    """How well the learner, as configured, tells samples of the support that it has not learned from; None where none can be
    left out."""
    told = [_judged(learner.adapt(kept, ways, mode=Mode.INDUCTIVE), left, ways) for kept, left in folds(support, ways)]
    return _together(told).held if told else None


def by_settings(learner: GradientLearner, support: Batch, ways: int) -> dict[Settings, Trial]:
    """What becomes of the samples left out, for every choice of settings, its own among them; empty where none can be."""
    own = own_settings(learner)
    wanted = {*STEPS, own.steps}
    told: dict[Settings, list[Trial]] = {}
    for kept, left in folds(support, ways):
        for pace in PACES:
            walk = learner.predictors(kept, ways, mode=Mode.INDUCTIVE, steps=max(wanted), pace=pace)
            for steps, predictor in enumerate(walk):
                if steps in wanted:
                    told.setdefault(Settings(steps, pace), []).append(_judged(predictor, left, ways))
    return {settings: _together(own) for settings, own in told.items()}


def leave_one_out(learner: GradientLearner, support: Batch, ways: int) -> Settings:
    """The settings by which samples left out are told with the least loss; its own where that is not surely better, or none can
    be."""
    return best(by_settings(learner, support, ways), own_settings(learner))


def best(told: dict[Settings, Trial], own: Settings) -> Settings:
    """The settings of the least loss; `own` where the gain is below `SURE` standard errors of itself, or nothing was tried."""
    if own not in told:
        return own
    least = min(told, key=lambda settings: told[settings].held.loss)
    gains = told[own].losses - told[least].losses
    error = gains.std() / math.sqrt(len(gains))
    return least if gains.mean() > SURE * error else own


def adapted(learner: GradientLearner, support: Batch, ways: int, settings: Settings) -> Predictor:
    """What the learner predicts after adapting with these settings."""
    walk: Iterator[Predictor] = learner.predictors(
        support, ways, mode=Mode.INDUCTIVE, steps=settings.steps, pace=settings.pace
    )
    *_, last = walk
    return last


def _judged(predictor: Predictor, left: Batch, ways: int) -> Trial:
    # A head may have more outputs than the support has classes.
    predictions = predictor(left.inputs)[:, :ways]
    losses = F.cross_entropy(predictions.double(), left.targets, reduction="none")
    hits = (predictions.argmax(1) == left.targets).double()
    return Trial(hits, losses.nan_to_num(MOST_LOSS, MOST_LOSS).clamp(max=MOST_LOSS))


def _together(told: list[Trial]) -> Trial:
    return Trial(*(torch.cat(values) for values in zip(*told, strict=True)))
