"""What ranks tell one another; a process without a group is the only rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class GroupEnded(RuntimeError):
    """The other ranks are gone."""


_had_group = False


def _has_group() -> bool:
    """Whether this process is one of several ranks.

    Raises:
        GroupEnded: it was, and its group is gone. Ray ends a group while ranks are still at work; one that went on as if
            it were alone would take its share of a meta-batch for the whole, and might save that.
    """
    global _had_group
    if dist.is_initialized():
        _had_group = True
    elif _had_group:
        raise GroupEnded("the group of workers was ended")
    return _had_group


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if _has_group() else 1


def rank() -> int:
    """Which one this is."""
    return dist.get_rank() if _has_group() else 0


def gather(values: Sequence[float], device: torch.device) -> Tensor:
    """Every rank's values, on every rank: float64 (world, len(values)) on the CPU."""
    own = torch.tensor(list(values), dtype=torch.float64, device=device)
    if not _has_group():
        return own[None].cpu()
    table = [torch.empty_like(own) for _ in range(world())]
    dist.all_gather(table, own)
    return torch.stack(table).cpu()


def add(tensor: Tensor) -> Tensor:
    """The sum of the ranks' tensors, in place."""
    if _has_group():
        dist.all_reduce(tensor)
    return tensor


def told_by_first(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not _has_group():
        return value
    told = [value]
    dist.broadcast_object_list(told)
    return told[0]
