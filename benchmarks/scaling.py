"""Claim: two workers of one thread do nearly twice the meta-steps of one worker of one thread.

The Omniglot recipe (conv4-64, stride, 1 query, meta-batch 32, second order) with DDP over gloo, in processes of their own; one
worker and two take turns. `vmap` in chunks of 8 for both, so that only the number of workers differs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from multiprocessing.queues import SimpleQueue

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from throughput import SETTINGS, Setting, episodes_of, maml

from pipeline import ranks
from pipeline.data.sampler import assign
from pipeline.engine import Engine, Plan
from pipeline.loop import meta_step, wrap

BOUND = 1.8


def worker(rank: int, world: int, store: str, setting: Setting, steps: int, told: SimpleQueue) -> None:
    """Meta-steps on this rank's share of the meta-batch; rank 0 tells the median seconds of one."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    learner = maml(setting)
    engine = Engine(learner, Plan("vmap", 8))
    module, optimizer = wrap(engine), torch.optim.Adam(learner.parameters())
    episodes = episodes_of(setting, torch.float32)
    share = [episodes[number] for number in assign([1] * setting.batch, world)[rank]]
    seconds = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        meta_step(module, engine, share, scale=ranks.world() / setting.batch)
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        told.put(statistics.median(seconds[2:]))
    if world > 1:
        dist.destroy_process_group()


def timed(world: int, setting: Setting, steps: int) -> float:
    """Median seconds of a meta-step with so many workers."""
    told = processes.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(worker, (world, f"{folder}/store", setting, steps, told), nprocs=world)
    return told.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15, help="meta-steps a turn")
    arguments = parser.parse_args()
    pairs = [[timed(world, SETTINGS[0], arguments.steps) for world in (1, 2)] for _ in range(arguments.turns)]
    alone, together = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / two for one, two in pairs)
    print(f"1 worker: {1 / alone:.2f} meta-steps/s   2 workers: {1 / together:.2f} meta-steps/s")
    print(f"2 workers ÷ 1 worker: {ratio:.2f} (bound {BOUND})")


if __name__ == "__main__":
    main()
