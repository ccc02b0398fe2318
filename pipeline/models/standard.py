"""Standardised images: every channel less its mean, divided by its standard deviation, as the model was trained to see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn


@final
class Standard(nn.Module):
    """Stands in front of an encoder, on whatever device that is. Its statistics are buffers, so that checkpoints hold them: who
    uses a model later uses those it was trained with, whatever the images at hand would say."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @torch.no_grad()
    def take(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Use these statistics, one of each for a channel."""
        for own, given in ((self.mean, mean), (self.std, std)):
            own.copy_(torch.tensor(given, dtype=own.dtype))

    def forward(self, images: Tensor) -> Tensor:
        """(samples, channels, height, width) in 0…1 -> the same, of mean 0 and deviation 1 over the images that were measured."""
        return (images - self.mean[:, None, None]) / self.std[:, None, None]
