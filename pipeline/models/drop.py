"""Regularisation by leaving out activations, whose noise comes with the pass and not from a generator."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.norm import Normalise
from pipeline.tensor_noise import BITS, Chance


@final
class DropBlock(nn.Module):
    """Leaves out squares of `block` pixels a side, other ones in every channel (Ghiasi et al. 2018, algorithm 1).

    A square begins at each place where it fits with probability γ = drop / block² · height · width / places (equation 1), so
    that somewhat less than `drop` of the activations go, as squares overlap. What is left is multiplied by all / those left.
    Blocks of one pixel are dropout; on maps smaller than a block whole channels go. A pass without noise leaves out nothing.
    """

    def __init__(self, name: str, *, drop: float, block: int):
        super().__init__()
        self.name, self.drop, self.block = name, drop, block

    def forward(self, x: Tensor, normalise: Normalise) -> Tensor:
        """(samples, channels, height, width), the same out"""
        if self.drop == 0 or normalise.chance is None:
            return x
        kept = self.kept(x, normalise.chance.at(self.name))
        return x * (kept * (kept.numel() / kept.sum().clamp(min=1)))

    def kept(self, x: Tensor, chance: Chance) -> Tensor:
        """One where an activation is left, zero where not, in the type of x."""
        samples, channels, height, width = x.shape
        block = min(self.block, height, width)
        rows, columns = height - block + 1, width - block + 1
        share = self.drop / block**2 * (height * width) / (rows * columns)
        # Compared as integers, so that all types of activations lose the same; channels last, as activations mostly lie.
        words = chance.words(samples, rows, columns, channels).permute(0, 3, 1, 2)
        begins = (words < round(share * 2**BITS)).to(x.dtype)
        margin = block - 1
        return 1 - F.max_pool2d(F.pad(begins, (margin, margin, margin, margin)), block, stride=1)
