"""The Ray session: join a cluster or start one on this machine, and see beforehand that the workers can be had."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TypeVar

from pipeline.errors import InputError

Progress = Callable[[int, int], None]
Result = TypeVar("Result")
_LOOK_S = 0.2
ONE_CPU = MappingProxyType({"CPU": 1.0})


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def connected(workers: int, *, each: Mapping[str, float] = ONE_CPU, wait_s: float = 0) -> Iterator[None]:
    """A Ray session with room for `workers`; one that was started here ends with the block, one that was joined stays.

    `each` is what a worker takes of "CPU" and "GPU". `RAY_ADDRESS` names a cluster to join; its nodes may still be on their
    way, for `wait_s` seconds at most.

    Raises:
        InputError: the cluster has less than the workers take, so that training would wait for ever.
    """
    import ray  # takes a second, which a run in one process need not pay

    if ray.is_initialized():
        _check(workers, each, 0)
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local" and workers * each["CPU"] > cpus():
        raise InputError(_lack(workers, each, "CPU", cpus(), "this machine") + ", or set RAY_ADDRESS")
    # Ray's notices say nothing that a user of metashard can act on; a worker's error arrives as an exception.
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise InputError(
            f"RAY_ADDRESS = {address}: no cluster answers there ({error}); start one or unset it"
        ) from error
    try:
        _check(workers, each, 0 if address == "local" else wait_s)
        yield
    finally:
        ray.shutdown()


def told_of_session() -> dict[str, str]:
    """By what id Ray knows this process, and the nodes of its cluster, as tags of a run."""
    import ray

    nodes = [f"{node['NodeManagerHostname']}:{node['NodeID']}" for node in ray.nodes() if node["Alive"]]
    return {"ray.job": ray.get_runtime_context().get_job_id(), "ray.nodes": " ".join(sorted(nodes))}


def _check(workers: int, each: Mapping[str, float], wait_s: float) -> None:
    import ray

    limit = time.monotonic() + wait_s
    while True:
        have = ray.cluster_resources()
        lacking = [kind for kind, amount in each.items() if workers * amount > have.get(kind, 0)]
        if not lacking:
            return
        if time.monotonic() >= limit:
            waited = f" after {wait_s:g} s" if wait_s else ""
            said = _lack(workers, each, lacking[0], have.get(lacking[0], 0), "the cluster", waited)
            raise InputError(f"{said}, or add nodes")
        time.sleep(_LOOK_S)


def _lack(workers: int, each: Mapping[str, float], kind: str, have: float, where: str, waited: str = "") -> str:
    size = "" if each == ONE_CPU else f" of {each[kind]:g} {kind}s each"
    return (
        f"{workers} workers{size} were asked for, but {where} has {have:g} {kind}s{waited}; "
        "lower workers.count or --workers"
    )


def each(
    function: Callable[..., Result], calls: Sequence[tuple], *, workers: int, progress: Progress = silent
) -> list[Result]:
    """`function(*call)` for every call, in this process or as Ray tasks of one CPU each, at most two for every worker under way;
    results in the order of the calls. `progress(done, total)` counts them.

    Raises:
        InputError: that of the first call that has one.
    """
    found: dict[int, Result] = {}
    if workers == 1 or len(calls) < 2:
        for number, call in enumerate(calls):
            found[number] = function(*call)
            progress(len(found), len(calls))
        return list(found.values())
    import ray
    from ray.exceptions import RayTaskError

    with connected(workers):
        remote = ray.remote(num_cpus=1, max_retries=2)(function)
        waiting, running = list(enumerate(calls))[::-1], {}
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                number, call = waiting.pop()
                running[remote.remote(*call)] = number
            for reference in ray.wait(list(running))[0]:
                try:
                    found[running.pop(reference)] = ray.get(reference)
                except RayTaskError as error:
                    # Ray would tell the error in the words of its traceback.
                    if isinstance(error.cause, InputError):
                        raise InputError(str(error.cause)) from error
                    raise
                progress(len(found), len(calls))
    return [found[number] for number in range(len(calls))]
