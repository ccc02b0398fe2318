"""The Ray session: join a cluster or start one on this machine, and see beforehand that the workers can be had."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.errors import InputError


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def connected(workers: int) -> Iterator[None]:
    """A Ray session with room for `workers`; one that was started here ends with the block, one that was joined stays.

    `RAY_ADDRESS` names a cluster to join.

    Raises:
        InputError: the cluster has fewer CPUs than workers, so that training would wait for ever.
    """
    import ray  # takes a second, which a run in one process need not pay

    if ray.is_initialized():
        _check(workers)
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local" and workers > cpus():
        raise InputError(
            f"{workers} workers were asked for, but this machine has {cpus()} CPUs; "
            "lower workers.count or --workers, or set RAY_ADDRESS"
        )
    # Ray's notices say nothing that a user of metashard can act on; a worker's error arrives as an exception.
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise InputError(
            f"RAY_ADDRESS = {address}: no cluster answers there ({error}); start one or unset it"
        ) from error
    try:
        _check(workers)
        yield
    finally:
        ray.shutdown()


def _check(workers: int) -> None:
    import ray

    have = int(ray.cluster_resources().get("CPU", 0))
    if workers > have:
        raise InputError(
            f"{workers} workers were asked for, but the cluster has {have} CPUs; lower workers.count or --workers, or add nodes"
        )


def each(function: Callable[..., Any], calls: Sequence[tuple], *, workers: int) -> list[Any]:
    """`function(*call)` for every call, as Ray tasks of one CPU each; results in the order of the calls."""
    import ray
    from ray.exceptions import RayTaskError

    with connected(workers):
        remote = ray.remote(num_cpus=1, max_retries=2)(function)
        try:
            return ray.get([remote.remote(*call) for call in calls])
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise
