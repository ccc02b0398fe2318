"""What ranks tell one another; a process without a group is the only rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which one this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather(values: Sequence[float], device: torch.device) -> Tensor:
    """Every rank's values, on every rank: float64 (world, len(values)) on the CPU."""
    own = torch.tensor(list(values), dtype=torch.float64, device=device)
    if not dist.is_initialized():
        return own[None].cpu()
    table = [torch.empty_like(own) for _ in range(world())]
    dist.all_gather(table, own)
    return torch.stack(table).cpu()


def add(tensor: Tensor) -> Tensor:
    """The sum of the ranks' tensors, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def told_by_first(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized():
        return value
    told = [value]
    dist.broadcast_object_list(told)
    return told[0]
