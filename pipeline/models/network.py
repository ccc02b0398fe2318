"""An encoder with a head: the parameter names `encoder.*` and `head.*` are what `learner.adapts` speaks of."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from pipeline.models.norm import Normalise, by_batch


@final
class Network(nn.Module):
    """`head(encoder(inputs))`; a learner that classifies by distance gives `nn.Identity()` as head."""

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, inputs: Tensor, normalise: Normalise = by_batch) -> Tensor:
        return self.head(self.encoder(inputs, normalise))
