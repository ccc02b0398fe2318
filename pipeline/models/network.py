"""An encoder with a head: the parameter names `encoder.*` and `head.*` are what `learner.adapts` speaks of."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from pipeline.models.norm import Normalise, by_batch

AS_THEY_ARE = nn.Identity()
"""In front of an encoder whose images are not normalised."""


@final
class Network(nn.Module):
    """`head(encoder(standard(inputs)))`; a learner that classifies by distance gives `nn.Identity()` as head, and images that go
    in as they are have one as `standard`."""

    def __init__(self, encoder: nn.Module, head: nn.Module, standard: nn.Module = AS_THEY_ARE):
        super().__init__()
        self.encoder, self.head, self.standard = encoder, head, standard

    def forward(self, inputs: Tensor, normalise: Normalise = by_batch) -> Tensor:
        return self.head(self.encoder(self.standard(inputs), normalise))
