"""Curves and tables of a run, out of what its evaluation measured: each a picture with its numbers beside it."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import build, spool
from pipeline.build_shape import evaluation_shape
from pipeline.data.index import Index
from pipeline.data.loader import frozen
from pipeline.data.shapes import in_words
from pipeline.judging import Judgement, Place, score
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.learner import Learner, Mode
from pipeline.pictures.classes import Bar, classes_picture, confusion_picture
from pipeline.pictures.curves import (
    Line,
    adaptation_curve,
    loss_curve,
    precision_recall_picture,
    roc_picture,
    scores_picture,
)
from pipeline.schema.run import RunConfig
from pipeline.tasks import roc
from pipeline.tasks.classification import confusion
from pipeline.tasks.detection import recall_curves
from pipeline.tasks.segmentation import foreground_curve
from pipeline.tasks.verification import trials

FOLDER = "pictures"
"""Where they are, in a run's folder or a sweep's."""
CURVE_EPISODES = 50
"""Of the test episodes, how many the curve of adaptation is a mean over."""
IOUS = (0.5, 0.75)
BINS, TAIL = 60, 0.002
"""Bins of scores, and what share of all scores lies beyond them on either side, counted in the outermost."""
MOST_POINTS = 2000
"""Of a receiver operating characteristic, in the file beside its picture."""


Make = Callable[[Path], list[Path]]
"""Draws into a PNG file, writes the numbers beside it, and says what it made."""


class Measured(NamedTuple):
    """What an evaluation found in the mode by which checkpoints are chosen: a judgement for each test episode, and the classes of
    the data set that it is about. `bring` takes an episode to where the learner is."""

    config: RunConfig
    index: Index
    learner: Learner
    bring: Place
    mode: Mode
    judgements: Sequence[Judgement]
    classes: Sequence[Sequence[int]]

    @property
    def tallies(self) -> Tensor:
        """Of all episodes, (episodes, …)."""
        return torch.stack([judgement.tally for judgement in self.judgements])

    @property
    def counts(self) -> Tensor:
        """Of all episodes, (episodes, …)."""
        return torch.stack([judgement.counts for judgement in self.judgements])

    @property
    def title(self) -> str:
        """What was measured, in words."""
        shape = evaluation_shape(self.config)
        return f"{len(self.judgements)} episodes, {in_words(shape.told())}, {self.mode.value}"


def drawn(pictures: Iterable[tuple[str, Make]], folder: Path, *, again: str) -> list[Path]:
    """Draw pictures, each by its name, into a folder; the files made.

    One that cannot be drawn costs the run nothing: it is left out with a warning on stderr, which names the command that tries
    `again`.
    """
    made: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in pictures:
        try:
            made += make(folder / f"{name}.png")
        # Whatever goes wrong here, what was measured is kept.
        except Exception as error:
            said = str(error).partition("\n")[0]
            print(
                f"warning: {folder / name}.png could not be drawn ({type(error).__name__}: {said}); {again} tries again",
                file=sys.stderr,
            )
    return made


def table(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write numbers as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
    return path


def losses(path: Path, run: Path, metric: str) -> list[Path]:
    """Training loss and validation by meta-step, as far as they were logged."""
    series = spool.history(run).series
    found, scores = series["train/loss"], series.get("validation/score", {})
    intervals = series.get("validation/interval", {})
    validation = list(scores), list(scores.values()), [intervals.get(step, np.nan) for step in scores]
    rows = [
        (step, found.get(step, ""), scores.get(step, ""), intervals.get(step, ""))
        for step in sorted(found.keys() | scores.keys())
    ]
    head = ("step", "train_loss", f"validation_{metric}", "interval")
    return [
        loss_curve(path, list(found), list(found.values()), validation, metric=metric),
        table(path.with_suffix(".csv"), head, rows),
    ]


def adaptation(path: Path, measured: Measured, learner: GradientLearner, floor: float) -> list[Path]:
    """The headline against inner steps on the first test episodes."""
    config, index, mode = measured.config, measured.index, measured.mode
    sampler, reader = build.sampler(config, index, config.data.test), build.reader(config, index)
    rows = []
    for _, plain in frozen(sampler, reader, range(min(CURVE_EPISODES, len(measured.judgements)))):
        episode = measured.bring(plain)
        rows.append(
            [
                learner.task.verdict(predict(episode.query.inputs), episode.query.targets).item()
                for predict in learner.predictors(episode.support, episode.ways, mode=mode)
            ]
        )
    scores = [score(column) for column in zip(*rows, strict=True)]
    steps, means, spreads = range(len(scores)), [each.mean for each in scores], [each.interval for each in scores]
    metric = learner.task.headline
    return [
        adaptation_curve(path, steps, means, spreads, floor, metric=metric),
        table(path.with_suffix(".csv"), ("inner_steps", metric, "interval"), zip(steps, means, spreads, strict=True)),
    ]


def characteristic(path: Path, measured: Measured) -> list[Path]:
    """How well scores tell persons apart: genuine pairs accepted against impostors accepted."""
    far, tar = (side.numpy() for side in roc.curve_of(trials(measured.tallies)))
    last = len(far) - 1
    # Where few are accepted every point counts, so as many lie there as along the rest.
    fine = np.geomspace(1, last + 1, MOST_POINTS // 2) - 1
    kept = np.unique(np.concatenate([fine, np.linspace(0, last, MOST_POINTS // 2)]).round().astype(int))
    rows = zip(far[kept].tolist(), tar[kept].tolist(), strict=True)
    return [
        roc_picture(path, (far, tar), title=measured.title),
        table(path.with_suffix(".csv"), ("false_acceptance", "true_acceptance"), rows),
    ]


def scores(path: Path, measured: Measured) -> list[Path]:
    """How scores of genuine trials and of impostors are spread, with the threshold at which as many of both are wrong."""
    found = trials(measured.tallies)
    values = found.scores.numpy()
    low, high = np.quantile(values, (TAIL, 1 - TAIL)).tolist()
    edges = np.linspace(low, high, BINS + 1)
    genuine, impostor = (
        np.histogram(np.clip(values[side], edges[0], edges[-1]), edges)[0] / side.sum()
        for side in (found.genuine.numpy(), ~found.genuine.numpy())
    )
    own, other = (values[side.numpy()] for side in (found.genuine, ~found.genuine))
    levels = np.unique(values)
    rejected = np.searchsorted(np.sort(own), levels) / len(own)
    accepted = 1 - np.searchsorted(np.sort(other), levels) / len(other)
    threshold = float(levels[np.abs(rejected - accepted).argmin()])
    rows = zip(edges[:-1].tolist(), edges[1:].tolist(), genuine.tolist(), impostor.tolist(), strict=True)
    return [
        scores_picture(path, edges, genuine, impostor, threshold, title=measured.title),
        table(path.with_suffix(".csv"), ("from", "to", "genuine", "impostor"), rows),
    ]


def detected(path: Path, measured: Measured) -> list[Path]:
    """COCO's precision over recall, mean over the classes, for two thresholds of IoU."""
    curves = recall_curves(measured.tallies, measured.classes, IOUS).tolist()
    recall = np.linspace(0, 1, len(curves[0]))
    lines = [
        Line(f"IoU ≥ {iou:g}, AP {100 * np.mean(curve):.1f} %", recall, curve)
        for iou, curve in zip(IOUS, curves, strict=True)
    ]
    head = ("recall", *(f"precision_at_iou_{iou:g}" for iou in IOUS))
    return [
        precision_recall_picture(path, lines, title=measured.title),
        table(path.with_suffix(".csv"), head, zip(recall.tolist(), *curves, strict=True)),
    ]


