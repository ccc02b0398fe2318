"""The verb `evaluate`: a learner's figures on frozen test episodes, the same for any number of workers."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from pipeline import build, checkpoint, session, spool, tracking
from pipeline.data.loader import frozen
from pipeline.data.sampler import Draw
from pipeline.data.shapes import LongTailed, Shaping
from pipeline.errors import InputError
from pipeline.judging import Judgement, Score, judged, pooled, score
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.learner import Learner, Mode
from pipeline.restore import Restored, Subject, out_of, restored, run_of, subjects_by_data
from pipeline.shipment import Target, read_json
from pipeline.side_by_side import on_all_threads
from pipeline.tasks.task import Pooled

MODES = (Mode.INDUCTIVE, Mode.TRANSDUCTIVE)


class Evaluation(NamedTuple):
    """Scores by mode and metric, with what they were measured on; `pooled` are figures that only all episodes together have.

    `drawn` are the ways of an episode and the shots of a class, on average. `inner_steps` is how many a gradient learner took on
    every episode, `metric` the task's headline.
    """

    scores: dict[Mode, dict[str, Score]]
    pooled: dict[Mode, dict[str, Pooled]]
    split: str
    shape: Shaping
    drawn: tuple[float, float]
    step: int
    inner_steps: int | None
    metric: str

    def as_json(self) -> dict[str, Any]:
        """The settings, and by mode and metric `mean`, `interval` (where there is one) and `episodes`."""
        told: dict[str, Any] = {"split": self.split, **self.shape.told()}
        if self.shape.cost is None:
            told |= dict(zip(("mean_ways", "mean_shots"), self.drawn, strict=True))
        told |= {"step": self.step, "inner_steps": self.inner_steps, "metric": self.metric}
        for mode, scores in self.scores.items():
            (episodes,) = {found.episodes for found in scores.values()}
            told[mode.value] = {name: found._asdict() for name, found in scores.items()}
            told[mode.value] |= {name: _told(found, episodes) for name, found in self.pooled[mode].items()}
        return told


def _told(found: Pooled, episodes: int) -> dict[str, Any]:
    told = {"mean": found.mean, "episodes": episodes}
    return told if found.interval is None else {**told, "interval": found.interval}


def evaluate(subject: Subject, *, split: str, episodes: int, workers: int) -> Evaluation:
    """Evaluate in both modes.

    Raises:
        InputError: as `measure`.
    """
    return summed(subject, *measure(subject, split=split, episodes=episodes, workers=workers), split=split)


def summed(subject: Subject, found: Restored, rows: Sequence[dict[Mode, Judgement]], *, split: str) -> Evaluation:
    """What the episodes that were measured say together."""
    by_mode = {mode: [row[mode] for row in rows] for mode in MODES}
    draws = draws_of(found, split, len(rows))
    classes = [draw.classes for draw in draws]
    shots = [fmean(len(own) for own in draw.support) for draw in draws]
    step = checkpoint.load(Path(subject.checkpoint)).step if subject.checkpoint else 0
    return Evaluation(
        {mode: _scores(own) for mode, own in by_mode.items()},
        {mode: pooled(found.learner.task, own, classes) for mode, own in by_mode.items()},
        split,
        build.sampler(found.config, found.index, split).shape,
        (fmean(map(len, classes)), fmean(shots)),
        step,
        found.learner.test_steps if isinstance(found.learner, GradientLearner) else None,
        found.learner.task.headline,
    )


def by_data(subject: Subject, *, split: str, episodes: int, workers: int) -> dict[str, Evaluation]:
    """As `evaluate`, on every data set that the run was trained on by itself, by name; the first is `data.root`.

    Raises:
        InputError: as `evaluate`, or they do not go together.
    """
    asked = {"split": split, "episodes": episodes, "workers": workers}
    return {name: evaluate(own, **asked) for name, own in subjects_by_data(subject).items()}


def draws_of(found: Restored, split: str, episodes: int) -> list[Draw]:
    """What each frozen episode is drawn from."""
    sampler = build.sampler(found.config, found.index, split)
    return [sampler.draw(0, number) for number in range(episodes)]


def _scores(judgements: Sequence[Judgement]) -> dict[str, Score]:
    names = judgements[0].metrics
    return {name: score([judgement.metrics[name] for judgement in judgements]) for name in names}


def measure(
    subject: Subject, *, split: str, episodes: int, workers: int, modes: Sequence[Mode] = MODES
) -> tuple[Restored, list[dict[Mode, Judgement]]]:
    """What the learner did on each frozen episode, in their order; on the threads of this process, or in `workers` Ray tasks.

    Every episode is judged alone, on one thread.

    Raises:
        InputError: the checkpoint is damaged, the data set has no such split or too few samples, or its images do not fit.
    """
    check(episodes=episodes, workers=workers)
    found = restored(subject)
    build.sampler(found.config, found.index, split)
    numbers = [list(range(episodes))[part::workers] for part in range(workers)]
    if workers == 1:
        parts = [_judged(found, split, modes, numbers[0])]
    else:
        # The nodes of the tasks need not have the folder of the checkpoint.
        files = checkpoint.files_of(Path(subject.checkpoint)) if subject.checkpoint else None
        parts = session.each(_part, [(subject, files, split, modes, own) for own in numbers], workers=workers)
    by_number = dict(pair for part in parts for pair in part)
    return found, [by_number[number] for number in range(episodes)]


def check(*, episodes: int, workers: int) -> None:
    """Refuse amounts with which nothing can be measured."""
    if episodes < 2:
        raise InputError(f"evaluate.episodes = {episodes}: an interval needs at least 2")
    if workers < 1:
        raise InputError(f"--workers {workers}: somebody must do the work; give 1 or more")


def _part(
    subject: Subject, files: checkpoint.Files | None, split: str, modes: Sequence[Mode], numbers: Sequence[int]
) -> list[tuple[int, dict[Mode, Judgement]]]:
    if files is None:
        return _judged(restored(subject), split, modes, numbers)
    with out_of(files, subject) as subject:
        return _judged(restored(subject), split, modes, numbers)


def _judged(
    found: Restored, split: str, modes: Sequence[Mode], numbers: Sequence[int]
) -> list[tuple[int, dict[Mode, Judgement]]]:
    config, index, learner, channels = found
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner.to(device)
    bring = build.place(config, device)
    by_shots = isinstance(build.sampler(config, index, split).shape, LongTailed)

    def judge(learner: Learner, numbers: Iterable[int]) -> list[tuple[int, dict[Mode, Judgement]]]:
        episodes = frozen(build.sampler(config, index, split), build.reader(config, index, channels), numbers)
        return list(judged(learner, episodes, modes=modes, place=bring, by_shots=by_shots))

    return on_all_threads(learner, judge, numbers)


def keep(evaluation: Evaluation, path: Path, name: str = "") -> Path | None:
    """Log an evaluation to the run whose checkpoint this is, and send it to the run's MLflow; where it is kept, if anywhere.

    `name` says on which of several data sets it was made.
    """
    run = run_of(path)
    if run is None:
        return None
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    on = f"{name}-" if name else ""
    kept = folder / f"{on}{evaluation.split}-{path.name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    write(evaluation.as_json(), kept)
    told = spool.Spool(run)
    settings = evaluation.shape.told()
    kind = f"{settings.pop('shape')}-" if "shape" in settings else ""
    ways, shots, queries, *others = settings.values()
    tail = "".join(f"-{name}{value:g}" for name, value in zip(list(settings)[3:], others, strict=True))
    usual = checkpoint.load(path).config["learner"]
    is_usual = evaluation.inner_steps in (None, usual.get("test_steps") or usual.get("steps"))
    for mode, metrics in evaluation.scores.items():
        (episodes,) = {found.episodes for found in metrics.values()}
        # A series has one value per step: what is measured otherwise has another name.
        shape = f"{kind}{ways}way-{shots}shot-{queries}query{tail}-{episodes}episodes"
        shape += "" if is_usual else f"-{evaluation.inner_steps}steps"
        means = {name: found.mean for name, found in (metrics | evaluation.pooled[mode]).items()}
        start = f"evaluate/{on}{evaluation.split}-{shape}/{mode.value}"
        told.metrics(evaluation.step, {f"{start}/{name}": mean for name, mean in means.items()})
    told.artifact(kept, "evaluations")
    told.close()
    tracking.sync(run, uri=tracking.target_uri(run))
    return kept


def new_beside(path: Path, runs: Path, name: str) -> tuple[Path, Target]:
    """A fresh folder for what several runs say together, beside the run of the first one's checkpoint, and where it is tracked.

    `runs` is where it goes when that checkpoint lies in no run.

    Raises:
        InputError: the folder cannot be written.
    """
    first = run_of(path)
    root = runs if first is None else first.parent
    known = {} if first is None else read_json(first / tracking.TARGET_FILE)
    uri = known.get("uri") or tracking.default_uri(root)
    folder = root / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{root}: {error.strerror}; name a folder that can be written with --runs") from error
    return folder, Target(uri, known.get("experiment", tracking.EXPERIMENT), name)


def write(result: dict[str, Any], path: Path) -> None:
    """Results as JSON, replaced in one move."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(path)
