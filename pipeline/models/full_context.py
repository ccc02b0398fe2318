"""Full context embeddings: features of a support that know of each other, features of queries that have read the support."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from pipeline.models.rnn import Lstm, lstm


@final
class FullContext(nn.Module):
    """Matching networks' g and f on top of one encoder (Vinyals et al. 2016, section 2.1.2 and appendix A).

    With g' = f' the encoder's features, the support as a sequence x₁ … xₙ is read from both ends by an LSTM each, and
    g(xᵢ) = →hᵢ + ←hᵢ + g'(xᵢ) (appendix A.2). A query takes `steps` steps of an LSTM that sees f'(x) each time and what it reads
    from the support: rₖ₋₁ = Σᵢ a(hₖ₋₁, g(xᵢ)) g(xᵢ) with a the softmax over i of hₖ₋₁ · g(xᵢ), and
    hₖ = LSTM(f'(x), [hₖ₋₁, rₖ₋₁], cₖ₋₁) + f'(x) from h₀ = c₀ = 0; f(x) is the last of them (appendix A.1). States are as wide as
    the features, to which they are added.

    g depends on the order of the support, which is what it comes in: that of the episode.
    """

    def __init__(self, features: int, *, steps: int):
        super().__init__()
        self.steps = steps
        self.down, self.up = Lstm(features, features), Lstm(features, features)
        self.look, self.recall = nn.Linear(features, 4 * features), nn.Linear(2 * features, 4 * features)

    def support(self, features: Tensor) -> Tensor:
        """g: (samples, features) -> (samples, features)"""
        sequence = features[None]
        return (self.down(sequence) + self.up(sequence.flip(1)).flip(1))[0] + features

    def query(self, features: Tensor, known: Tensor) -> Tensor:
        """f: queries (samples, features), g of the support (known, features) -> (samples, features)"""
        seen, state, cell = self.look(features), torch.zeros_like(features), torch.zeros_like(features)
        for _ in range(self.steps):
            read = (state @ known.T).softmax(1) @ known
            made, cell = lstm(seen + self.recall(torch.cat([state, read], 1)), cell)
            state = made + features
        return state
