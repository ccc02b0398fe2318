"""The module of relation networks that scores how alike two feature maps are."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.convolution import Convolution
from pipeline.models.norm import Normalise, NormKind
from pipeline.models.norm import norm as make_norm

BLOCKS = 2
HIDDEN = 8


@final
class Relation(nn.Module):
    """2 × [3×3 convolution, norm, ReLU, 2×2 max-pool], then two linear layers (Sung et al. 2018, section 3.4, figure 2).

    `width` channels in each of the two maps of a pair, `side` × `side` pixels; a map of one pixel is pooled no further.
    """

    def __init__(self, *, width: int, side: int, norm: NormKind = "batch"):
        super().__init__()
        self.convs = nn.ModuleList(Convolution(2 * width if block == 0 else width, width, 3) for block in range(BLOCKS))
        self.norms = nn.ModuleList(make_norm(norm, f"relation{block}", width, steps=0) for block in range(BLOCKS))
        for _ in range(BLOCKS):
            side = max(1, side // 2)
        self.hidden, self.score = nn.Linear(width * side**2, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, pairs: Tensor, normalise: Normalise) -> Tensor:
        """(pairs, 2 · width, side, side) -> scores (pairs,), before the sigmoid"""
        x = pairs
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x), normalise)
            x = F.relu(F.max_pool2d(x, 2) if x.shape[-1] > 1 else x)
        return self.score(F.relu(self.hidden(x.flatten(1)))).squeeze(1)
