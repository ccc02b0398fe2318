"""Convolutions in the form that is fastest to differentiate twice."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_FEW = 3
"""Channels up to which a convolution is computed by patches."""


@final
class FewChannels(nn.Conv2d):
    """A 3×3 convolution of images with few channels, as one matrix product per sample with their 3×3 patches.

    The patches of an image are constants of the episode, and all derivatives of a matrix product are matrix products:
    in second-order meta-learning on CPUs this takes less time than the convolution kernels, which are made for many channels.
    """

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[2:]
        padded = F.pad(input, (1, 1, 1, 1))
        shifted = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        patches = torch.stack(shifted, -1).permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)
        weight = self.weight.flatten(1).t()
        product = torch.bmm(patches, weight.expand(len(patches), *weight.shape))
        return product.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def conv3x3(channels: int, width: int, stride: int) -> nn.Conv2d:
    """A 3×3 convolution without bias (a norm follows, which would subtract it), in the form that is fastest here."""
    few = stride == 1 and channels <= MOST_FEW
    return (FewChannels if few else nn.Conv2d)(channels, width, 3, stride, padding=1, bias=False)
