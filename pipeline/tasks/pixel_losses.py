"""Losses of segmentation: of logits (samples, outputs, height, width) and targets (samples, height, width).

Pixels whose target is 255 are not looked at. None branches on values, and all can be differentiated twice inside
`torch.func.vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits, targets) -> scalar."""


def shares(targets: Tensor, outputs: int) -> Tensor:
    """One-hot pixels: (samples, height, width) -> (samples, outputs, height, width), zero where the target is ignored."""
    names = torch.arange(outputs, device=targets.device)[:, None, None]
    return (targets[:, None] == names).float()


def _mean(values: Tensor, true: Tensor) -> Tensor:
    """The mean of values (samples, height, width) over the pixels that are looked at."""
    return values.sum() / true.sum().clamp(min=1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over the pixels, in nats."""
    true = shares(targets, logits.shape[1]).to(logits.dtype)
    return _mean(-(true * logits.log_softmax(1)).sum(1), true)


def focal(logits: Tensor, targets: Tensor, *, gamma: float) -> Tensor:
    """−(1 − p)ᵞ log p, p being the softmax of the true class (Lin et al. 2017, equation 4): what is sure counts less."""
    true = shares(targets, logits.shape[1]).to(logits.dtype)
    # log(1 − p) from the other classes' logits: a power of 1 − p has no finite slope where p rounds to one.
    others = torch.where(true > 0, -math.inf, logits).logsumexp(1) - logits.logsumexp(1)
    surprise = -(true * logits.log_softmax(1)).sum(1)
    return _mean(torch.exp(gamma * others) * surprise, true)


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − Dice of the softmax, mean over the episode's classes, the ground left out (Milletari et al. 2016; sums, not squares).

    Sums go over all samples, so that one in which a class is absent asks for nothing but its absence.
    """
    true = shares(targets, logits.shape[1]).to(logits.dtype)
    seen = true.sum(1, keepdim=True)
    said = logits.softmax(1) * seen
    overlap, both = (said * true).sum((0, 2, 3)), (said + true).sum((0, 2, 3))
    return 1 - ((2 * overlap + 1) / (both + 1))[1:].mean()


def both(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy plus Dice: every pixel counts, and every class counts alike."""
    return cross_entropy(logits, targets) + dice(logits, targets)


def with_areas(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of pixels, and of areas: of the mean logits of what is of one class in an image, each area counting alike.

    What an object is must be learned from few pixels among many; the mean of an object knows it long before each of its pixels.
    """
    outputs = logits.shape[1]
    members = shares(targets, outputs)
    counts = members.sum((2, 3))
    means = torch.einsum("sahw,sohw->sao", members.to(logits.dtype), logits) / counts.clamp(min=1)[..., None]
    losses = -means.log_softmax(2).diagonal(dim1=1, dim2=2)
    there = (counts > 0).to(logits.dtype)
    return cross_entropy(logits, targets) + (losses * there).sum() / there.sum().clamp(min=1)
