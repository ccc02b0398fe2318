"""Where a norm layer's mean and variance come from: its own batch, a given set of statistics, or a running average.

A layer never keeps statistics itself: `forward(x, normalise)` is told how to normalise, so that one model serves
transductive (own batch) and inductive (given statistics) prediction, inside `vmap` and without hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.episode import Statistics

EPS = 1e-5
Normalise = Callable[[str, Tensor], Tensor]
"""(layer name, activations (samples, channels, …)) -> normalised activations, before scale and shift."""


def by_batch(_: str, x: Tensor) -> Tensor:
    """Normalise by the batch's own mean and variance."""
    # Scale and shift stay outside: F.batch_norm with batched weights has wrong second-order gradients under vmap.
    return F.batch_norm(x, None, None, None, None, True, eps=EPS)


class Recorded:
    """Normalise by the batch, and remember the statistics of every layer (detached)."""

    def __init__(self):
        self.statistics: Statistics = {}

    def __call__(self, layer: str, x: Tensor) -> Tensor:
        # The same kernel as by_batch, which hands out what it computed: no second pass over the activations.
        y, mean, inverse = torch.native_batch_norm(x, None, None, None, None, True, 0.0, EPS)
        self.statistics[layer] = (mean.detach(), inverse.detach().pow(-2) - EPS)
        return y


class Given:
    """Normalise by statistics taken elsewhere, so that a prediction depends on its own sample alone (law 8)."""

    def __init__(self, statistics: Statistics):
        self.statistics = statistics

    def __call__(self, layer: str, x: Tensor) -> Tensor:
        mean, var = self.statistics[layer]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x - mean.reshape(shape)) * torch.rsqrt(var.reshape(shape) + EPS)


class Norm(nn.Module):
    """Normalisation per channel with a learned scale and shift (Ioffe and Szegedy 2015, without running averages)."""

    def __init__(self, name: str, channels: int):
        super().__init__()
        self.name, self.channels = name, channels
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, normalise: Normalise) -> Tensor:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return torch.addcmul(self.bias.reshape(shape), normalise(self.name, x), self.weight.reshape(shape))


class Running(nn.Module):
    """Exponential averages of norm statistics, equal on all ranks because what is averaged in is reduced over them."""

    def __init__(self, model: nn.Module, momentum: float = 0.1):
        super().__init__()
        self.momentum = momentum
        for norm in (module for module in model.modules() if isinstance(module, Norm)):
            self.register_buffer(f"{norm.name}_mean", torch.zeros(norm.channels))
            self.register_buffer(f"{norm.name}_var", torch.ones(norm.channels))

    def statistics(self) -> Statistics:
        """The averages so far."""
        buffers = dict(self.named_buffers())
        names = [name.removesuffix("_mean") for name in buffers if name.endswith("_mean")]
        return {name: (buffers[f"{name}_mean"], buffers[f"{name}_var"]) for name in names}

    @torch.no_grad()
    def absorb(self, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Move the averages towards the statistics of one meta-batch."""
        for name, kept in self.statistics().items():
            for average, new in zip(kept, statistics[name], strict=True):
                average.lerp_(new.to(average.dtype), self.momentum)
