"""Stands where an encoder would, in front of features that a frozen encoder made before (`metashard embed`)."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models.norm import Normalise, by_batch


@final
class Features(nn.Module):
    """Gives what it is given: vectors of `channels` values, or maps of `side` > 1 pixels a side. It has no parameters.

    `encoder` is the sha256 of the encoder whose features these are. It goes into checkpoints, so that what was learned on the
    features of one encoder never meets those of another.
    """

    sha256: Tensor

    def __init__(self, *, channels: int, side: int, encoder: str):
        super().__init__()
        self.channels, self.side = channels, side
        self.features = channels * side**2
        self.register_buffer("sha256", torch.tensor(list(bytes.fromhex(encoder)), dtype=torch.uint8))

    def forward(self, inputs: Tensor, normalise: Normalise = by_batch) -> Tensor:
        """(samples, channels, side, side) -> the same, or vectors (samples, channels)"""
        return inputs if self.side > 1 else inputs.flatten(1)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Raises `InputError` for what was learned on the features of another encoder."""
        theirs = state.get(f"{prefix}sha256")
        if theirs is not None and not torch.equal(theirs.to(self.sha256), self.sha256):
            raise InputError(
                f"learned on features of encoder {_hex(theirs)}…, and these are of encoder {_hex(self.sha256)}…; "
                "name the features it was trained on, or metashard embed with the same encoder"
            )
        super()._load_from_state_dict(state, prefix, *rest)


def _hex(sha256: Tensor) -> str:
    return bytes(sha256.tolist()).hex()[:12]
