"""The verb `compare`: several runs on the very same frozen episodes, and their differences episode by episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import build, evaluate, restore, session, spool, tracking
from pipeline.data.shapes import LongTailed, Shaping, Varied
from pipeline.errors import InputError
from pipeline.evaluate import MODES
from pipeline.judging import Score, score
from pipeline.learners.learner import Mode
from pipeline.restore import Restored, Subject
from pipeline.tracking import SyncReport

NAME = "compare"
RESULT_FILE, EPISODES_FILE, PICTURE_FILE = "comparison.json", "episodes.json", "comparison.png"
Progress = Callable[[int, int], None]
SIZES = {"shape", *Varied._fields, *LongTailed._fields}
"""What decides how large episodes are, and can be asked for."""


class Contender(NamedTuple):
    """A run that takes part: what it is called, its best checkpoint and how that is evaluated."""

    name: str
    checkpoint: Path
    subject: Subject


class Row(NamedTuple):
    """A contender's score, and that of its episodes minus the first contender's; the first one's own is 0 ± 0."""

    score: Score
    difference: Score

    @property
    def excludes_zero(self) -> bool:
        """Whether the 95 % interval of the difference does."""
        return abs(self.difference.mean) > self.difference.interval


class Comparison(NamedTuple):
    """By mode, the headline metric of every contender: `values` by contender and episode, from which all else follows."""

    contenders: Sequence[Contender]
    metric: str
    split: str
    shape: Shaping
    fingerprint: str
    values: dict[Mode, list[list[float]]]

    def rows(self, mode: Mode) -> list[Row]:
        """A row for every contender."""
        return [paired(own, self.values[mode][0]) for own in self.values[mode]]

    def as_json(self) -> dict[str, Any]:
        """The settings, and by mode a list with an entry for every contender."""
        return {**self._settings(), **{mode.value: self._told(mode) for mode in self.values}}

    def episodes_as_json(self) -> dict[str, Any]:
        """The settings, and by mode the values of every contender, episode by episode."""
        runs = [f"{contender.name}/{contender.checkpoint.name}" for contender in self.contenders]
        return {**self._settings(), "runs": runs, **{mode.value: own for mode, own in self.values.items()}}

    def _settings(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "split": self.split,
            **self.shape.told(),
            "episodes": len(next(iter(self.values.values()))[0]),
            "data_fingerprint": self.fingerprint,
        }

    def _told(self, mode: Mode) -> list[dict[str, Any]]:
        return [
            {
                "run": contender.name,
                "checkpoint": contender.checkpoint.name,
                "mean": row.score.mean,
                "interval": row.score.interval,
                "difference": row.difference.mean,
                "difference_interval": row.difference.interval,
                "excludes_zero": row.excludes_zero,
            }
            for contender, row in zip(self.contenders, self.rows(mode), strict=True)
        ]


def paired(own: Sequence[float], first: Sequence[float]) -> Row:
    """The score of values by episode, and that of their differences from the first contender's on the same episodes."""
    return Row(score(own), score([a - b for a, b in zip(own, first, strict=True)]))


def modes_of(text: str) -> tuple[Mode, ...]:
    """The modes that a person means by "inductive", "transductive" or "both".

    Raises:
        InputError: it is none of them.
    """
    if text == "both":
        return MODES
    if text not in list(Mode):
        raise InputError(f"--mode {text}: there is no such mode; give inductive, transductive or both")
    return (Mode(text),)


def contenders(targets: Sequence[Path], runs: Path, asked: Mapping[str, Any]) -> list[Contender]:
    """The runs (or checkpoints) that a person names, with other keys of `evaluate` for all of them if asked.

    Raises:
        InputError: there are fewer than two, or one of them is no run.
    """
    if len(targets) < 2:
        raise InputError(f"compare {targets[0]}: a single run has nothing to be compared with; name at least two")
    found = []
    for target in targets:
        path = restore.find(target, runs)
        run = restore.run_of(path)
        found.append(Contender(str(target) if run is None else run.name, path, restore.subject_of(path, asked=asked)))
    return found


