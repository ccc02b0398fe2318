"""The verb `choose model`: learn from a shelf of runs which is good at what, judge that, and recommend one for a support set."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import candidates as rivals
from pipeline import chooser, prepare, shelf
from pipeline.candidates import Answer, Candidate
from pipeline.chooser import Chooser
from pipeline.data.index import Index
from pipeline.data.mixture import seen
from pipeline.data.root import root_of
from pipeline.data.sampler import classes_of
from pipeline.episode import Episode
from pipeline.errors import InputError
from pipeline.evaluate import write
from pipeline.judging import Score, score
from pipeline.meta_features import meta_features
from pipeline.shelf import Progress, Shelf
from pipeline.table import Column

CHOSEN, BEST, HELD_OUT, ORACLE = "chosen", "best on average", "held out alone", "oracle"
SPLIT = "support"


class Judgement(NamedTuple):
    """Accuracy by task of what was chosen, of the best on average, of whoever told most samples left out, and of the oracle."""

    kind: str
    best: str
    data: Sequence[str]
    """Of each task."""
    values: dict[str, list[float]]

    def rows(self, data: str | None = None) -> dict[str, tuple[Score, Score]]:
        """By way of choosing its score, and that of its differences from the best on average on the same tasks; of one data set,
        or of all."""
        told = [place for place, own in enumerate(self.data) if data in (None, own)]
        first = self.values[BEST]
        return {
            name: (score([own[at] for at in told]), score([own[at] - first[at] for at in told]))
            for name, own in self.values.items()
        }

    def as_json(self) -> dict[str, Any]:
        """All rows, over all tasks and by data set."""
        names = list(dict.fromkeys(self.data))
        return {
            "chooser": self.kind,
            "best_on_average": self.best,
            "tasks": len(self.data),
            "all": _told(self.rows()),
            **({"data": {name: _told(self.rows(name)) for name in names}} if len(names) > 1 else {}),
        }


def _told(rows: dict[str, tuple[Score, Score]]) -> dict[str, Any]:
    return {
        name: {
            "mean": own.mean,
            "interval": own.interval,
            "difference": apart.mean,
            "difference_interval": apart.interval,
        }
        for name, (own, apart) in rows.items()
    }


def fit(own: Shelf) -> Chooser:
    """The chooser that a shelf's tasks give."""
    return chooser.fit(own.candidates, own.tasks)


def judge(
    own: Shelf, data: Sequence[Column], *, tasks: int, seed: int, progress: Progress = lambda done, total: None
) -> Judgement:
    """Judge the chooser of a shelf on tasks of its family, of classes that no run was trained on and it was not fitted to.

    Raises:
        InputError: it was fitted to some of the classes, or as `shelf.measured`.
    """
    _check_new(own, data)
    rows = shelf.measured(own.candidates, data, own.family, tasks=tasks, seed=seed, progress=progress)
    return judged(fit(own), rows)


def judged(fitted: Chooser, tasks: Sequence[chooser.Task]) -> Judgement:
    """What a chooser's choices reach on tasks whose outcomes are known."""
    reached = chooser.accuracies_of(tasks)
    picks = {
        CHOSEN: fitted.choice(chooser.inputs_of(tasks)),
        BEST: np.full(len(tasks), fitted.best),
        HELD_OUT: chooser.by_held_out(tasks, fitted.best),
        ORACLE: reached.argmax(1),
    }
    values = {name: reached[np.arange(len(tasks)), own].tolist() for name, own in picks.items()}
    return Judgement(fitted.kind, fitted.candidates[fitted.best].name, [task.data for task in tasks], values)


def _check_new(own: Shelf, data: Sequence[Column]) -> None:
    for root, split in own.data:
        fitted = Index.without_shards(root_of(root))
        for column in data:
            if known := seen(fitted, split, column.index, column.split):
                raise InputError(
                    f"{column.root}, split {column.split!r}: the chooser was fitted to {len(known)} of its classes, first "
                    f"{known[0]!r}; name another split, as {column.root}:test"
                )


def keep_judgement(found: Judgement, folder: Path) -> Path:
    """Write a judgement beside the chooser's table."""
    path = folder / f"judged-{time.strftime('%Y%m%d-%H%M%S')}.json"
    write(found.as_json(), path)
    return path


class Recommendation(NamedTuple):
    """Candidates with their expected accuracies, the best first, and what to know of the support set."""

    ranked: Sequence[tuple[Candidate, float, Answer]]
    best_on_average: tuple[Candidate, float]
    features: Mapping[str, float]
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """All of it; `recommended` is the first of `ranked`."""
        ranked = [
            {**own.told(answer.settings), "expected_accuracy": expected, "held_out_accuracy": answer.held.accuracy}
            for own, expected, answer in self.ranked
        ]
        average, expected = self.best_on_average
        return {
            "recommended": ranked[0],
            "best_on_average": {"candidate": average.name, "expected_accuracy": expected},
            "ranked": ranked,
            "meta_features": dict(self.features),
            "notes": list(self.notes),
        }


def recommend(own: Shelf, folder: Path) -> Recommendation:
    """Which run to take, and how to adapt it, for the classes of a folder with a folder of images for each.

    Raises:
        InputError: the folder holds fewer than two classes, or images that a run cannot take.
    """
    with tempfile.TemporaryDirectory(prefix="metashard-support-") as place:
        packed = Path(place) / "support"
        index = prepare.pack(str(folder), packed, layout="folder", size=None, store="encoded", rule=f"{SPLIT}=1.0")
        return _recommended(own, folder, index)


def _recommended(own: Shelf, folder: Path, index: Index) -> Recommendation:
    by_class = [index.postings(int(number)) for number in classes_of(index, SPLIT)]
    ways = len(by_class)
    if ways < 2:
        raise InputError(f"--support {folder}: {ways} class; give a folder of images for each of at least two")
    reader, size = shelf.plain_reader(index)
    features = meta_features(shelf.support_of(reader, by_class), ways, size=size)
    answers: list[Answer | None] = [None] * len(own.candidates)
    for path, places in rivals.by_run(own.candidates):
        restored = rivals.opened(path, index)
        support = shelf.support_of(shelf.reader_of(restored), by_class)
        episode = rivals.placed(restored.config, Episode(support, support, ways))
        for at, answer in zip(places, rivals.answers(restored.learner, episode.support, ways), strict=True):
            answers[at] = answer
    told = [answer for answer in answers if answer is not None]
    fitted = fit(own)
    (expected,) = fitted.expected(np.array([chooser.described(features, [answer.held for answer in told])]))
    order = sorted(range(len(told)), key=lambda at: (-expected[at], at))
    ranked = [(own.candidates[at], float(expected[at]), told[at]) for at in order]
    best = (own.candidates[fitted.best], float(expected[fitted.best]))
    return Recommendation(ranked, best, features, _notes(own, ways, [len(rows) for rows in by_class]))


def _notes(own: Shelf, ways: int, shots: Sequence[int]) -> list[str]:
    """How the support set is unlike the tasks that the chooser was fitted to."""
    found = []
    if not own.family.way_range.holds(ways):
        found.append(f"{ways} classes, and the chooser was fitted to tasks of {own.family.way_range}: expect less")
    if not all(own.family.shot_range.holds(count) for count in shots):
        found.append(
            f"{min(shots)} to {max(shots)} images of a class, and the chooser was fitted to {own.family.shot_range}: expect less"
        )
    return found
