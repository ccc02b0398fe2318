"""What passes between the parts: samples of an episode, parameters, and what a learner makes of them.

Axes: samples, ways (classes in the episode); all are NamedTuples or dicts, so that `torch.func.vmap` sees through them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Params = dict[str, Tensor]
"""Named tensors of a model: what its `state_dict` would call parameters."""

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance by norm layer, each with one value per channel."""

Metrics = dict[str, Tensor]
"""Scalars by name; every one is a mean over the queries of an episode."""


class Batch(NamedTuple):
    """Samples and what is true of them: `inputs` (samples, …), `targets` (samples, …)."""

    inputs: Tensor
    targets: Tensor


class Episode(NamedTuple):
    """One few-shot problem; support and query never share a sample.

    `key` (), a word in int64, is of what may be drawn while it is learned from (`tensor_noise.Chance`); evaluation draws
    nothing, so there it may be any.
    """

    support: Batch
    query: Batch
    ways: int
    key: Tensor = torch.zeros((), dtype=torch.int64)

    def to(self, device, dtype) -> Episode:
        """The same episode on a device, its inputs in a floating type."""
        support, query = (
            Batch(b.inputs.to(device, dtype, non_blocking=True), b.targets.to(device, non_blocking=True))
            for b in (self.support, self.query)
        )
        return Episode(support, query, self.ways, self.key.to(device, non_blocking=True))


class Outcome(NamedTuple):
    """What a learner made of an episode.

    `loss` is a scalar whose value is the query loss and whose gradient is the estimate (law 4).
    `statistics` are those of the norm layers, to be averaged over all ranks by learners that keep them.
    """

    loss: Tensor
    metrics: Metrics
    statistics: Statistics


def with_gradient(value: Tensor, parameters: Params, gradients: Params) -> Tensor:
    """A scalar of this value whose gradient at the parameters is the given one, whatever it was computed by (law 4)."""
    pull = [((parameters[name] - parameters[name].detach()) * gradient).sum() for name, gradient in gradients.items()]
    return value.detach() + torch.stack(pull).sum().to(value.dtype)
