"""Runs a function on several ranks: real processes, a gloo group, no Ray."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT_S = 120
# What ranks need is imported once, by the process that they are forked from: seconds for each of them otherwise.
PRELOADED = ["torch._dynamo", "pipeline.worker"]


def on_ranks(world: int, function: Callable[..., Any], *args) -> list[Any]:
    """`function(*args)` on every rank; the results in the order of the ranks. The function must be importable."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(world)]
        ranks = [
            context.Process(target=_rank, args=(n, world, f"file://{folder}/store", pipes[n][1], function, args))
            for n in range(world)
        ]
        for process in ranks:
            process.start()
        try:
            results = []
            for receiver, _ in pipes:
                assert receiver.poll(LIMIT_S), "a rank did not answer"
                results.append(receiver.recv())
            for process in ranks:
                process.join(LIMIT_S)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                    process.join()
    failed = [result for result in results if isinstance(result, BaseException)]
    if failed:
        raise failed[0]
    return results


def _rank(number: int, world: int, store: str, pipe: Any, function: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=number, world_size=world)
    try:
        pipe.send(function(*args))
    except BaseException as error:
        pipe.send(error)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def work_here(config: dict[str, Any], run: str) -> None:
    """One worker of a run, as under Ray."""
    from pipeline.archive import Folder
    from pipeline.worker import Job, work

    Path(run, "checkpoints").mkdir(parents=True, exist_ok=True)
    with Folder(Path(run)) as archive:
        work(Job(config, archive), device=torch.device("cpu"))
