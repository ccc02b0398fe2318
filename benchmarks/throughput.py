"""Claim: a meta-step of ours takes less time than the fastest plain loop over tasks, than TorchOpt and than higher.

Second-order MAML, 5-way: conv4-64 on 28 × 28 pixels, resnet12 on 32 × 32; 1-way segmentation by a U-Net on 64 × 64. All
contenders have the same weights, the same episodes in memory, all threads of one process and the same outer optimizer. They
must agree on the meta-gradient in float64 before anything is timed; then they take turns, so that a disturbance of the
machine hits all of them alike.

With `--spent` it says what part of the plain loop's time are convolutions, which all contenders have to compute alike.

With `--loading` the episodes of the first setting come from raw tars while it trains: ours through the project's loader, the
faster of the plain loops through torch's DataLoader, which reads the same draws from the same tars in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from contenders import WAYS, Contender, Setting, contenders, episodes_of, ours, plain, timed
from torch.utils.data import DataLoader, Dataset

from pipeline import prepare
from pipeline.data.loader import Loader, Reader
from pipeline.data.sampler import Sampler
from pipeline.data.shapes import Shape
from pipeline.data.shards import Shards
from pipeline.episode import Episode

LOADED_STEPS = 12
"""Meta-steps of a turn in which episodes are loaded, so that what was read ahead before it weighs little."""
PREFETCHED = 2
"""Meta-batches that either loader reads ahead."""


SETTINGS = (
    Setting("Omniglot MAML: stride, 1 query, meta-batch 32", "stride", 1, 32, 0.4),
    Setting("max-pool, 15 queries, meta-batch 4", "max_pool", 15, 4, 0.01),
    Setting("resnet12 on 32 × 32, 1 query, meta-batch 4", "resnet12", 1, 4, 0.01),
    Setting("segmentation, U-Net-16 on 64 × 64, 5 queries, meta-batch 4", "unet", 5, 4, 0.1, width=16),
)
MATRIX = tuple(
    # Without steps nothing is compiled: twelve compilations take longer than all the rest.
    Setting(f"{model}, {shots} shot, {inner} inner steps", model, shots, batch, 0.01, shots, inner, width, steps=0)
    for model, batch, width in (("stride", 16, 64), ("max_pool", 4, 64), ("resnet12", 2, 16))
    for shots in (1, 5)
    for inner in (1, 5)
)


def check(setting: Setting, *, libraries: bool) -> None:
    """Stop unless all contenders compute the same meta-gradient in float64."""
    episodes, gradients = episodes_of(setting, torch.float64), []
    for contender in contenders(setting, torch.float64, libraries=libraries):
        timed(contender, episodes)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in contender.parameters]))
        error = ((gradients[-1] - gradients[0]).norm() / gradients[0].norm()).item()
        assert error < 1e-8, f"the meta-gradient of {contender.name} differs from ours by {error:.1e}"


def run(setting: Setting, repeats: int, *, libraries: bool = True) -> None:
    """Check, time in turns, print the table; the first turn warms up and does not count."""
    check(setting, libraries=libraries)
    episodes, rivals = episodes_of(setting, torch.float32), contenders(setting, torch.float32, libraries=libraries)
    outers = [torch.optim.Adam(rival.parameters, lr=1e-3) for rival in rivals]
    seconds: list[list[float]] = [[] for _ in rivals]
    for turn in range(repeats + 1):
        for place in range(len(rivals)):
            at = (turn + place) % len(rivals)
            seconds[at].append(timed(rivals[at], episodes, outers[at]))
    tell(setting, setting.name, [rival.name for rival in rivals], seconds)


def spent(setting: Setting) -> None:
    """What share of a plain loop's operations, by their own time on the CPU, are convolutions. All else done in no time would
    make it faster by one over that share; more can only come from convolutions that use the threads better. Ours is not in the
    table: the profiler does not see threads side by side."""
    episodes = episodes_of(setting, torch.float32)
    print(f"\n{setting.name}; {torch.get_num_threads()} threads")
    print(f"{'':40}{'convolutions':>14}{'at most':>12}")
    for contender in contenders(setting, torch.float32, libraries=False)[1:]:
        timed(contender, episodes)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            timed(contender, episodes)
        own = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
        share = sum(value for key, value in own.items() if "conv" in key) / sum(own.values())
        print(f"{contender.name:40}{share:14.0%}{1 / share:10.2f} ×", flush=True)


def tell(setting: Setting, title: str, names: Sequence[str], seconds: Sequence[Sequence[float]]) -> None:
    """The table of seconds per meta-step, by contender and turn; the first turn does not count, the first contender is ours."""
    print(f"\n{title}; {torch.get_num_threads()} threads, {len(seconds[0]) - 1} repeats")
    print(f"{'':40}{'meta-steps/s':>14}{'episodes/s':>12}{'ours is':>12}   (middle half of the pairs)")
    for name, column in zip(names, seconds, strict=True):
        median = statistics.median(column[1:])
        ratios = [theirs / own for theirs, own in zip(column[1:], seconds[0][1:], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rates = f"{1 / median:14.2f}{setting.batch / median:12.1f}"
        print(f"{name:40}{rates}{middle:10.2f} ×   ({low:.2f} – {high:.2f})", flush=True)


class Stored(NamedTuple):
    """Where the episodes of a setting lie."""

    sampler: Sampler
    reader: Reader
    batch: int


class MetaBatches(Dataset):
    """Whole meta-batches for torch's DataLoader, the first of them that of meta-step `first`."""

    def __init__(self, stored: Stored, first: int):
        self.stored, self.first = stored, first

    def __len__(self) -> int:
        return LOADED_STEPS

    def __getitem__(self, step: int) -> list[Episode]:
        sampler, reader, batch = self.stored
        return [reader.episode(sampler.draw(self.first + step, number)) for number in range(batch)]


