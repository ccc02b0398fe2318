"""Whether two images show one class: by the cosine of their features, against a threshold from the pairs of a support set."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.calibration import parting

KINDS = ("classification", "verification")


class Compared(NamedTuple):
    """Two images: whether they show one class, how alike they are (a cosine), and from where on that is one class."""

    same: bool
    likeness: float
    threshold: float


def pair_threshold(features: Tensor, targets: Tensor) -> float | None:
    """The cosine that parts every two samples of one class from those of two with the least error, shares of both kinds added:
    the best balanced accuracy. Features are of length one (samples, dim), targets are ways (samples,).

    None where no class has two samples, or there is one class: nobody knows then how alike those of one are, or of two.
    """
    one, other = torch.triu_indices(len(targets), len(targets), 1)
    likes, same = (features @ features.T).double().cpu()[one, other], (targets[one] == targets[other]).cpu()
    return parting(likes[same], likes[~same])[0] if same.any() and not same.all() else None


def threshold_of(model: Adapted) -> float | None:
    """As `pair_threshold`, of the samples that a model was taught by.

    Raises:
        InputError: its task has no classes of whole images.
    """
    if (kind := model.learner.config.task.kind) not in KINDS:
        raise InputError(
            f"task.kind = {kind}: pairs are compared by models of {' and '.join(KINDS)}; adapt one of those"
        )
    return pair_threshold(model.known, model.support.targets)


def compared(one: Tensor, other: Tensor, *, least: float) -> list[Compared]:
    """What is said of pairs from the features of both (pairs, dim), `least` being the threshold."""
    likes = (one * other).sum(1).double().tolist()
    return [Compared(like >= least, like, least) for like in likes]
