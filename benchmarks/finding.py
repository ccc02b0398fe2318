"""Claim: an adapted detector tells more objects rightly by the scores that its support chooses than by one for all classes.

From a folder of labelled images supports are drawn; all the other images are asked about. F1 at IoU 0.5, mean over the classes:
with `SURE` for every class, with the scores from images of the support that were left out in turn (`metashard adapt`), and with
those that would have been best on the images asked about, which nobody can know. Means over supports with 95 % intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline import adapt
from pipeline.judging import score
from pipeline.tasks.coco import MOST, Found, judged
from pipeline.tasks.detection import Detection, surest
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.calibration import SURE
from pipeline.teaching.reading import support_of
from pipeline.teaching.support import Support, chosen


def f1(predictions: Tensor, targets: Tensor, least: Sequence[float]) -> float:
    """Mean over the classes that have objects, if detections from each class's score on are told."""
    tallies, ways = Detection().tally(predictions, targets), range(len(least))
    told = []
    for found in judged(
        [Found(own[:MOST], own[MOST:, :5], ways) for own in tallies], [0] * len(tallies), thresholds=(0.5,)
    ):
        is_told = found.scores >= least[found.name]
        hits, alarms, objects = found.hits[0][is_told].sum(), found.alarms[0][is_told].sum(), found.objects.sum()
        if objects > 0:
            told.append(2 * hits / (hits + alarms + objects))
    return torch.stack(told).mean().item()


def drawn(every: Support, shots: int, seed: int) -> Tensor | None:
    """Which samples are a support; None where a class would lack."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.zeros(len(every.inputs), dtype=torch.bool)
    picked[torch.randperm(len(picked), generator=generator)[:shots]] = True
    return picked if every.members()[picked].any(0).all() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="run or checkpoint of detection")
    parser.add_argument("images", type=Path, help="folder of labelled images, as `metashard adapt --support` reads it")
    parser.add_argument("--layout", default="")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--shots", type=int, default=5, help="images of a support")
    parser.add_argument("--supports", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="three supports")
    asked = parser.parse_args()
    learner = adapt.source_of(asked.run, asked.runs).assembled()
    every = support_of(asked.images, learner, layout=asked.layout).support
    rows = []
    for seed in range(3 if asked.quick else asked.supports):
        if (picked := drawn(every, asked.shots, seed)) is not None:
            model, rest = Adapted(learner, chosen(every, picked), origin={}), chosen(every, ~picked)
            told, same = model.scores(rest.inputs), [SURE] * every.ways
            best = surest(told, rest.targets, otherwise=SURE)
            one, own, most = (f1(told, rest.targets, least) for least in (same, model.sure, best))
            rows.append([100 * value for value in (one, own, own - one, most)])
    means = [score(column) for column in zip(*rows, strict=True)]
    print(f"| supports | {SURE} for all | its own | gain, paired | best |\n|---|---|---|---|---|")
    print(f"| {len(rows)} | {' | '.join(f'{found.mean:.1f} ± {found.interval:.1f}' for found in means)} |")


if __name__ == "__main__":
    main()
