"""The verb `evaluate --table`: several runs on classes of several data sets, cell by cell, as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import ancestry, evaluate, restore, session, spool, tracking
from pipeline.config import parse
from pipeline.data.index import Index
from pipeline.data.mixture import seen
from pipeline.data.root import Root, root_of
from pipeline.data.sampler import classes_of
from pipeline.data.shapes import in_words
from pipeline.errors import InputError
from pipeline.judging import ranged
from pipeline.learners.learner import Mode
from pipeline.restore import Subject
from pipeline.schema.run import RunConfig
from pipeline.tracking import SyncReport

NAME = "table"
RESULT_FILE, TABLE_FILE = "table.json", "table.md"
Progress = Callable[[int, int], None]


class Column(NamedTuple):
    """A split of a data set, and what it is called."""

    name: str
    root: Root
    split: str
    index: Index


class Row(NamedTuple):
    """A run, and by column what `Evaluation.as_json` says of it."""

    name: str
    checkpoint: Path
    told: Mapping[str, Mapping[str, Any]]


class Table(NamedTuple):
    """Runs by data sets, all measured on as many episodes of one shape."""

    columns: Sequence[Column]
    rows: Sequence[Row]

    def as_json(self) -> dict[str, Any]:
        """The data sets and, run by run, what was found on each."""
        data = [
            {"name": c.name, "root": str(c.root), "split": c.split, "data_fingerprint": c.index.fingerprint}
            for c in self.columns
        ]
        runs = [{"run": r.name, "checkpoint": r.checkpoint.name, "data": dict(r.told)} for r in self.rows]
        return {"data": data, "runs": runs}

    def as_markdown(self) -> str:
        """A table for each mode: the headline with its 95 % interval, a row per run, a column per data set."""
        first = self.rows[0].told[self.columns[0].name]
        metric = first["metric"]
        blocks = []
        for mode in Mode:
            episodes = first[mode.value][metric]["episodes"]
            head = f"{metric} ± 95 %, {mode.value}, {in_words(first)}, {episodes} episodes"
            lines = [
                f"| {head} | {' | '.join(column.name for column in self.columns)} |",
                "|---" * (1 + len(self.columns)) + "|",
            ]
            for row in self.rows:
                cells = (ranged(metric, row.told[column.name][mode.value][metric]) for column in self.columns)
                lines.append(f"| {row.name} | {' | '.join(cells)} |")
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks) + "\n"


def columns(named: Sequence[str], split: str) -> list[Column]:
    """The data sets that a person names, each as DATA or DATA:SPLIT; `split` where none is said.

    Raises:
        InputError: one of them cannot be opened or has no such split, or two are the same.
    """
    found = []
    for text in named:
        before, colon, after = text.rpartition(":")
        has_split = bool(colon) and "/" not in after
        root, own = (root_of(before), after) if has_split else (root_of(text), split)
        index = Index.without_shards(root)
        classes_of(index, own)
        found.append(Column(f"{str(root).rstrip('/').rpartition('/')[2]} {own}", root, own, index))
    names = [column.name for column in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"--data: two of them are called {twice[0]!r}; name folders that are called differently")
    return found


def table(
    targets: Sequence[Path],
    runs: Path,
    *,
    data: Sequence[Column],
    episodes: int,
    workers: int,
    asked: Mapping[str, Any],
    test_steps: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Table:
    """Evaluate every run (or checkpoint) on every data set; `progress(done, total)` counts cells.

    Raises:
        InputError: a run has been trained on classes that it would be measured on, its episodes would be of another shape than
            those of the first, or it cannot be evaluated.
    """
    evaluate.check(episodes=episodes, workers=workers)
    paths = [restore.find(target, runs) for target in targets]
    subjects = [[_subject(path, column, asked, test_steps) for column in data] for path in paths]
    for path, own in zip(paths, subjects, strict=True):
        check_unseen(path, parse(dict(own[0].config), str(path)), data)
    rows, total = [], len(paths) * len(data)
    with session.connected(workers) if workers > 1 else nullcontext():
        for place, (target, path, own) in enumerate(zip(targets, paths, subjects, strict=True)):
            told = {}
            for number, (column, subject) in enumerate(zip(data, own, strict=True)):
                progress(place * len(data) + number, total)
                asks = {"split": column.split, "episodes": episodes, "workers": workers}
                told[column.name] = evaluate.evaluate(subject, **asks).as_json()
            run = restore.run_of(path)
            rows.append(Row(str(target) if run is None else run.name, path, told))
            _check_shape(rows[0], rows[-1], data[0].name)
        progress(total, total)
    return Table(data, rows)


def _subject(path: Path, column: Column, asked: Mapping[str, Any], test_steps: int | None) -> Subject:
    return restore.subject_of(path, data=column.root, asked=asked, test_steps=test_steps)


def check_unseen(path: Path, config: RunConfig, data: Sequence[Column]) -> None:
    """Refuse to measure a run on classes that it, or a run whose values went into it, was trained on."""
    for name, index, split in ancestry.trained(config):
        for column in data:
            if known := seen(index, split, column.index, column.split):
                raise InputError(
                    f"{path}: {name} was trained on {len(known)} of the classes of {column.root}, split {column.split!r}, "
                    f"first {known[0]!r}; name a split that it has not seen, as {column.root}:{config.data.test}"
                )


def _check_shape(first: Row, other: Row, name: str) -> None:
    mine, own = (in_words(row.told[name]) for row in (first, other))
    if mine != own:
        raise InputError(
            f"{other.name} is measured {own}, and {first.name} {mine}; give --ways, --shots, --queries and --shape"
        )


def keep(found: Table, runs: Path) -> tuple[Path, SyncReport]:
    """Keep a table beside its first run, as a run of its own, and send it to that run's MLflow; its folder comes back.

    `runs` is where it goes when the first one is a checkpoint outside any run.

    Raises:
        InputError: the folder cannot be written.
    """
    folder, target = evaluate.new_beside(found.rows[0].checkpoint, runs, NAME)
    evaluate.write(found.as_json(), folder / RESULT_FILE)
    (folder / TABLE_FILE).write_text(found.as_markdown())
    told = spool.Spool(folder)
    runs_told = {f"run.{n}": f"{row.name} {row.checkpoint.name}" for n, row in enumerate(found.rows)}
    data_told = {f"data.{n}": f"{column.name} {column.root}" for n, column in enumerate(found.columns)}
    told.params({"name": NAME, **runs_told, **data_told})
    told.tags({spool.KIND: NAME, **{f"data.{n}.fingerprint": c.index.fingerprint for n, c in enumerate(found.columns)}})
    for number, row in enumerate(found.rows):
        for place, column in enumerate(found.columns):
            own = row.told[column.name]
            for mode in Mode:
                figures = own[mode.value][own["metric"]]
                start = f"{mode.value}/run.{number}/data.{place}/{own['metric']}"
                told.metrics(0, {start: figures["mean"], f"{start}_interval": figures["interval"]})
    for name in (RESULT_FILE, TABLE_FILE):
        told.artifact(folder / name)
    told.status("FINISHED")
    told.close()
    tracking.write_target(folder, target)
    return folder, tracking.sync(folder, uri=target.uri)
