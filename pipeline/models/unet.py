"""A small U-Net: every pixel's features, from its surroundings on several scales (Ronneberger et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

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


class Ascent(nn.Module):
    """From the smallest map up: at each level every pixel four times, what was seen on the way down put beside it, a block.

    `below` are the channels of the smallest map, `beside` those of the maps put beside it and `widths` those of the blocks, from
    the smallest on. Pixels are repeated: no transposed convolution, whose gradients cross a checkerboard. With `embedding` a
    pixel has so many features: the sum of linear maps of what each level says of it (hypercolumns; Hariharan et al. 2015,
    section 3). What an object is, is said where pixels are few and channels many, and need not pass through the few of full
    size.
    """

    def __init__(
        self, below: int, beside: Sequence[int], widths: Sequence[int], *, norm: NormKind, steps: int, embedding: int
    ):
        super().__init__()
        made = [below, *widths]
        self.blocks = nn.ModuleList(
            Block(f"up{level}", made[level] + beside[level], width, 1, norm, steps)
            for level, width in enumerate(widths)
        )
        self.embeddings = nn.ModuleList(Convolution(width, embedding, 1) for width in made if embedding)
        self.features = embedding or made[-1]

    def forward(self, x: Tensor, beside: Sequence[Tensor], normalise: Normalise) -> Tensor:
        """(samples, below, …) and maps (samples, beside[level], …), each twice as large -> (samples, features, height, width)"""
        levels = [x]
        for block, seen in zip(self.blocks, beside, strict=True):
            levels.append(block(torch.cat([_doubled(levels[-1]), seen], 1), normalise))
        if not self.embeddings:
            return levels[-1]
        first, *others = (embed(level) for embed, level in zip(self.embeddings, levels, strict=True))
        for said in others:
            first = _doubled(first) + said
        return first


def _doubled(x: Tensor) -> Tensor:
    """Every pixel four times: (samples, channels, height, width) -> (samples, channels, 2 · height, 2 · width)"""
    return F.interpolate(x, scale_factor=2)


@final
class Unet(nn.Module):
    """`depth` halvings and as many doublings, with what was seen on the way down put beside what comes up.

    A level is one convolution on the way down and one on the way up; the width doubles at each level. The lowest has `bottom`
    more, each but the first added to what it reads: where a cell is a part of an object, it takes several to know what the
    object is and to tell its other cells. `downsample` as in conv4, `embedding` as in `Ascent`. The sides of images divide by
    2^depth. With a `stride` the way up ends where so many pixels of the image are one of the map. Initial values are torch's own.
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
        embedding: int = 0,
        bottom: int = 1,
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
        self.bottom = nn.ModuleList(
            Block(f"bottom{place}", widths[-1], widths[-1], 1, norm, steps) for place in range(bottom)
        )
        up = widths[last:-1][::-1]
        self.up = Ascent(widths[-1], up, up, norm=norm, steps=steps, embedding=embedding)
        self.features = self.up.features
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stubs lack this overload)

    def forward(self, images: Tensor, normalise: Normalise = by_batch) -> Tensor:
        """(samples, channels, height, width) -> (samples, features, height / stride, width / stride)"""
        x = self.first(images, normalise)
        seen = []
        for block in self.down:
            seen.append(x)
            x = block(F.max_pool2d(x, 2) if self.pools else x, normalise)
        first, *more = self.bottom
        x = first(x, normalise)
        for block in more:
            x = x + block(x, normalise)
        return self.up(x, seen[::-1][: len(self.up.blocks)], normalise)
