"""Linear layers whose weights have a low-rank part, so that few numbers adapt where many are kept."""

from __future__ import annotations

import re
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FACTOR = re.compile(r".*\blora_[ab]")
"""The names of low-rank factors, as a pattern in `learner.adapts` would have them."""


@final
class LowRank(nn.Linear):
    """A linear layer with the weight W + (alpha / rank) · B A (LoRA; Hu et al. 2022, section 4.1).

    `lora_a` (rank, inputs) starts Gaussian, `lora_b` (outputs, rank) at zero, so that at first the layer is that of `weight`
    alone. The names of weight and bias are those of `nn.Linear`.
    """

    def __init__(self, inputs: int, outputs: int, *, rank: int, alpha: float):
        super().__init__(inputs, outputs)
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.randn(rank, inputs) * inputs**-0.5)
        self.lora_b = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.scale * F.linear(F.linear(input, self.lora_a), self.lora_b)

    def merged(self) -> Tensor:
        """The weight of the plain linear layer that computes the same."""
        return self.weight + self.scale * self.lora_b @ self.lora_a


def linear(inputs: int, outputs: int, *, rank: int, alpha: float) -> nn.Linear:
    """A linear layer with low-rank factors, or without where the rank is 0."""
    return LowRank(inputs, outputs, rank=rank, alpha=alpha) if rank else nn.Linear(inputs, outputs)


def freeze_all_but_factors(model: nn.Module) -> None:
    """Take all parameters but low-rank factors out of training: what DDP holds without a gradient it would wait for (law 5)."""
    for name, value in model.named_parameters():
        value.requires_grad_(FACTOR.fullmatch(name) is not None)
