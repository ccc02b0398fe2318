"""The Ray session: join a cluster or start one on this machine, and see beforehand that the workers can be had."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.errors import InputError

_LOOK_S = 0.2


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def connected(workers: int, *, wait_s: float = 0) -> Iterator[None]:
    """A Ray session with room for `workers`; one that was started here ends with the block, one that was joined stays.

    `RAY_ADDRESS` names a cluster to join; its nodes may still be on their way, for `wait_s` seconds at most.

    Raises:
        InputError: the cluster has fewer CPUs than workers, so that training would wait for ever.
    """
    import ray  # takes a second, which a run in one process need not pay

    if ray.is_initialized():
        _check(workers, 0)
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
        _check(workers, 0 if address == "local" else wait_s)
        yield
    finally:
        ray.shutdown()


def _check(workers: int, wait_s: float) -> None:
    import ray

    limit = time.monotonic() + wait_s
    while workers > (have := int(ray.cluster_resources().get("CPU", 0))):
        if time.monotonic() >= limit:
            waited = f" after {wait_s:g} s" if wait_s else ""
            raise InputError(
                f"{workers} workers were asked for, but the cluster has {have} CPUs{waited}; "
                "lower workers.count or --workers, or add nodes"
            )
        time.sleep(_LOOK_S)


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
