"""Counter-based randomness in plain tensor operations: what is drawn while an episode is learned from.

`noise.py` says which samples an episode has; this is for masks and samples inside a learner, where `torch.func.vmap` and
compiled graphs allow no generator. Nothing but the episode's key and the name of the place decides a draw (law 1).
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS = 10
BITS = 32
_MASK = 2**BITS - 1
_MULTIPLIER = 0xD256D193 - 2**BITS
"""Of Philox, less 2³²: so its product with a word fits a signed 64-bit integer."""
_WEYL = 0x9E3779B9


def philox(low: Tensor | int, high: Tensor | int, key: Tensor) -> tuple[Tensor, Tensor]:
    """Philox-2x32-10 (Salmon et al., SC 2011): two words for each counter (low, high); all of them 32 bits in int64."""
    for _ in range(ROUNDS):
        product = low * _MULTIPLIER
        low, high = ((product >> BITS) + low) ^ key ^ high, product & _MASK
        key = (key + _WEYL) & _MASK
    assert isinstance(low, Tensor) and isinstance(high, Tensor)
    return low, high


class Chance(NamedTuple):
    """The noise of an episode, or of the part of it that `place` names: equal keys and places give equal draws.

    `key` is an episode's: a word in an int64 tensor (), so that it can be stacked and traced.
    """

    key: Tensor
    place: str = ""

    def at(self, name: str) -> Chance:
        """The noise of a part of this part."""
        return self._replace(place=f"{self.place}/{name}")

    def words(self, *shape: int) -> Tensor:
        """Uniform words of 32 bits in int64."""
        count = math.prod(shape)
        counter = torch.arange(-(-count // 2), device=self.key.device)
        # The counter is the word that is not multiplied at once: TorchInductor multiplies an arange in 32 bits.
        drawn = torch.cat(philox(zlib.crc32(self.place.encode()), counter, self.key))
        return drawn[:count].reshape(shape)

    def normals(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Standard normal deviates (Box and Muller 1958), computed in float64."""
        count = math.prod(shape)
        radius, angle = (self.words(2, -(-count // 2)) + 0.5) * 2.0**-BITS
        length = torch.sqrt(-2 * torch.log(radius))
        drawn = torch.cat([length * torch.cos(2 * math.pi * angle), length * torch.sin(2 * math.pi * angle)])
        return drawn[:count].reshape(shape).to(dtype)
