"""A shelf of runs and what each of them did on many tasks of a family: measured, kept as JSON, read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline import build, restore, table
from pipeline import candidates as rivals
from pipeline.candidates import Candidate, Outcome
from pipeline.chooser import Task, task_of
from pipeline.config import parse
from pipeline.data.index import Index
from pipeline.data.loader import Reader, frozen
from pipeline.data.sampler import Sampler
from pipeline.data.shards import Shards
from pipeline.episode import Batch
from pipeline.errors import InputError
from pipeline.evaluate import write
from pipeline.learners.learner import Learner
from pipeline.meta_features import SIDE, meta_features
from pipeline.restore import Restored
from pipeline.side_by_side import on_all_threads
from pipeline.table import Column
from pipeline.task_family import Family, range_of

FORMAT = 1
FILE = "chooser.json"
LEAST_TASKS = 20
Progress = Callable[[int, int], None]


class Shelf(NamedTuple):
    """Candidates, the family and the data that they were measured on, and the rows of the table: what a chooser's folder holds.

    The regressors are not kept: they follow from the rows.
    """

    candidates: Sequence[Candidate]
    family: Family
    seed: int
    data: Sequence[tuple[str, str]]
    """(root, split) of each data set."""
    tasks: Sequence[Task]

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "format": FORMAT,
            "family": self.family.told(),
            "seed": self.seed,
            "data": [{"root": root, "split": split} for root, split in self.data],
            "candidates": [{**own._asdict(), "checkpoint": str(own.checkpoint)} for own in self.candidates],
            "tasks": [task.as_json() for task in self.tasks],
        }


def measured(
    found: Sequence[Candidate], data: Sequence[Column], family: Family, *, tasks: int, seed: int, progress: Progress
) -> list[Task]:
    """What every candidate does on so many tasks, shared out over the data sets in turns; `progress(done, total)` counts runs.

    Raises:
        InputError: a run was trained on classes of the tasks, or takes other images; the data have too few classes or samples.
    """
    if tasks < max(LEAST_TASKS, 2 * len(data)):
        raise InputError(f"--tasks {tasks}: too few to say who is good at what; give at least {LEAST_TASKS}")
    runs = list(rivals.by_run(found))
    samplers = [sampler_of(column, family, seed) for column in data]
    opened = {(path, at): rivals.opened(path, column.index) for path, _ in runs for at, column in enumerate(data)}
    for path, _ in runs:
        table.check_unseen(path, parse(dict(restore.subject_of(path).config), str(path)), data)
    counts = [len(range(at, tasks, len(data))) for at in range(len(data))]
    rows: list[list[Task]] = []
    for at, (column, sampler, count) in enumerate(zip(data, samplers, counts, strict=True)):
        features = [own for _, own in sorted(_features(sampler, range(count)))]
        by_task: list[dict[int, Outcome]] = [{} for _ in range(count)]
        for done, (path, places) in enumerate(runs):
            progress(at * len(runs) + done, len(data) * len(runs))
            for number, outcomes in _outcomes(opened[path, at], sampler, range(count)):
                by_task[number] |= dict(zip(places, outcomes, strict=True))
        in_order = ([told[place] for place in range(len(found))] for told in by_task)
        rows.append([Task(column.name, own, told) for own, told in zip(features, in_order, strict=True)])
    progress(len(data) * len(runs), len(data) * len(runs))
    return [rows[number % len(data)][number // len(data)] for number in range(tasks)]


def sampler_of(column: Column, family: Family, seed: int) -> Sampler:
    """What draws the tasks of a data set.

    Raises:
        InputError: it holds features, or too few classes or samples.
    """
    if column.index.encoder:
        raise InputError(f"{column.root} holds features; name data that hold images")
    return Sampler(column.index, column.split, family, seed=seed, turns=False)


def _features(sampler: Sampler, numbers: Iterable[int]) -> list[tuple[int, dict[str, float]]]:
    reader, size = plain_reader(sampler.index)
    found = []
    for number in numbers:
        draw = sampler.draw(0, number)
        found.append((number, meta_features(support_of(reader, draw.support), len(draw.classes), size=size)))
    return found


def plain_reader(index: Index) -> tuple[Reader, float]:
    """What reads images for their meta-features, whatever runs make of them, and the side of the first one, as packed."""
    height, width, _ = index.shape(0)
    return Reader(Shards(index), invert=False, size=SIDE, channels=1), (height * width) ** 0.5


def support_of(reader: Reader, by_class: Sequence[np.ndarray]) -> Batch:
    """The samples of these rows of every class, labelled by its place."""
    rows = np.concatenate(by_class).tolist()
    reader.shards.bring(rows, reader.modalities)
    inputs = reader.inputs(rows, (reader.stored(row) for row in rows), [0] * len(rows))
    return Batch(inputs, torch.arange(len(by_class)).repeat_interleave(torch.tensor([len(own) for own in by_class])))


def _outcomes(restored: Restored, sampler: Sampler, numbers: Sequence[int]) -> list[tuple[int, list[Outcome]]]:
    """What a run's candidates do on each task, on all threads of this process."""
    reader = reader_of(restored)

    def work(learner: Learner, own: Iterable[int]) -> list[tuple[int, list[Outcome]]]:
        episodes = frozen(sampler, reader, own)
        return [(number, rivals.outcomes(learner, rivals.placed(restored.config, each))) for number, each in episodes]

    return on_all_threads(restored.learner, work, numbers)


