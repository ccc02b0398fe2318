"""The head that classifies by the direction of a feature alone."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 1e-12
"""Added to squared lengths."""


@final
class CosineLinear(nn.Module):
    """Logits scale · cos(feature, weight of the class) (Baseline++; Chen et al. 2019).

    The scale is learned, as by Gidaris and Komodakis 2018.
    """

    def __init__(self, features: int, ways: int, *, scale: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ways, features))
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        """(samples, features) -> (samples, ways)"""
        return cosine_logits(features, self.weight, self.scale)


def cosine_logits(features: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """scale · cos: (samples, features), (ways, features) -> (samples, ways)"""
    return scale * F.linear(directions(features), directions(weight))


def directions(features: Tensor) -> Tensor:
    """Features divided by their lengths, (samples, features); nought stays nought."""
    # Not F.normalize: at nought, where ReLUs leave a feature now and then, its second derivatives are nan.
    return features * torch.rsqrt(features.square().sum(-1, keepdim=True) + SMALLEST)
