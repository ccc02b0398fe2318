"""Claim: two workers of one thread do nearly twice the meta-steps of one; how far that goes with 1 to 64 nodes.

Second-order MAML with DDP over gloo, in processes of their own; one worker and two take turns. What two cores cannot show
is told by a model that is fitted to what they can: a meta-step of W workers of one thread, one to a node, takes

    compute  a + ceil(episodes / W) * b          a, b fitted to one worker with several meta-batches, a process alone
    waiting  compute * s * sqrt(2 ln W)          the slowest of W, s the relative spread of a worker's meta-steps
    reducing 2 (W - 1) l + 2 (W - 1) / W * g * t ring all-reduce of g bytes of gradient: latency l, seconds per byte t
    or reading, episodes / W * r, where that is longer: it is done ahead by a thread of its own

It assumes that nodes are alike and do not share a core or a disk, that each reads from its own cache, that the network
gives every node its bandwidth at the same time, and that nothing of the all-reduce hides behind the backward (DDP hides some).
What it says of two workers is compared with two that were measured, with the latency and bandwidth measured between them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from contenders import Setting, episodes_of, maml
from loading import glyph_folder
from throughput import SETTINGS
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import spawn

from pipeline import prepare, ranks
from pipeline.data.index import Index
from pipeline.data.loader import Reader
from pipeline.data.sampler import Sampler, assign
from pipeline.data.shapes import Shape
from pipeline.data.shards import Shards
from pipeline.engine import Engine, Plan
from pipeline.loop import meta_step, wrap

BOUND = 1.8
NODES = (1, 2, 4, 8, 16, 32, 64)
SIZES = (4_000, 400_000, 4_000_000, 40_000_000)
"""Bytes that are reduced to fit latency and bandwidth."""


class Link(NamedTuple):
    """What carries the gradients: seconds of a message without content, and of each byte."""

    name: str
    latency_s: float
    byte_s: float


NETWORKS = (Link("10 Gbit/s, 50 µs", 50e-6, 8 / 10e9), Link("100 Gbit/s, 10 µs", 10e-6, 8 / 100e9))


class Fit(NamedTuple):
    """What a worker needs for a meta-step of one model, in seconds, and the bytes of its gradient."""

    step_s: float
    episode_s: float
    spread: float
    gradient: int
    read_s: float

    def predicted_s(self, workers: int, episodes: int, link: Link) -> float:
        """Seconds of a meta-step."""
        share = math.ceil(episodes / workers)
        compute = self.step_s + share * self.episode_s
        waiting = compute * self.spread * math.sqrt(2 * math.log(workers))
        reducing = 2 * (workers - 1) * (link.latency_s + self.gradient * link.byte_s / workers)
        return max(compute + waiting + reducing, share * self.read_s)


def on_workers(world: int, work: Callable[..., list[float]], *given: object) -> list[float]:
    """What `work` gives on rank 0 of so many processes of one thread."""
    told = get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        spawn(_ranked, (world, f"{folder}/store", work, given, told), nprocs=world)
    return told.get()


def _ranked(
    rank: int, world: int, store: str, work: Callable[..., list[float]], given: tuple, told: SimpleQueue
) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = work(*given)
    if rank == 0:
        told.put(found)
    if world > 1:
        dist.destroy_process_group()


def meta_steps(setting: Setting, steps: int) -> list[float]:
    """Seconds of each meta-step on this rank's share of the meta-batch."""
    learner = maml(setting)
    engine = Engine(learner, Plan("vmap", 8 if setting.model == "stride" else 1))
    module, optimizer = wrap(engine), torch.optim.Adam(learner.parameters())
    episodes = episodes_of(setting, torch.float32)
    share = [episodes[number] for number in assign([1] * setting.batch, ranks.world())[ranks.rank()]]
    seconds = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        meta_step(module, engine, share, scale=ranks.world() / setting.batch)
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return seconds[2:]


