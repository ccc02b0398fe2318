"""Claim: `metashard train` reaches its first meta-step soon after a bare Ray Train run reaches its loop.

Wall seconds from the start of the process to the end of the first meta-step, of the recipe for glyphs with 2 Ray
workers and with 1 worker in the process itself; beside it, in turns, a bare Ray Train run with 2 workers: from the
start of the process to the first line of the first worker's loop. Every run ends by itself before the next one starts.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "configs/train/classification/glyphs.yaml"
# All of this comes after the first meta-step and ends the run soon; a small data set may have 12 samples a class.
SHORT = ("meta.steps=1", "validation.episodes=2", "evaluate.episodes=2", "evaluate.queries=5")
WORKERS = 2
LONGEST_S = 600


def bare(folder: Path) -> None:
    """A Ray Train run of a loop that does nothing but tell the time; in a process of its own."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop(settings: dict) -> None:
        now_s = time.time()
        Path(settings["folder"], f"began-{ray.train.get_context().get_world_rank()}").write_text(str(now_s))

    ray.init(address="local", logging_level=logging.ERROR, log_to_driver=False)
    TorchTrainer(
        loop,
        train_loop_config={"folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=WORKERS),
        run_config=RunConfig(name="bare", storage_path=str(folder)),
    ).fit()
    ray.shutdown()


def timed(command: list[str], arrived_s: Callable[[], float]) -> float:
    """Run a command to its end; seconds from its start to what `arrived_s` reads from the files it left."""
    began_s = time.time()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return arrived_s() - began_s


def of_bare() -> float:
    """Until the first worker of the bare run is in its loop."""
    with tempfile.TemporaryDirectory(prefix="metashard-") as folder:
        place = Path(folder)
        return timed(
            [sys.executable, __file__, "--bare", folder],
            lambda: min(float(path.read_text()) for path in place.glob("began-*")),
        )


def of_train(data: Path, workers: int) -> float:
    """Until the first meta-step of `metashard train` is done and in the run's spool."""
    with tempfile.TemporaryDirectory(prefix="metashard-") as folder:
        settings = [f"runs={folder}", f"data.root={data}", f"workers.count={workers}", *SHORT]
        return timed(
            [sys.executable, "-m", "pipeline.cli", "train", str(RECIPE), *settings],
            lambda: first_step_s(next(Path(folder).glob("*/spool.jsonl"))),
        )


def first_step_s(spool: Path) -> float:
    """When the first training loss was written, seconds since 1970."""
    records = map(json.loads, spool.read_text().splitlines())
    return next(record["t"] for record in records if "train/loss" in record.get("values", {})) / 1000


def packed(place: Path) -> Path:
    """A small data set, for where the embedded one is not packed yet."""
    from loading import glyph_folder

    from pipeline import prepare

    glyph_folder(place / "images", 200, 12)
    rule = "train=0.6,val=0.2,test=0.2"
    return prepare.pack(str(place / "images"), place / "data", layout="folder", size=None, rule=rule).root


def on_data(data: Path, compare: Callable[[Path, int], None], repeats: int) -> None:
    """Compare on a packed data set, or on a small one where that is not there."""
    if (data / "index" / "manifest.json").exists():
        compare(data.absolute(), repeats)
        return
    with tempfile.TemporaryDirectory(prefix="metashard-") as folder:
        compare(packed(Path(folder)), repeats)


def compare(data: Path, repeats: int) -> None:
    """Run the three in turns and print medians, differences and whether the bounds are met."""
    runs: dict[str, Callable[[], float]] = {
        f"bare Ray Train, {WORKERS} workers": of_bare,
        f"metashard, {WORKERS} Ray workers": lambda: of_train(data, WORKERS),
        "metashard, 1 worker in process": lambda: of_train(data, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in sorted(runs, reverse=bool(turn % 2)):
            seconds[name].append(runs[name]())
            print(f"{turn + 1}/{repeats} {name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    first, many, one = seconds
    later = [ours - theirs for ours, theirs in zip(seconds[many], seconds[first], strict=True)]
    print(f"medians of {repeats} repeats, seconds from the start of the process")
    print(f"{first:32}{statistics.median(seconds[first]):8.1f}   to the loop")
    print(f"{many:32}{statistics.median(seconds[many]):8.1f}   to the first meta-step")
    tell("  later than the bare run", statistics.median(later), 10)
    tell(one, statistics.median(seconds[one]), 8)


def tell(name: str, value_s: float, bound_s: float) -> None:
    """A line with a bound."""
    print(f"{name:32}{value_s:8.1f}   bound {bound_s} s: {'met' if value_s <= bound_s else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data/glyphs", help="a packed data set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one repeat, to see that it works")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        bare(arguments.bare)
        return
    on_data(arguments.data, compare, 1 if arguments.quick else arguments.repeats)


if __name__ == "__main__":
    main()
