"""Features of every pixel from an encoder made for whole images, so that one trained to classify can segment."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from pipeline.models.conv4 import Conv4
from pipeline.models.norm import Normalise, NormKind, by_batch
from pipeline.models.resnet12 import ResNet12
from pipeline.models.unet import Ascent


@final
class Decoder(nn.Module):
    """What the blocks of a `backbone` make of an image, put together from the last to the first and the image itself.

    Each level of the way up has `width` channels; `embedding` as in `Ascent`. The sides of images divide by 2^(number of blocks).
    """

    def __init__(
        self,
        backbone: Conv4 | ResNet12,
        *,
        channels: int,
        width: int,
        norm: NormKind = "batch",
        steps: int = 0,
        embedding: int = 0,
    ):
        super().__init__()
        self.backbone = backbone
        beside = [*reversed(backbone.widths[:-1]), channels]
        widths = [width] * len(beside)
        self.up = Ascent(backbone.widths[-1], beside, widths, norm=norm, steps=steps, embedding=embedding)
        self.features = self.up.features
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stubs lack this overload)

    def forward(self, images: Tensor, normalise: Normalise = by_batch) -> Tensor:
        """(samples, channels, height, width) -> (samples, features, height, width)"""
        *maps, x = self.backbone.stages(images, normalise)
        return self.up(x, [*reversed(maps), images], normalise)