def reader_of(restored: Restored) -> Reader:
    """What reads images as a run takes them."""
    return build.reader(restored.config, restored.index, restored.channels)


def shelve(
    targets: Sequence[Path],
    runs: Path,
    data: Sequence[Column],
    family: Family,
    *,
    tasks: int,
    seed: int,
    progress: Progress,
) -> Shelf:
    """Measure runs on tasks of a family.

    Raises:
        InputError: as `candidates.candidates` and `measured`.
    """
    found = rivals.candidates(targets, runs, family)
    rows = measured(found, data, family, tasks=tasks, seed=seed, progress=progress)
    return Shelf(found, family, seed, [(str(column.root.absolute()), column.split) for column in data], rows)


def check_new(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        InputError: it does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {folder}: there is something already; name a new folder, or use it with --from")


def keep(shelf: Shelf, folder: Path) -> Path:
    """Write a shelf as the folder of a chooser.

    Raises:
        InputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(shelf.as_json(), folder / FILE)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}; name a folder that can be written") from error
    return folder


def read(folder: Path) -> Shelf:
    """The shelf in a chooser's folder, all of whose checkpoints are as they were measured.

    Raises:
        InputError: it is none, of another format or damaged, or a checkpoint is gone or has changed.
    """
    path = folder / FILE
    try:
        told = json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            f"--from {folder}: no {FILE} there; make one with metashard choose model RUN RUN --data DATA --out DIR"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: no JSON ({error}); measure the runs again") from error
    version = told.get("format") if isinstance(told, dict) else None
    if version != FORMAT:
        raise InputError(f"{path}: format {version}, and this version reads {FORMAT}; measure the runs again")
    try:
        found = [Candidate(**{**own, "checkpoint": Path(own["checkpoint"])}) for own in told["candidates"]]
        tasks = [task_of(own) for own in told["tasks"]]
        ways, shots, queries = (told["family"][key] for key in ("ways", "shots", "queries"))
        family = Family(range_of(f"{path}: ways", ways, least=2), range_of(f"{path}: shots", shots, least=1), queries)
        data = [(own["root"], own["split"]) for own in told["data"]]
        seed = told["seed"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); measure the runs again") from error
    if not tasks or any(len(task.outcomes) != len(found) for task in tasks):
        raise InputError(
            f"{path}: damaged: not every task has an outcome of each of {len(found)} candidates; measure the runs again"
        )
    for candidate in found:
        _check_same(candidate, folder)
    return Shelf(found, family, seed, data, tasks)


def _check_same(candidate: Candidate, folder: Path) -> None:
    try:
        is_same = rivals.identity(candidate.checkpoint) == candidate.sha256
    except OSError as error:
        raise InputError(
            f"--from {folder}: {candidate.checkpoint}, which it may recommend, is gone; bring it back, or measure the runs again"
        ) from error
    if not is_same:
        raise InputError(
            f"--from {folder}: {candidate.checkpoint} has changed since it was measured; measure the runs again"
        )
