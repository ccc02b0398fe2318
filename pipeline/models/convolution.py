"""Convolutions in the form that is fastest to differentiate twice."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.norm import EPS, Norm, Normalise

FEW_CHANNELS = 3
"""Input channels up to which a convolution is computed from patches."""
MANY_WEIGHTS = 1 << 20
"""Weights from which on their way through memory is what a convolution of small maps costs."""


@final
class Convolution(nn.Conv2d):
    """A square convolution without bias (a norm follows, which would subtract it): by PyTorch's kernels, or from patches.

    Products with patches pay where channels are few: those of an image are constants of the episode, and all derivatives of a
    product are products, while the kernels are made for many channels. Where weights are many and places few: the kernels copy
    all weights to a layout of their own and back, in every derivative. And where a patch is one pixel.
    """

    def __init__(self, channels: int, width: int, kernel: Literal[1, 3], stride: int = 1):
        super().__init__(channels, width, kernel, stride, padding=kernel // 2, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if self.in_channels <= FEW_CHANNELS:
            return _by_sample(self._patches(input), self._matrix(), self.weight.new_zeros(()))
        if self.kernel_size == (1, 1) or self._is_wide(input):
            patches = self._patches(input)
            return (patches.flatten(0, 2) @ self._matrix()).unflatten(0, patches.shape[:3]).permute(0, 3, 1, 2)
        return super().forward(input)

    def _is_wide(self, x: Tensor) -> bool:
        places = x.shape[0] * (x.shape[2] // self.stride[0]) * (x.shape[3] // self.stride[1])
        return self.weight.numel() > MANY_WEIGHTS and places < self.out_channels

    def normalised(self, images: Tensor, norm: Norm, normalise: Normalise) -> Tensor:
        """`norm(self(images))` for images of few channels, in one product: the norm is folded into the weights.

        With the mean m and the covariance C of the patches, an output channel w·p has mean w·m and variance wᵀ C w. So
        neither the statistics nor their derivatives look at the activations, the largest ones in a network: a third of
        their time forward and backward is saved. In float64, which costs nothing here, both are a hundred times as exact as
        those of the kernel.
        """
        patches, weight = self._patches(images), self._matrix()

        def own() -> tuple[Tensor, Tensor]:
            rows, exact = patches.flatten(1, 2).double(), weight.double()
            middle = rows.mean((0, 1))
            # A product a sample: over all at once it would take four times as long, and centring them first as long again.
            squares = torch.bmm(rows.transpose(1, 2), rows).sum(0) / rows[..., 0].numel()
            covariance = squares - middle[:, None] * middle
            return (middle @ exact).to(weight.dtype), (covariance @ exact * exact).sum(0).to(weight.dtype)

        mean, var = normalise.moments(norm.name, own)
        scale, shift = norm.affine(normalise)
        scale = scale * torch.rsqrt(var + EPS)
        return _by_sample(patches, weight * scale, shift - mean * scale)

    def _matrix(self) -> Tensor:
        """The weights as (kernel² · channels, width), a view where they lie channels-last."""
        return self.weight.permute(0, 2, 3, 1).flatten(1).t()

    def _patches(self, images: Tensor) -> Tensor:
        """(samples, channels, height, width) -> (samples, rows, columns, kernel² · channels)"""
        side, stride, margin = self.kernel_size[0], self.stride[0], self.kernel_size[0] // 2
        if side == 1:
            return images.permute(0, 2, 3, 1)[:, ::stride, ::stride]
        padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, margin, margin, margin, margin))
        rows, columns = (padded.shape[axis] - side + 1 for axis in (1, 2))
        shifted = [padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(side) for j in range(side)]
        return torch.stack(shifted, 3).flatten(3)


def _by_sample(patches: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """(samples, rows, columns, inputs) · (inputs, width) + bias -> (samples, width, rows, columns)

    One product over all samples would take several times as long for the gradient of a matrix with few rows.
    """
    rows = patches.flatten(1, 2)
    product = torch.baddbmm(bias, rows, matrix.expand(rows.shape[0], *matrix.shape))
    return product.unflatten(1, patches.shape[1:3]).permute(0, 3, 1, 2)


def normalised(convolution: nn.Module, norm: nn.Module, x: Tensor, normalise: Normalise) -> Tensor:
    """`norm(convolution(x))`, in one product where that can be."""
    if isinstance(convolution, Convolution) and convolution.in_channels <= FEW_CHANNELS and isinstance(norm, Norm):
        return convolution.normalised(x, norm, normalise)
    return norm(convolution(x), normalise)