def compare(
    contenders: Sequence[Contender],
    *,
    split: str,
    episodes: int,
    modes: Sequence[Mode],
    workers: int,
    progress: Progress = lambda done, total: None,
) -> Comparison:
    """Judge all contenders on the same episodes; `progress(done, total)` counts them.

    Raises:
        InputError: their episodes would not be the same, or one of them cannot be evaluated.
    """
    evaluate.check(episodes=episodes, workers=workers)
    found = [restore.restored(contender.subject) for contender in contenders]
    _check_alike(contenders, found, split)
    metric = found[0].learner.task.headline
    values: dict[Mode, list[list[float]]] = {mode: [] for mode in modes}
    with session.connected(workers) if workers > 1 else nullcontext():
        for number, contender in enumerate(contenders):
            progress(number, len(contenders))
            asked = {"split": split, "episodes": episodes, "workers": workers, "modes": modes}
            _, rows = evaluate.measure(contender.subject, **asked)
            for mode in modes:
                values[mode].append([row[mode].metrics[metric] for row in rows])
        progress(len(contenders), len(contenders))
    config, index, *_ = found[0]
    shape = build.sampler(config, index, split).shape
    return Comparison(contenders, metric, split, shape, index.fingerprint, values)


def _check_alike(contenders: Sequence[Contender], found: Sequence[Restored], split: str) -> None:
    """Refuse contenders whose frozen episodes are not the same samples in the same roles."""
    first = _drawn_from(found[0], split)
    for contender, restored in zip(contenders, found, strict=True):
        own = _drawn_from(restored, split)
        keys = [key for key in first | own if first.get(key) != own.get(key)]
        if keys:
            way_out = "compare runs of the same data and seed"
            if set(keys) <= SIZES:
                way_out = f"give --ways, --shots and --queries{', and --shape' if 'shape' in keys else ''}"
            named = "; ".join(f"{key}: {first.get(key)} -> {own.get(key)}" for key in keys)
            raise InputError(f"{contender.name} has other episodes than {contenders[0].name}: {named}; {way_out}")


def _drawn_from(found: Restored, split: str) -> dict[str, Any]:
    """All that decides what is in an episode."""
    config, index, _, _ = found
    sampler = build.sampler(config, index, split)
    settings = {"data.fingerprint": index.fingerprint[:16], "data.rotations": config.data.rotations}
    # Episodes of the training split follow the run's own seed and lanes.
    deals = {"data.lanes": sampler.lanes, "data.deal_every": sampler.deal_every if sampler.lanes > 1 else 0}
    scheduled = {f"data.schedule.{key}": value for key, value in sampler.schedule.told().items()}
    return {
        "task.kind": config.task.kind,
        **settings,
        "seed": sampler.seed,
        **deals,
        **scheduled,
        **sampler.shape.told(),
    }


def keep(comparison: Comparison, runs: Path) -> tuple[Path, SyncReport]:
    """Keep a comparison beside its first run, as a run of its own, and send it to that run's MLflow; its folder comes back.

    `runs` is where it goes when the first contender is a checkpoint outside any run.

    Raises:
        InputError: the folder cannot be written.
    """
    folder, target = evaluate.new_beside(comparison.contenders[0].checkpoint, runs, NAME)
    evaluate.write(comparison.as_json(), folder / RESULT_FILE)
    evaluate.write(comparison.episodes_as_json(), folder / EPISODES_FILE)
    _draw(comparison, folder / PICTURE_FILE)
    _tell(comparison, folder)
    tracking.write_target(folder, target)
    return folder, tracking.sync(folder, uri=target.uri)


def _draw(comparison: Comparison, path: Path) -> Path:
    from pipeline.pictures.differences import difference_picture  # matplotlib takes a second

    labels = [f"{contender.name} {contender.checkpoint.name}" for contender in comparison.contenders]
    panels = {mode.value: [row.difference[:2] for row in comparison.rows(mode)] for mode in comparison.values}
    return difference_picture(path, labels, panels, metric=comparison.metric)


def _tell(comparison: Comparison, folder: Path) -> None:
    told = spool.Spool(folder)
    runs = {f"run.{n}": f"{c.name} {c.checkpoint.name}" for n, c in enumerate(comparison.contenders)}
    settings = {key: str(value) for key, value in comparison.as_json().items() if key not in list(Mode)}
    told.params({"name": NAME, **settings, **runs})
    told.tags({spool.KIND: NAME, "data.fingerprint": comparison.fingerprint})
    for mode in comparison.values:
        for number, row in enumerate(comparison.rows(mode)):
            figures = {
                comparison.metric: row.score.mean,
                f"{comparison.metric}_interval": row.score.interval,
                "difference": row.difference.mean,
                "difference_interval": row.difference.interval,
            }
            told.metrics(0, {f"{mode.value}/run.{number}/{name}": value for name, value in figures.items()})
    for name in (RESULT_FILE, EPISODES_FILE, PICTURE_FILE):
        told.artifact(folder / name)
    told.status("FINISHED")
    told.close()
