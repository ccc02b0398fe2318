"""Claim: what a model that was adapted to a few images says of its own sureness is true: probabilities, and "unknown".

Episodes of twice as many classes as the learner is taught: it knows those of the first half, the others are strangers, and both
are asked about. Threshold and temperature come from each support alone, as in `metashard adapt`. Of every run: the area under
the ROC curve by which strangers are parted, by likeness and for comparison by the largest score and the largest probability; the
shares of known queries taken for unknown and of strangers taken for known; and the expected calibration error of all known
queries together, before and after. Means over episodes with 95 % intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pipeline import adapt, build
from pipeline.data.index import Index
from pipeline.data.loader import frozen
from pipeline.judging import score
from pipeline.tasks.classification import Classification
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.assembled import Assembled
from pipeline.teaching.support import Support

WAYS, QUERIES, EPISODES = 5, 10, 60


class Told(NamedTuple):
    """Of an episode: areas under the curves, errors of the threshold, sums for the calibration error."""

    by_likeness: float
    by_score: float
    by_probability: float
    known_refused: float
    strangers_taken: float
    raw: Tensor
    calibrated: Tensor


def episodes(learner: Assembled, root: Path, shots: int, split: str) -> Iterator[Told]:
    """What becomes of every frozen episode."""
    index = Index.open(root)
    tree = {"ways": 2 * WAYS, "shots": shots, "queries": QUERIES}
    config = learner.config.model_copy(update={"evaluate": learner.config.evaluate.model_copy(update=tree)})
    sampler, reader = build.sampler(config, index, split), learner.inputs.reader
    reader = reader._replace(shards=build.reader(config, index).shards)
    for _, episode in frozen(sampler, reader, range(EPISODES)):
        yield judged(
            learner, episode.support.inputs, episode.support.targets, episode.query.inputs, episode.query.targets
        )


def judged(learner: Assembled, support: Tensor, labels: Tensor, queries: Tensor, truths: Tensor) -> Told:
    own, known = labels < WAYS, truths < WAYS
    names = tuple(str(way) for way in range(WAYS))
    shown = Support(names, support[own], labels[own], tuple(str(number) for number in range(int(own.sum()))))
    model, task = Adapted(learner, shown, origin={}), Classification()
    scores, (likes, _) = model.scores(queries), model.likeness(queries)
    ways_to_part = (likes, scores.amax(1), scores.softmax(1).amax(1))
    least = model.calibration.threshold
    assert least is not None
    told = [task.tally(scores[known] / heat, truths[known]) for heat in (1.0, model.calibration.temperature)]
    parts = [float(roc_auc_score(known.numpy(), values.numpy())) for values in ways_to_part]
    refused, taken = (likes[known] < least).double().mean().item(), (likes[~known] >= least).double().mean().item()
    return Told(*parts, refused, taken, told[0], told[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="+", help="RUN=packed data set to ask about")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--split", default="val")
    asked = parser.parse_args()
    parts = "AUROC of likeness | of scores | of probabilities | known refused, % | strangers taken, %"
    print(f"| run, shots | {parts} | ECE, % | calibrated |")
    print("|---|---|---|---|---|---|---|---|")
    for name, root in (text.split("=", 1) for text in asked.subjects):
        learner = adapt.source_of(name, asked.runs).assembled()
        for shots in (1, 5):
            told = list(episodes(learner, Path(root), shots, asked.split))
            means = [score([each[place] * 100 for each in told]) for place in range(5)]
            cells = [f"{found.mean:.1f} ± {found.interval:.1f}" for found in means]
            errors = [
                100 * Classification().pooled(torch.stack([each[place] for each in told]), [])["calibration_error"].mean
                for place in (5, 6)
            ]
            print(f"| {name}, {shots} | {' | '.join(cells)} | {errors[0]:.1f} | {errors[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
