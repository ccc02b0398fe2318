"""A small U-Net: every pixel's features, from its surroundings on several scales (Ronneberger et al. 2015)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.convolution import Convolution, normalised
from pipeline.models.norm import Normalise, NormKind, by_batch
from pipeline.models.norm import norm as make_norm

WIDEST = 8
"""Channels grow with the depth up to so many times those at full size."""


class Block(nn.Module):
    """3×3 convolution, norm, ReLU."""

    def __init__(self, name: str, channels: int, width: int, stride: int, norm: NormKind, steps: int):
        super().__init__()
        self.conv = Convolution(channels, width, 3, stride)
        self.norm = make_norm(norm, name, width, steps=steps)

    def forward(self, x: Tensor, normalise: Normalise) -> Tensor:
        return F.relu(normalised(self.conv, self.norm, x, normalise))


class Unet(nn.Module):
    """`depth` halvings and as many doublings, with what was seen on the way down put beside what comes up.

    A level is one convolution on the way down and one on the way up, the lowest has two; the width doubles at each level. Going
    up, pixels are repeated: no transposed convolution, whose gradients cross a checkerboard. `downsample` as in conv4.
    The sides of images divide by 2^depth. With a `stride` the way up ends where so many pixels of the image are one of the
    map. Initial values are torch's own.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        depth: int,
        downsample: Literal["stride", "max_pool"],
        norm: NormKind = "batch",
        steps: int = 0,
        stride: Literal[1, 2, 4, 8] = 1,
    ):
        super().__init__()
        widths = [width * min(2**level, WIDEST) for level in range(depth + 1)]
        self.pools = downsample == "max_pool"
        step, last = 1 if self.pools else 2, stride.bit_length() - 1
        assert last <= depth
        self.first = Block("first", channels, width, 1, norm, steps)
        self.down = nn.ModuleList(
            Block(f"down{level}", widths[level], widths[level + 1], step, norm, steps) for level in range(depth)
        )
        self.bottom = Block("bottom", widths[-1], widths[-1], 1, norm, steps)
        self.up = nn.ModuleList(
            Block(f"up{level}", widths[level + 1] + widths[level], widths[level], 1, norm, steps)
            for level in reversed(range(last, depth))
        )
        self.features = widths[last]
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stubs lack this overload)

    def forward(self, images: Tensor, normalise: Normalise = by_batch) -> Tensor:
        """(samples, channels, height, width) -> (samples, features, height / stride, width / stride)"""
        x = self.first(images, normalise)
        seen = []
        for block in self.down:
            seen.append(x)
            x = block(F.max_pool2d(x, 2) if self.pools else x, normalise)
        x = self.bottom(x, normalise)
        for block, beside in zip(self.up, reversed(seen), strict=False):
            x = block(torch.cat([_doubled(x), beside], 1), normalise)
        return x


def _doubled(x: Tensor) -> Tensor:
    """Every pixel four times: (samples, channels, height, width) -> (samples, channels, 2 · height, 2 · width)"""
    samples, channels, height, width = x.shape
    each = x[:, :, :, None, :, None].expand(samples, channels, height, 2, width, 2)
    return each.reshape(samples, channels, 2 * height, 2 * width)
