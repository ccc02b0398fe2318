"""Where a norm layer's mean and variance come from: its own batch, a given set of statistics, or a running average.

A layer never keeps statistics itself: `forward(x, normalise)` is told how to normalise, so that one model serves
transductive (own batch) and inductive (given statistics) prediction, inside `vmap` and without hidden state.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.calculus import is_alone, is_plain
from pipeline.episode import Statistics
from pipeline.models.batch_norm import EPS, batch_norm
from pipeline.tensor_noise import Chance

Moments = tuple[Tensor, Tensor]
"""Mean and variance, each (channels,)."""


class Normalise(ABC):
    """Normalises activations (samples, channels, …) of a named layer; `step` is the number of inner steps behind.

    With it goes what else a pass through a model is told: the noise by which layers leave out activations, `chance`; none:
    they leave out nothing.
    """

    step: int = 0
    chance: Chance | None = None

    @abstractmethod
    def __call__(self, layer: str, x: Tensor) -> Tensor:
        """The activations, normalised, before scale and shift."""

    @abstractmethod
    def moments(self, layer: str, own: Callable[[], Moments]) -> Moments:
        """Mean and variance per channel by which a layer is normalised; `own` computes those of the batch."""

    def scaled(self, layer: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The activations, normalised, scaled and shifted by one value per channel."""
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return torch.addcmul(bias.reshape(shape), self(layer, x), weight.reshape(shape))


@final
class ByBatch(Normalise):
    """Normalise by the batch's own mean and variance."""

    def __init__(self, step: int = 0, chance: Chance | None = None):
        self.step, self.chance = step, chance

    def __call__(self, layer: str, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, None, None, True, eps=EPS)

    def scaled(self, layer: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if is_plain():
            return batch_norm(x, weight, bias)
        # With a weight and bias that are batched by `vmap` it would have wrong second-order gradients.
        if is_alone():
            return F.batch_norm(x, None, None, weight, bias, True, eps=EPS)
        return super().scaled(layer, x, weight, bias)

    def moments(self, layer: str, own: Callable[[], Moments]) -> Moments:
        return own()


by_batch = ByBatch()


@final
class Recorded(Normalise):
    """Normalise by the batch, and remember the statistics of every layer (detached)."""

    def __init__(self, step: int = 0, chance: Chance | None = None):
        self.step, self.chance = step, chance
        self.statistics: Statistics = {}

    def __call__(self, layer: str, x: Tensor) -> Tensor:
        # The same kernel as ByBatch, which hands out what it computed: no second pass over the activations.
        y, mean, inverse = torch.native_batch_norm(x, None, None, None, None, True, 0.0, EPS)
        self.statistics[layer] = (mean.detach(), inverse.detach().pow(-2) - EPS)
        return y

    def moments(self, layer: str, own: Callable[[], Moments]) -> Moments:
        mean, var = own()
        self.statistics[layer] = (mean.detach(), var.detach())
        return mean, var


@final
class Given(Normalise):
    """Normalise by statistics taken elsewhere, so that a prediction depends on its own sample alone (law 8)."""

    def __init__(self, statistics: Statistics, step: int = 0, chance: Chance | None = None):
        self.statistics, self.step, self.chance = statistics, step, chance

    def __call__(self, layer: str, x: Tensor) -> Tensor:
        mean, var = self.statistics[layer]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x - mean.reshape(shape)) * torch.rsqrt(var.reshape(shape) + EPS)

    def moments(self, layer: str, own: Callable[[], Moments]) -> Moments:
        return self.statistics[layer]


class Norm(nn.Module):
    """Normalisation per channel with a learned scale and shift (Ioffe and Szegedy 2015, without running averages).

    With `steps` there is a scale and shift for every inner step, 0 … steps (MAML++; Antoniou et al. 2019, section 4,
    "per-step batch normalization weights and biases"); later steps use the last.
    """

    def __init__(self, name: str, channels: int, *, steps: int | None = None):
        super().__init__()
        self.name, self.channels, self.steps = name, channels, steps
        shape = (channels,) if steps is None else (steps + 1, channels)
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def affine(self, normalise: Normalise) -> tuple[Tensor, Tensor]:
        """Scale and shift per channel at the inner step at hand."""
        if self.steps is None:
            return self.weight, self.bias
        at = min(normalise.step, self.steps)
        return self.weight[at], self.bias[at]

    def forward(self, x: Tensor, normalise: Normalise) -> Tensor:
        return normalise.scaled(self.name, x, *self.affine(normalise))


class GroupNorm(nn.Module):
    """Normalisation over groups of channels of each sample (Wu and He 2018); one group is layer normalisation.

    It looks at no other sample, so `normalise` is not asked.
    """

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, normalise: Normalise) -> Tensor:
        # Not F.group_norm: under vmap it does not take channels-last activations.
        grouped = x.reshape(x.shape[0], self.groups, -1)
        var, mean = torch.var_mean(grouped, -1, correction=0, keepdim=True)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        normal = ((grouped - mean) * torch.rsqrt(var + EPS)).reshape(x.shape)
        return torch.addcmul(self.bias.reshape(shape), normal, self.weight.reshape(shape))


NormKind = Literal["batch", "batch_per_step", "group", "layer"]
GROUPS = 8


def norm(kind: NormKind, name: str, channels: int, *, steps: int) -> nn.Module:
    """The norm layer of this kind; `steps` inner steps matter to `batch_per_step` alone."""
    match kind:
        case "batch":
            return Norm(name, channels)
        case "batch_per_step":
            return Norm(name, channels, steps=steps)
        case "group":
            return GroupNorm(channels, math.gcd(channels, GROUPS))
        case "layer":
            return GroupNorm(channels, 1)


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
