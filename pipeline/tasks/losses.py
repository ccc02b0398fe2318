"""Losses of classification, for support sets that are balanced and for those that are not.

Each takes logits (samples, ways) and class numbers (samples,) and gives a scalar, the mean over the samples. None branches on
values, and all can be differentiated twice inside `torch.func.vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits, targets) -> scalar."""


def memberships(labels: Tensor, ways: int, dtype: torch.dtype) -> Tensor:
    """One-hot labels: (samples,) -> (samples, ways); `F.one_hot` looks at values, which `vmap` cannot."""
    return (labels[:, None] == torch.arange(ways, device=labels.device)).to(dtype)


def cross_entropy(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats with the labels (1 − ε) · one-hot + ε / ways (Szegedy et al. 2016, section 7)."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def focal(logits: Tensor, targets: Tensor, *, gamma: float) -> Tensor:
    """−(1 − p)ᵞ log p, p being the softmax of the true class (Lin et al. 2017, equation 4): what is sure counts less."""
    # log(1 − p) from the other classes' logits: a power of 1 − p has no finite slope where p rounds to one.
    true = memberships(targets, logits.shape[-1], torch.bool)
    others = torch.where(true, -math.inf, logits).logsumexp(-1) - logits.logsumexp(-1)
    return (torch.exp(gamma * others) * F.cross_entropy(logits, targets, reduction="none")).mean()


def class_balanced(logits: Tensor, targets: Tensor, *, beta: float) -> Tensor:
    """Cross-entropy weighted by (1 − β) / (1 − βⁿ), n being the samples of the true class (Cui et al. 2019, section 4).

    n is counted in `targets`, and the mean weight of the classes that are there is one. β = 0 is plain cross-entropy; near
    one, every class counts alike, however many samples it has.
    """
    members = memberships(targets, logits.shape[-1], logits.dtype)
    counts = members.sum(0)
    # expm1: in float32 little would be left of 1 − βⁿ for β near one.
    effective = -torch.expm1(counts.clamp(min=1) * (math.log(beta) if beta else -math.inf))
    weights = (counts > 0) / effective
    weights = weights * (counts > 0).sum() / weights.sum()
    return ((members @ weights) * F.cross_entropy(logits, targets, reduction="none")).mean()


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of the logits, without softmax, to one-hot labels, mean over the ways (Hui and Belkin 2021)."""
    return F.mse_loss(logits, memberships(targets, logits.shape[-1], logits.dtype))
