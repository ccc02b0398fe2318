"""Several modalities, each with an encoder of its own, whose features are put side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models.drop import DropBlock
from pipeline.models.norm import Norm, Normalise, by_batch

PRESENT = 0.5
"""A channel that says whether a sample has a modality is 1 or 0; augmentation may round it, and darken its edge."""


@final
class LateFusion(nn.Module):
    """Encoders by modality, as `image` and `depth`: parameters are `image.…` and `depth.…`, so that `learner.adapts` can tell
    them apart. Norms and DropBlocks of the encoders get the modality before their names.

    `channels` is how many channels of the inputs each modality has. For those in `told` one more follows, 1 where the sample has
    the modality and 0 where it has not: then its features are zero and the others' multiplied by all / those there are.

    Raises:
        InputError: a modality has a name that modules use themselves.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        channels: Sequence[int],
        *,
        features: int,
        told: frozenset[str] = frozenset(),
    ):
        """`features` are those of all encoders together."""
        super().__init__()
        self._names, self._channels, self._told = tuple(encoders), tuple(channels), told
        self.features = features
        for name, encoder in encoders.items():
            if hasattr(self, name):
                raise InputError(f"data.modalities: {name!r} is what every module has; pack it under another name")
            for part in encoder.modules():
                if isinstance(part, Norm | DropBlock):
                    part.name = f"{name}_{part.name}"
            self.add_module(name, encoder)

    def forward(self, inputs: Tensor, normalise: Normalise = by_batch) -> Tensor:
        """(samples, channels of all modalities, height, width) -> (samples, features)"""
        found, there, at = [], [], 0
        for name, channels in zip(self._names, self._channels, strict=True):
            found.append(self.get_submodule(name)(inputs[:, at : at + channels], normalise))
            at += channels
            if name in self._told:
                there.append((inputs[:, at].amax((1, 2)) > PRESENT).to(inputs.dtype))
                at += 1
            else:
                there.append(inputs.new_ones(inputs.shape[0]))
        if not self._told:
            return torch.cat(found, 1)
        scale = len(there) / torch.stack(there).sum(0)
        return torch.cat([part * (scale * is_there)[:, None] for part, is_there in zip(found, there, strict=True)], 1)
