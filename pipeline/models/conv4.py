"""The four-block convolutional encoder of the few-shot literature (Vinyals et al. 2016; Finn et al. 2017, section 5.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.convolution import Convolution, normalised
from pipeline.models.norm import Normalise, NormKind, by_batch
from pipeline.models.norm import norm as make_norm

BLOCKS = 4
FILM_BLOCK = 2
MAP_HALVINGS = 2


class Film(nn.Module):
    """Scale and shift of every channel as a linear function of a context vector (CAVIA; Zintgraf et al. 2019, section 3.3)."""

    def __init__(self, context: int, channels: int):
        super().__init__()
        self.context = nn.Parameter(torch.zeros(context))
        self.linear = nn.Linear(context, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.linear(self.context).chunk(2)
        return x * (1 + scale[:, None, None]) + shift[:, None, None]


class Conv4(nn.Module):
    """4 × [3×3 convolution, norm, ReLU, downsample by 2], then the features of the last map.

    `downsample`: "stride" in the convolution (MAML on Omniglot) or "max_pool" (everything else).
    `features`: "mean" over the last map's pixels, or "flatten" it; `size` is the side of the square input, pixels. "map" gives
    the map itself, `side` pixels a side, and only the first two blocks downsample (Sung et al. 2018, section 3.4).
    `steps` inner steps matter to the norm `batch_per_step` alone; `context` is the length of a context vector, or 0. With
    `warp` a 3×3 convolution of its own follows each block's, the identity at first (WarpGrad; Flennerhag et al. 2020,
    section 2; linear as in T-Nets, Lee and Choi 2018).
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        size: int,
        downsample: Literal["stride", "max_pool"],
        features: Literal["mean", "flatten", "map"],
        norm: NormKind = "batch",
        steps: int = 0,
        context: int = 0,
        warp: bool = False,
    ):
        super().__init__()
        self.stride = 2 if downsample == "stride" else 1
        self.form = features
        self.halvings = MAP_HALVINGS if features == "map" else BLOCKS
        self.convs = nn.ModuleList(
            Convolution(channels if block == 0 else width, width, 3, stride)
            for block, stride in enumerate([self.stride] * self.halvings + [1] * (BLOCKS - self.halvings))
        )
        self.norms = nn.ModuleList(make_norm(norm, f"block{block}", width, steps=steps) for block in range(BLOCKS))
        self.film = Film(context, width) if context else None
        warps = [Convolution(width, width, 3) for _ in range(BLOCKS)] if warp else []
        for each in warps:
            nn.init.dirac_(each.weight)
        self.warps = nn.ModuleList(warps)
        for _ in range(self.halvings):
            size = (size + 1) // 2 if self.stride == 2 else size // 2
        self.side, self.channels = size, width
        self.widths = [width] * BLOCKS
        self.features = width if features == "mean" else width * size**2
        # A third faster on CPUs, where max-pool and norm crawl over channels that lie apart; the engine may change it.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stubs lack this overload)

    def forward(self, images: Tensor, normalise: Normalise = by_batch) -> Tensor:
        """(samples, channels, height, width) -> (samples, features), or maps (samples, width, side, side)"""
        x = self.stages(images, normalise)[-1]
        if self.form == "map":
            return x
        return x.flatten(1) if self.form == "flatten" else x.mean((2, 3))

    def stages(self, images: Tensor, normalise: Normalise) -> list[Tensor]:
        """The map that each block makes, (samples, width, …) each."""
        x, made = images, []
        for block, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if self.warps:
                x = norm(self.warps[block](conv(x)), normalise)
            else:
                x = normalised(conv, norm, x, normalise)
            if self.film is not None and block == FILM_BLOCK:
                x = self.film(x)
            # ReLU and maximum commute; this way round ReLU has a quarter of the work.
            x = F.relu(F.max_pool2d(x, 2) if self.stride == 1 and block < self.halvings else x)
            made.append(x)
        return made