def foreground(path: Path, measured: Measured) -> list[Path]:
    """Precision over recall of the pixels of all classes together, by the probability that they are no ground."""
    counts = measured.counts
    recall, precision = (side.tolist() for side in foreground_curve(counts))
    ground, front = counts.sum((0, 2)).tolist()
    thresholds = np.linspace(1, 0, len(recall) + 1)[1:].tolist()
    rows = zip(thresholds, recall, precision, strict=True)
    return [
        precision_recall_picture(
            path,
            [Line("pixels of all classes together", recall, precision)],
            title=measured.title,
            floor=front / (ground + front),
        ),
        table(path.with_suffix(".csv"), ("probability_from", "recall", "precision"), rows),
    ]


def by_class(path: Path, measured: Measured, *, metric: str) -> list[Path]:
    """The task's figure of every class of the test split that an episode was about."""
    found = measured.learner.task.by_class(measured.tallies, measured.classes)
    names = measured.index.class_names
    bars = [
        Bar(names[number], told.mean, told.interval, sum(number in own for own in measured.classes))
        for number, told in found.items()
    ]
    mean = float(np.nanmean([bar.value for bar in bars]))
    rows = [
        (bar.name, bar.value, "" if bar.interval is None else bar.interval, bar.episodes)
        for bar in sorted(bars, key=lambda bar: (-bar.value, bar.name))
    ]
    return [
        classes_picture(path, bars, mean, metric=metric, title=measured.title),
        table(path.with_suffix(".csv"), ("class", metric, "interval", "episodes"), rows),
    ]


def confused(path: Path, measured: Measured) -> list[Path]:
    """Which classes are taken for which."""
    numbers, shares = confusion([judgement.counts for judgement in measured.judgements], measured.classes)
    names = [measured.index.class_names[number] for number in numbers]
    rows = (
        (names[row], names[column], shares[row, column].item()) for row, column in (~shares.isnan()).nonzero().tolist()
    )
    return [
        confusion_picture(path, names, shares.numpy(), title=measured.title),
        table(path.with_suffix(".csv"), ("class", "taken_for", "share"), rows),
    ]
