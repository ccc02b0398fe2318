"""Features of every pixel from recurrent units that sweep the rows and columns of an image (Visin et al. 2015, 2016)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from pipeline.models.norm import Normalise, NormKind, by_batch
from pipeline.models.rnn import Gru
from pipeline.models.unet import Block


class Sweep(nn.Module):
    """Units that read a map's lines from both ends: (lines, length, inputs) -> (lines, length, 2 · width)."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.there, self.back = Gru(inputs, width), Gru(inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.there(x), self.back(x.flip(1)).flip(1)], 2)


@final
class Renet(nn.Module):
    """ReSeg (Visin et al. 2016, section 3) without a pre-trained network before it: `layers` of sweeps, then up to the pixels.

    An image is cut into patches of `patch` pixels a side. In a layer `width` units each sweep the rows from left and right,
    and as many the columns of what those saw from above and below, so that every patch knows of the whole image. A linear map
    gives the pixels of a patch their values; beside them the image itself, a 3×3 convolution, norm, ReLU make the features.
    The sides of images divide by `patch`.
    """

    def __init__(self, *, channels: int, width: int, patch: int, layers: int, norm: NormKind = "batch", steps: int = 0):
        super().__init__()
        self.patch = patch
        inputs = [channels * patch**2] + [2 * width] * (layers - 1)
        self.rows = nn.ModuleList(Sweep(size, width) for size in inputs)
        self.columns = nn.ModuleList(Sweep(2 * width, width) for _ in inputs)
        self.spread = nn.Linear(2 * width, width * patch**2)
        self.last = Block("last", width + channels, width, 1, norm, steps)
        self.features = width
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stubs lack this overload)

    def forward(self, images: Tensor, normalise: Normalise = by_batch) -> Tensor:
        """(samples, channels, height, width) -> (samples, features, height, width)"""
        side, (samples, channels, height, width) = self.patch, images.shape
        cut = images.reshape(samples, channels, height // side, side, width // side, side)
        x = cut.permute(0, 2, 4, 1, 3, 5).flatten(3)
        for rows, columns in zip(self.rows, self.columns, strict=True):
            x = rows(x.flatten(0, 1)).unflatten(0, x.shape[:2]).transpose(1, 2)
            x = columns(x.flatten(0, 1)).unflatten(0, x.shape[:2]).transpose(1, 2)
        pixels = self.spread(x).unflatten(3, (self.features, side, side)).permute(0, 3, 1, 4, 2, 5)
        wide = pixels.reshape(samples, self.features, height, width)
        return self.last(torch.cat([wide, images], 1), normalise)
