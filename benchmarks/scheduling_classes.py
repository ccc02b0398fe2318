"""Claim to be tried: which classes share a training episode matters (hard: alike; diverse: unlike), against uniform episodes.

Prototypes on a strided conv4-32 are trained with each schedule and several seeds, on as many episodes of the same shape, and all
are measured on the same frozen episodes of classes never trained on. A difference is from the uniform run of the same seed,
episode by episode; its interval over seeds is that of a mean of so few (Student's t): that one says what another seed would do.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from pipeline import checkpoint, compare, evaluate, restore, train
from pipeline.config import parse
from pipeline.judging import Score, score
from pipeline.learners.learner import Mode

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}
"""Student's t at 97.5 % by the number of seeds."""


def config(asked: argparse.Namespace, schedule: dict[str, Any], seed: int, runs: Path) -> dict[str, Any]:
    """A run; what is not said is the same for all."""
    data = {"root": str(asked.data), "ways": asked.ways, "shots": 1, "queries": 5, "schedule": schedule}
    data |= {"rotations": asked.rotations, "invert": asked.invert, "test": asked.split}
    steps = 2 if asked.quick else asked.steps
    return {
        "name": "scheduling",
        "seed": seed,
        "runs": str(runs),
        "data": data,
        "model": {"kind": "conv4", "width": 32, "downsample": "stride", "features": "flatten"},
        "learner": {"kind": "prototype"},
        "meta": {
            "steps": steps,
            "batch": 2,
            "optimizer": {"kind": "adam", "lr": 2.0e-3},
            "schedule": {"kind": "cosine", "floor": 0.01},
        },
        # Nothing is chosen by validation: the last checkpoint is measured.
        "validation": {"every": steps, "episodes": 2},
        "checkpoint": {"every": steps},
        "evaluate": {"ways": 5, "shots": 1, "queries": 5 if asked.quick else 15, "episodes": 2},
        "engine": {"mode": "loop"},
        "workers": {"threads": 1},
    }


def schedules(asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is compared, by name; uniform first."""
    extra = {"share": asked.share, "reach": asked.reach}
    found: dict[str, dict[str, Any]] = {"uniform": {"kind": "uniform"}}
    for kind in ("difficulty", "diversity"):
        found[f"{kind}, pixels"] = {"kind": kind, **extra}
        if asked.by is not None:
            found[f"{kind}, features"] = {"kind": kind, **extra, "by": str(asked.by)}
    return found


def over_seeds(values: list[float]) -> str:
    """Their mean and its 95 % interval."""
    width = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{100 * statistics.fmean(values):+.2f} ± {100 * width:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a packed data set")
    parser.add_argument("--by", type=Path, help="features of its samples, to compare classes by these too")
    parser.add_argument("--split", default="val", help="what is measured")
    parser.add_argument("--ways", type=int, default=10, help="of training episodes")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--reach", type=float, default=0.1)
    parser.add_argument("--rotations", action="store_true")
    parser.add_argument("--invert", action="store_true")
    parser.add_argument("--seeds", type=int, default=3, choices=T_95)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--quick", action="store_true", help="two steps, to see that it works")
    asked = parser.parse_args()
    episodes = 4 if asked.quick else asked.episodes
    print(f"{asked.data}: {asked.ways}-way training, share {asked.share:g}, reach {asked.reach:g}, {asked.seeds} seeds")
    print("| schedule | accuracy by seed | less uniform, by seed (episodes) | less uniform, over seeds |")
    print("|---|---|---|---|", flush=True)
    base: list[list[float]] = []
    with tempfile.TemporaryDirectory() as place:
        for name, schedule in schedules(asked).items():
            found = []
            for seed in range(asked.seeds):
                made = train.fit(parse(config(asked, schedule, seed, Path(place)), name))
                last = checkpoint.latest(made.folder / "checkpoints").step
                subject = restore.subject_of(made.folder / "checkpoints" / f"step-{last:08d}")
                _, rows = evaluate.measure(
                    subject, split=asked.split, episodes=episodes, workers=1, modes=(Mode.INDUCTIVE,)
                )
                found.append([row[Mode.INDUCTIVE].metrics["accuracy"] for row in rows])
            base = base or found
            gains: list[Score] = [compare.paired(own, first).difference for own, first in zip(found, base, strict=True)]
            accuracies = ", ".join(str(score(own)) for own in found)
            less = (
                [", ".join(map(str, gains)), over_seeds([gain.mean for gain in gains])]
                if found is not base
                else ["–", "–"]
            )
            print(f"| {name} | {accuracies} | {' | '.join(less)} |", flush=True)


if __name__ == "__main__":
    main()