def with_loader(stored: Stored, first: int) -> Iterator[list[Episode]]:
    """Meta-batches as `metashard train` gets them."""
    sampler, reader, batch = stored
    last = first + LOADED_STEPS
    with Loader(sampler, reader, batch=batch, rank=0, world=1, depth=PREFETCHED) as loader:
        for step in range(first, last):
            yield loader.share(step, last=last).episodes


def with_dataloader(stored: Stored, first: int) -> Iterable[list[Episode]]:
    """The same meta-batches as others get them: one more process reads ahead."""
    options = {"batch_size": None, "num_workers": 1, "prefetch_factor": PREFETCHED, "collate_fn": list}
    return DataLoader(MetaBatches(stored, first), **options)


def loaded_step(contender: Contender, batches: Iterable[list[Episode]], outer: torch.optim.Optimizer) -> float:
    """Seconds per meta-step with loading, from when the first meta-batch is there, as in the middle of a run."""
    began, steps = 0.0, 0
    for episodes in batches:
        began = began or time.perf_counter()
        timed(contender, episodes, outer)
        steps += 1
    return (time.perf_counter() - began) / steps


def run_loaded(setting: Setting, repeats: int, *, classes: int, each: int) -> None:
    """Ours and the faster plain loop, each with episodes from memory and from tars, in turns."""
    from loading import glyph_folder

    base, episodes = ours(setting, torch.float32), episodes_of(setting, torch.float32)
    loops = [plain(setting, base, layout) for layout in (torch.contiguous_format, torch.channels_last)]
    loop = min(loops, key=lambda loop: min(timed(loop, episodes) for _ in range(3)))
    outers = {rival.name: torch.optim.Adam(rival.parameters, lr=1e-3) for rival in (base, loop)}
    with tempfile.TemporaryDirectory(prefix="metashard-") as folder:
        source = glyph_folder(Path(folder) / "images", classes, each)
        index = prepare.pack(str(source), Path(folder) / "data", layout="folder", size=setting.image[1], rule="train=1")
        shape = Shape(WAYS, setting.shots, setting.queries)
        stored = Stored(
            Sampler(index, "train", shape, seed=0, turns=False), Reader(Shards(index), False, None), setting.batch
        )
        feeds = (("loader", base, with_loader), ("DataLoader", loop, with_dataloader))
        first = [next(iter(feed(stored, 0)))[0].query.inputs for _, _, feed in feeds]
        assert torch.equal(*first), "the loaders do not give the same episodes"
        rows = [(f"{rival.name}, {name}", rival, feed) for name, rival, feed in feeds]
        rows += [(f"{rival.name}, memory", rival, lambda *_: [episodes] * LOADED_STEPS) for _, rival, _ in feeds]
        seconds: list[list[float]] = [[] for _ in rows]
        for turn in range(repeats + 1):
            for place in range(len(rows)):
                at = (turn + place) % len(rows)
                _, rival, feed = rows[at]
                seconds[at].append(loaded_step(rival, feed(stored, turn * LOADED_STEPS), outers[rival.name]))
    tell(setting, f"{setting.name}, loading from raw tars", [name for name, *_ in rows], seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--matrix", action="store_true", help="12 cases, model × shots × inner steps, against the plain loop"
    )
    parser.add_argument("--model", help="only the settings of this model, as unet")
    parser.add_argument("--loading", action="store_true", help="the first setting with episodes from tars")
    parser.add_argument("--spent", action="store_true", help="the share of convolutions instead of the time")
    parser.add_argument("--quick", action="store_true", help="tiny sizes on one thread, to see that it works")
    arguments = parser.parse_args()
    if arguments.loading and not arguments.quick:
        run_loaded(SETTINGS[0], arguments.repeats, classes=200, each=20)
        return
    if not arguments.quick:
        for setting in MATRIX if arguments.matrix else SETTINGS:
            if arguments.model not in (None, setting.model):
                continue
            if arguments.spent:
                spent(setting)
            else:
                run(setting, arguments.repeats, libraries=not arguments.matrix)
        return
    torch.set_num_threads(1)
    for setting in SETTINGS[:1] if arguments.loading else SETTINGS:
        tiny = setting._replace(name=f"{setting.name}, made tiny", width=4, queries=1, batch=2, steps=0)
        if arguments.spent:
            spent(tiny)
        elif arguments.loading:
            run_loaded(tiny, repeats=2, classes=6, each=4)
        else:
            run(tiny, repeats=2)


if __name__ == "__main__":
    main()