def reductions(times: int) -> list[float]:
    """Median seconds of an all-reduce of each of `SIZES`."""
    medians = []
    for size in SIZES:
        values, seconds = torch.zeros(size // 4), []
        for _ in range(times):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(values)
            seconds.append(time.perf_counter() - began)
        medians.append(statistics.median(seconds))
    return medians


def link_here(times: int) -> Link:
    """What two processes of this machine have between them."""
    slope, start = np.polyfit(SIZES, on_workers(2, reductions, times), 1)
    # Two ranks send half of the bytes twice, and a message each time.
    return Link("measured, two processes", max(0.0, start) / 2, max(0.0, slope))


def reading_s(episodes: int) -> float:
    """Seconds that a thread needs to read an episode of 5 ways, 1 shot, 1 query from raw tars."""
    with tempfile.TemporaryDirectory() as folder:
        glyph_folder(Path(folder, "images"), 60, 12)
        packed = prepare.pack(
            f"{folder}/images", Path(folder, "data"), layout="folder", size=28, rule="train=0.6,val=0.2,test=0.2"
        )
        index = Index.open(packed.root)
        sampler, reader = (
            Sampler(index, "train", Shape(5, 1, 1), seed=0, turns=False),
            Reader(Shards(index), False, None),
        )
        reader.episode(sampler.draw(0, 0))
        began = time.perf_counter()
        for number in range(episodes):
            reader.episode(sampler.draw(1, number))
        return (time.perf_counter() - began) / episodes


def fitted(setting: Setting, batches: Sequence[int], steps: int, read_s: float) -> Fit:
    """The model's constants from one worker."""
    seconds = {batch: on_workers(1, meta_steps, setting._replace(batch=batch), steps) for batch in batches}
    medians = {batch: statistics.median(found) for batch, found in seconds.items()}
    slope, start = np.polyfit(list(medians), list(medians.values()), 1)
    # The middle half, as a standard deviation of a normal spread: one step that the machine was away for is no property of it.
    quarters = statistics.quantiles(seconds[max(batches)], n=4)
    spread = (quarters[2] - quarters[0]) / 1.349 / medians[max(batches)]
    gradient = sum(4 * parameter.numel() for parameter in maml(setting).parameters())
    return Fit(max(0.0, float(start)), float(slope), spread, gradient, read_s)


def tell(setting: Setting, fit: Fit, here: Link, steps: int, turns: int) -> None:
    """One worker and two in turns, what the model says of two, and its table."""
    pairs = [
        [statistics.median(on_workers(world, meta_steps, setting, steps)) for world in (1, 2)] for _ in range(turns)
    ]
    alone, both = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / two for one, two in pairs)
    said = fit.predicted_s(2, setting.batch, here)
    one, two, model = (f"{setting.batch / seconds:.1f}" for seconds in (alone, both, said))
    costs = f"{1e3 * fit.step_s:.1f} ms a meta-step, {1e3 * fit.episode_s:.1f} ms an episode, spread {100 * fit.spread:.1f} %"
    print(
        f"\n{setting.name}: {costs}, gradient {fit.gradient / 1e6:.2f} MB, reading {1e3 * fit.read_s:.2f} ms an episode"
    )
    print(f"episodes/s: one worker {one}, two {two}: {ratio:.2f} × (bound {BOUND})")
    print(f"two by the model {model}: {100 * (said / both - 1):+.0f} % of the time measured\n")
    heads = [f"{link.name}: {kind}" for link in NETWORKS for kind in ("meta-batch fixed", "grows")]
    print("| nodes | " + " | ".join(heads) + " |\n|---" + "|---" * len(heads) + "|")
    for nodes in NODES:
        cells = []
        for link in NETWORKS:
            for episodes in (setting.batch, setting.batch * nodes):
                if episodes < nodes:
                    cells.append("–")
                    continue
                rate = episodes / fit.predicted_s(nodes, episodes, link)
                ideal = nodes * setting.batch / fit.predicted_s(1, setting.batch, link)
                cells.append(f"{rate:,.0f} ({100 * rate / ideal:.0f} %)")
        print(f"| {nodes} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15, help="meta-steps a turn")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it works")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = 2 if arguments.quick else arguments.steps
    here = link_here(3 if arguments.quick else 50)
    print(f"{here.name}: {1e6 * here.latency_s:.0f} µs, {1e-6 / max(here.byte_s, 1e-12):,.0f} MB/s")
    read_s = reading_s(20 if arguments.quick else 500)
    for setting, batches in ((SETTINGS[0], (8, 16, 24, 32)), (SETTINGS[2], (1, 2, 4))):
        chosen = setting._replace(width=4, batch=4, name=f"{setting.name}, made tiny") if arguments.quick else setting
        fit = fitted(chosen, (1, 4) if arguments.quick else batches, steps, read_s)
        tell(chosen, fit, here, steps, 1 if arguments.quick else arguments.turns)


if __name__ == "__main__":
    main()
