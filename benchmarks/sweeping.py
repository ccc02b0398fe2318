"""Claims: a trial costs little beside its meta-steps; successive halving finds the same best in half the time; past sweeps help.

Everything is configs/sweep/glyphs-maml.yaml with other keys, which are all in this file, with their seeds. Two trials at a time.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pipeline import sweep, sweep_plan
from pipeline.config import read
from pipeline.ledger import FILE, Trial, events, trials_of
from pipeline.session import connected
from pipeline.sweeping import BEST_FILE, trained_s

CONFIG = Path(__file__).parents[1] / "configs/sweep/glyphs-maml.yaml"
SEEDS = (0, 1, 2)
REDUCTIONS = (4, 3)
"""Of how many trials successive halving lets one go on; its first rung is at `GRACE` meta-steps."""
GRACE = 5
PAST_SEED = 100
SHORT = {"meta.steps": 20, "meta.batch": 8, "validation.episodes": 60, "validation.every": 20}
"""Keys of the sweeps that warm starts are measured with; past ones are on Omniglot and on CIFAR-FS, new ones on the glyphs."""


def swept(name: str, runs: Path, **changes: Any) -> Path:
    """The folder of a sweep with these keys, made unless it is there."""
    tree = read(CONFIG, [f"{key}={value}" for key, value in changes.items()])
    tree["evaluate"]["episodes"] = 100
    tree |= {"name": name, "runs": str(runs.absolute())}
    if not (runs / name / BEST_FILE).exists():
        sweep.sweep(sweep_plan.plan_of(tree, name), tell=print, resume=runs / name if (runs / name).exists() else None)
    return runs / name


def overheads(folder: Path) -> list[float]:
    """Seconds of each trial but those of its meta-steps, in the order in which they began; the first of each actor left out."""
    trials = sorted(trials_of(folder).values(), key=lambda trial: trial.number)
    return [trial.seconds - trained_s(folder / "trials" / f"{trial.number:04d}") for trial in trials[2:]]


def reached(folder: Path, value: float) -> tuple[float, float]:
    """Seconds from the first trial's begin until a trial had this value (nan: never), and until the last one ended."""
    lines = [event for _, event in events(folder / FILE)]
    began = next(event["t"] for event in lines if event["event"] == "begun")
    first = [event["t"] for event in lines if event["event"] == "value" and float(event["value"]) >= value]
    ended = max(event["t"] for event in lines if event["event"] == "ended")
    return (min(first) - began if first else float("nan")), ended - began


def best(trials: Sequence[Trial]) -> float:
    return max(score for trial in trials if (score := trial.score("max")) is not None)


def halving(runs: Path, seeds: Sequence[int]) -> None:
    """Successive halving against none."""
    print("| seed | one of | best | halved: best | s to it, whole | halved: s to it, whole | ratio |")
    print("|---|---|---|---|---|---|---|")
    for seed, reduction in itertools.product(seeds, REDUCTIONS):
        plain = swept(f"plain-{seed}", runs, **{"sweep.seed": seed})
        scheduler = {"kind": "asha", "grace": GRACE, "reduction": reduction}
        halved = swept(f"halved-{reduction}-{seed}", runs, **{"sweep.seed": seed, "sweep.scheduler": scheduler})
        most, other = best(list(trials_of(plain).values())), best(list(trials_of(halved).values()))
        (to, whole), (to_halved, whole_halved) = reached(plain, most), reached(halved, most)
        times = f"{to:.0f}, {whole:.0f} | {to_halved:.0f}, {whole_halved:.0f}"
        ratios = f"{to / to_halved:.2f}, {whole / whole_halved:.2f}"
        print(f"| {seed} | {reduction} | {100 * most:.2f} % | {100 * other:.2f} % | {times} | {ratios} |")


def overhead(runs: Path, seeds: Sequence[int]) -> None:
    """What trials take besides their meta-steps, validated twice."""
    for seed in seeds:
        found = overheads(swept(f"seldom-{seed}", runs, **{"sweep.seed": seed, "validation.every": 15}))
        print(f"seed {seed}: a trial less its meta-steps: median {median(found):.2f} s, largest {max(found):.2f} s")


def warm(runs: Path, seeds: Sequence[int], others: dict[str, str]) -> None:
    """Trials until the cold sweep's best is reached, with and without points of past sweeps."""
    for name, root in others.items():
        # CIFAR-FS may be packed without its test classes, which nothing here asks about.
        swept(f"past-{name}", runs, **SHORT, **{"data.root": root, "data.test": "val", "sweep.seed": PAST_SEED})
    print("| seed | cold best | trials to it, cold | warm | warm best | points from |")
    print("|---|---|---|---|---|---|")
    for seed in seeds:
        cold = swept(f"cold-{seed}", runs, **SHORT, **{"sweep.seed": seed})
        asked = {"sweep.seed": seed, "sweep.warm": {"points": 3, "sweeps": [f"past-{name}" for name in others]}}
        warmed = swept(f"warm-{seed}", runs, **SHORT, **asked)
        trials = {
            folder: sorted(trials_of(folder).values(), key=lambda trial: trial.number) for folder in (cold, warmed)
        }
        goal = best(trials[cold])
        counts = [
            next((str(n + 1) for n, t in enumerate(trials[f]) if (t.score("max") or 0) >= goal), "never")
            for f in (cold, warmed)
        ]
        origins = {trial.origin for trial in trials[warmed]} - {"search"}
        other = best(trials[warmed])
        print(
            f"| {seed} | {100 * goal:.2f} % | {counts[0]} | {counts[1]} | {100 * other:.2f} % | {', '.join(origins)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("halving", "overhead", "warm"))
    parser.add_argument("--runs", type=Path, default=Path("runs/sweeping"))
    parser.add_argument("--past", action="append", default=[], help="NAME=packed data set of a past sweep")
    parser.add_argument("--quick", action="store_true", help="one seed")
    asked = parser.parse_args()
    seeds = SEEDS[:1] if asked.quick else SEEDS
    with connected(2):
        if asked.what == "halving":
            halving(asked.runs, seeds)
        elif asked.what == "overhead":
            overhead(asked.runs, seeds)
        else:
            warm(asked.runs, seeds, dict(text.split("=", 1) for text in asked.past))


if __name__ == "__main__":
    main()
