"""The residual network of the few-shot literature (Oreshkin et al. 2018; widths as in Lee et al. 2019, section 4.1)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.convolution import Convolution, normalised
from pipeline.models.drop import DropBlock
from pipeline.models.norm import Normalise, NormKind, by_batch
from pipeline.models.norm import norm as make_norm

WIDTHS = (64, 160, 320, 640)
SLOPE = 0.1


class Block(nn.Module):
    """3 × [3×3 convolution, norm, leaky ReLU] beside a 1×1 convolution with norm, then a 2×2 max-pool, then DropBlock."""

    def __init__(self, name: str, channels: int, width: int, norm: NormKind, steps: int, drop: DropBlock):
        super().__init__()
        self.convs = nn.ModuleList(Convolution(channels if layer == 0 else width, width, 3) for layer in range(3))
        self.norms = nn.ModuleList(make_norm(norm, f"{name}_{layer}", width, steps=steps) for layer in range(3))
        self.shortcut = Convolution(channels, width, 1)
        self.shortcut_norm = make_norm(norm, f"{name}_shortcut", width, steps=steps)
        self.drop = drop

    def forward(self, x: Tensor, normalise: Normalise) -> Tensor:
        beside = normalised(self.shortcut, self.shortcut_norm, x, normalise)
        for layer, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = normalised(conv, norm, x, normalise)
            x = F.leaky_relu(x if layer < 2 else x + beside, SLOPE)
        return self.drop(F.max_pool2d(x, 2), normalise)


@final
class ResNet12(nn.Module):
    """Four residual blocks, then the mean over the last map's pixels. `width` is the first block's; the others follow WIDTHS.

    In training `drop` of the activations behind every block go: one by one behind the first two, in squares of `block` pixels
    a side behind the others (Lee et al. 2019, section 4.1: DB(0.9, 1) twice and DB(0.9, 5) twice; 2 pixels on CIFAR).
    """

    def __init__(
        self, *, channels: int, width: int, norm: NormKind = "batch", steps: int = 0, drop: float = 0.0, block: int = 5
    ):
        super().__init__()
        self.widths = widths = [width * each // WIDTHS[0] for each in WIDTHS]
        drops = [DropBlock(f"block{number}", drop=drop, block=1 if number < 2 else block) for number in range(4)]
        self.blocks = nn.ModuleList(
            Block(f"block{number}", before, after, norm, steps, drops[number])
            for number, (before, after) in enumerate(zip([channels, *widths], widths, strict=False))
        )
        self.features = widths[-1]
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stubs lack this overload)

    def forward(self, images: Tensor, normalise: Normalise = by_batch) -> Tensor:
        """(samples, channels, height, width) -> (samples, features)"""
        return self.stages(images, normalise)[-1].mean((2, 3))

    def stages(self, images: Tensor, normalise: Normalise) -> list[Tensor]:
        """The map that each block makes, half as large as the one before: (samples, widths[block], …)."""
        x, made = images, []
        for block in self.blocks:
            x = block(x, normalise)
            made.append(x)
        return made
