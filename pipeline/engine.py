"""How the episodes of a step are executed: one after another, or several at once under `vmap`; chosen by measuring."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pipeline.episode import Batch, Episode, Outcome
from pipeline.learners.learner import Learner


class Plan(NamedTuple):
    """How to execute: `chunk` episodes per forward and backward, by a loop or under `vmap`; part of a run (law 3)."""

    mode: Literal["loop", "vmap"]
    chunk: int


def signature(episode: Episode) -> tuple:
    """Episodes of equal signature can be stacked."""
    tensors = (*episode.support, *episode.query)
    return episode.ways, tuple(tuple(tensor.shape) for tensor in tensors)


def chunks(episodes: Sequence[Episode], plan: Plan) -> list[list[Episode]]:
    """The episodes in parts of at most `plan.chunk`, each of one signature."""
    ordered = sorted(episodes, key=signature)
    groups = [list(group) for _, group in groupby(ordered, key=signature)]
    return [group[at : at + plan.chunk] for group in groups for at in range(0, len(group), plan.chunk)]


@final
class Engine(nn.Module):
    """The module that DDP wraps: `forward` gives the sum of the outcomes of one chunk."""

    def __init__(self, learner: Learner, plan: Plan, autocast: torch.dtype | None = None):
        super().__init__()
        self.learner, self.plan, self.autocast = learner, plan, autocast

    def forward(self, episodes: Sequence[Episode]) -> Outcome:
        """Sum of loss, metrics and norm statistics over the episodes, which share one signature.

        Without episodes the loss is a zero that depends on every parameter: a backward through it lets DDP settle
        its buckets before the first step, so that a resumed process adds in the same order as the first.
        """
        if not episodes:
            return Outcome(
                torch.stack([0 * p.sum() for p in self.learner.parameters() if p.requires_grad]).sum(), {}, {}
            )
        device = episodes[0].query.inputs.device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            if self.plan.mode == "vmap" and len(episodes) > 1:
                return self._together(episodes)
            outcomes = [self.learner.outcome(episode) for episode in episodes]
        return _summed(tree_map(lambda *parts: torch.stack(parts), *outcomes))

    def _together(self, episodes: Sequence[Episode]) -> Outcome:
        ways = episodes[0].ways
        support, query = (_stacked([getattr(e, part) for e in episodes]) for part in ("support", "query"))
        each = torch.func.vmap(lambda s, q: self.learner.outcome(Episode(s, q, ways)), randomness="error")
        return _summed(each(support, query))


def _stacked(batches: Sequence[Batch]) -> Batch:
    return Batch(*(torch.stack(tensors) for tensors in zip(*batches, strict=True)))


def _summed(stacked: Outcome) -> Outcome:
    def total(tensor: Tensor) -> Tensor:
        return tensor.sum(0)

    return tree_map(total, stacked)


def measure(learner: Learner, episodes: Sequence[Episode], autocast: torch.dtype | None = None) -> Plan:
    """The fastest plan on these episodes here and now: each candidate runs once to warm up, then twice for its time."""
    count = len(episodes)
    candidates = [Plan("loop", 1)] + [Plan("vmap", chunk) for chunk in sorted({min(8, count), count}) if chunk > 1]
    seconds = {plan: _time(Engine(learner, plan, autocast), episodes) for plan in candidates}
    return min(candidates, key=lambda plan: seconds[plan])


def _time(engine: Engine, episodes: Sequence[Episode]) -> float:
    best = float("inf")
    for attempt in range(3):
        began = time.perf_counter()
        for chunk in chunks(episodes, engine.plan):
            engine(chunk).loss.backward()
        if episodes[0].query.inputs.is_cuda:
            torch.cuda.synchronize()
        if attempt:
            best = min(best, time.perf_counter() - began)
    engine.learner.zero_grad(set_to_none=True)
    return best
