"""How well scores tell genuine trials from impostors: the receiver operating characteristic and what is read from it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.tasks.task import Pooled, half_width

FARS = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3}
LEVELS, STEEPNESS = 1024, 1e4


class Curve(NamedTuple):
    """Shares of the impostor and of the genuine trials that are accepted (false and true acceptance rate), from none to all as
    the threshold falls: (…, points) float64 each."""

    far: Tensor
    tar: Tensor


class Trials(NamedTuple):
    """Scores (trials,) float64, more is more alike; which trials are genuine (trials,); and the number of the unit (an episode, a
    pair) that each belongs to, whose units are what an interval draws again."""

    scores: Tensor
    genuine: Tensor
    unit: Tensor


def curve(genuine: Tensor, impostor: Tensor) -> Curve:
    """The curve from the weights of genuine and impostor trials at every score, the highest first: (…, scores) each."""
    sums = (torch.nn.functional.pad(part.cumsum(-1), (1, 0)) for part in (impostor, genuine))
    return Curve(*(part / part[..., -1:] for part in sums))


def curve_of(trials: Trials) -> Curve:
    """The curve of trials, with a point for every score that occurs; equal scores are accepted together."""
    scores, places = torch.unique(-trials.scores, return_inverse=True)
    # From NaN, which is neither high nor low, follows nothing.
    unknown = torch.where(scores.isnan().any(), torch.nan, 1.0)
    genuine, impostor = (
        torch.bincount(places[part], minlength=len(scores)).double() for part in (trials.genuine, ~trials.genuine)
    )
    return curve(genuine * unknown, impostor * unknown)


def auc(curve: Curve) -> Tensor:
    """The area below the curve, (…): the chance that a genuine trial scores higher than an impostor, equal ones counting half."""
    return torch.trapezoid(curve.tar, curve.far)


def equal_error(curve: Curve) -> Tensor:
    """The rate at which as large a share of impostors is accepted as of genuine trials is not, (…), on straight lines between the
    points."""
    excess = curve.far + curve.tar - 1
    after = (excess >= 0).to(torch.uint8).argmax(-1, keepdim=True).clamp(min=1)
    (e0, e1), (f0, f1) = ((part.gather(-1, after - 1), part.gather(-1, after)) for part in (excess, curve.far))
    return (f0 - e0 / (e1 - e0) * (f1 - f0)).squeeze(-1)


def tar_at(curve: Curve, far: float) -> Tensor:
    """The largest share of genuine trials that is accepted by a threshold at which at most `far` of the impostors are, (…).

    With fewer impostors than 1 / far that is a threshold above all of them.
    """
    allowed = torch.where(curve.far <= far, curve.tar, 0).amax(-1)
    return torch.where(curve.far[..., -1].isnan(), torch.nan, allowed)


def figures(curve: Curve) -> dict[str, Tensor]:
    """AUC, equal error rate and true acceptance rate at false acceptance rates, (…) each."""
    rates = {f"tar_at_far_{name}": tar_at(curve, far) for name, far in FARS.items()}
    return {"auc": auc(curve), "eer": equal_error(curve), **rates}


def resampled(trials: Trials, weights: Tensor) -> Curve:
    """The curve of every resample, in which the units have these weights: (resamples, units) -> (resamples, points).

    Scores are rounded to a level each, finely where few impostors are accepted: a point more or less changes no interval.
    """
    levels = _levels(trials)
    cells = trials.unit * LEVELS + levels
    genuine, impostor = (
        weights @ torch.bincount(cells[part], minlength=weights.shape[1] * LEVELS).double().reshape(-1, LEVELS)
        for part in (trials.genuine, ~trials.genuine)
    )
    return curve(genuine, impostor)


def _levels(trials: Trials) -> Tensor:
    """The level of every trial, 0 for the highest scores: the share of impostors above, on a logarithmic scale.

    Of impostors with the same score half count as above, so that a genuine trial above all of them is not among the first.
    """
    impostors = trials.scores[~trials.genuine].sort().values
    low, high = (torch.searchsorted(impostors, trials.scores, right=right) for right in (False, True))
    above = 1 - (low + high).double() / (2 * len(impostors))
    place = torch.log1p(STEEPNESS * above) / math.log1p(STEEPNESS)
    return (place * LEVELS).long().clamp(max=LEVELS - 1)


def pooled(trials: Trials, weights: Tensor) -> dict[str, Pooled]:
    """All `figures`, each with the 95 % interval of a bootstrap that gives the units these weights (resamples, units)."""
    spread = figures(resampled(trials, weights))
    return {name: Pooled(value.item(), half_width(spread[name])) for name, value in figures(curve_of(trials)).items()}
