"""Features of every pixel from an encoder made for whole images, so that one trained to classify can segment."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from pipeline.models.conv4 import Conv4
from pipeline.models.norm import Normalise, NormKind, by_batch
from pipeline.models.resnet12 import ResNet12
from pipeline.models.unet import Block, doubled


@final
class Decoder(nn.Module):
    """What the blocks of a `backbone` make of an image, put together from the last to the first and the image itself.

    From the smallest map on: every pixel four times, the map of the block before beside it, a 3×3 convolution to `width`
    channels, norm, ReLU. The sides of images divide by 2^(number of blocks).
    """

    def __init__(
        self, backbone: Conv4 | ResNet12, *, channels: int, width: int, norm: NormKind = "batch", steps: int = 0
    ):
        super().__init__()
        self.backbone = backbone
        beside = [*reversed(backbone.widths[:-1]), channels]
        below = [backbone.widths[-1], *[width] * (len(beside) - 1)]
        self.up = nn.ModuleList(
            Block(f"up{level}", under + skipped, width, 1, norm, steps)
            for level, (under, skipped) in enumerate(zip(below, beside, strict=True))
        )
        self.features = width
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stubs lack this overload)

    def forward(self, images: Tensor, normalise: Normalise = by_batch) -> Tensor:
        """(samples, channels, height, width) -> (samples, features, height, width)"""
        *maps, x = self.backbone.stages(images, normalise)
        for block, beside in zip(self.up, [*reversed(maps), images], strict=True):
            x = block(torch.cat([doubled(x), beside], 1), normalise)
        return x
