"""Losses of verification: of scores (samples, ways), a query's for every class, and class numbers (samples,).

None branches on values, and all can be differentiated twice inside `torch.func.vmap`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pipeline.tasks.losses import memberships


def margin(scores: Tensor, targets: Tensor, *, margin: float) -> Tensor:
    """Cross-entropy in which the true class's score is `margin` lower: it has to win by so much (Wang et al. 2018, "AM-Softmax",
    equation 6, whose s · m is this margin where a score is s times a cosine)."""
    true = memberships(targets, scores.shape[-1], scores.dtype)
    return F.cross_entropy(scores - margin * true, targets)


def pair_squares(scores: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of the similarity of a query and a class, the sigmoid of its score, to 1 or 0.

    Genuine and impostor pairs have half of the weight each: with many ways nearly all are impostors, and to call everybody one
    would do.
    """
    true = memberships(targets, scores.shape[-1], scores.dtype)
    squares = (scores.sigmoid() - true).square()
    return ((squares * true).sum() / true.sum() + (squares * (1 - true)).sum() / (1 - true).sum()) / 2
