"""A sweep as its folder tells it, whether it goes on, has ended or was killed: its dimensions, its trials, the best of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline import spool
from pipeline.archive import CONFIG_FILE
from pipeline.config import flatten
from pipeline.errors import InputError
from pipeline.shipment import read_json
from pipeline.status import INTERRUPTED, status_of

KIND = "sweep"
CONFIG, BEST, RESULT, TRIALS = "sweep.yaml", "best.yaml", "result.json", "trials"
SHARE = "validation/score"
"""The metric that is told in %."""
STATES = {
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "stopped",
    "RUNNING": "running",
    INTERRUPTED: "interrupted",
}
"""The state of a trial of which the sweep has not told yet, by the status of its run."""


class Dimension(NamedTuple):
    """A value that is searched: its kind (uniform, loguniform, int, logint, choice), its ends or its options, all in `told`."""

    name: str
    kind: str
    ends: tuple[Any, ...]
    told: str

    @property
    def is_log(self) -> bool:
        """Whether it is searched by its logarithm."""
        return self.kind.startswith("log")

    @property
    def is_choice(self) -> bool:
        """Whether it has options and no ends."""
        return self.kind not in ("uniform", "loguniform", "int", "logint")


class Trial(NamedTuple):
    """A trial: what became of it, its point, its score if it has one, what it took, its run's folder, and why it failed."""

    number: int
    state: str
    point: Mapping[str, Any]
    score: float | None
    steps: int | None
    seconds: float | None
    run: Path
    said: str
    objectives: Mapping[str, float]


@dataclass(frozen=True)
class Sweep:
    """A sweep; `mode` is "max" or "min" of the `metric`, `params` are its settings as they were tracked."""

    folder: Path
    past: spool.History
    status: str
    metric: str
    mode: str
    dimensions: Sequence[Dimension]
    trials: Sequence[Trial]

    @property
    def ranked(self) -> list[Trial]:
        """The trials, the best first; those without a score last, by number."""
        sign = -1 if self.mode == "max" else 1
        return sorted(self.trials, key=lambda t: (math.inf if t.score is None else sign * t.score, t.number))

    @property
    def best(self) -> Trial | None:
        """The trial with the best score, if any has one."""
        return next((trial for trial in self.ranked if trial.score is not None), None)

    @property
    def scale(self) -> float:
        """By how much scores are multiplied to be shown: shares are told in %."""
        return 100.0 if self.metric == SHARE else 1.0

    @property
    def label(self) -> str:
        """The metric as people read it."""
        return "validation score (%)" if self.metric == SHARE else self.metric

    def shown(self, score: float | None) -> str:
        """A score as people read it."""
        return shown(self.metric, score)


def shown(metric: str, score: float | None) -> str:
    """A score of this metric as people read it, a dash for none."""
    return "–" if score is None else f"{100 * score:.2f} %" if metric == SHARE else f"{score:.4g}"


def is_sweep(past: spool.History) -> bool:
    """Whether this is the spool of a sweep."""
    return past.tags.get(spool.KIND) == KIND


def read(folder: Path) -> Sweep:
    """A sweep's folder.

    Trials of which the sweep has not told in its result, as while it goes on, are read from their own folders and its spool.

    Raises:
        InputError: it is no sweep.
    """
    past = spool.history(folder)
    if not is_sweep(past):
        raise InputError(f"{folder} is no sweep's folder; `metashard runs` lists the sweeps")
    told = read_json(folder / RESULT)
    result = told if isinstance(told, dict) else {}
    dimensions = [_dimension(key, text) for key, text in past.params.items() if key.startswith("space.")]
    known = {t.number: t for t in (_told(folder, entry) for entry in _list(result.get("trials"))) if t is not None}
    status = status_of(folder, past)
    for run in trial_folders(folder):
        number = int(run.name)
        if number not in known:
            known[number] = _found(run, number, past, dimensions)
    trials = [known[number] for number in sorted(known)]
    return Sweep(
        folder,
        past,
        status,
        past.params.get("metric", str(result.get("metric", SHARE))),
        past.params.get("mode", str(result.get("mode", "max"))),
        _named(dimensions, trials),
        trials,
    )


def trial_folders(folder: Path) -> list[Path]:
    """The folders of a sweep's trials."""
    return sorted(file.parent for file in folder.glob(f"{TRIALS}/*/{spool.FILE}") if file.parent.name.isdecimal())


def _dimension(key: str, text: str) -> Dimension:
    """A dimension as its `space.…` param tells it: `loguniform [0.01, 1]`, `choice ["a", "b"] where learner.kind is maml`."""
    kind, _, rest = text.partition(" ")
    try:
        ends = json.JSONDecoder().raw_decode(rest)[0]
    except ValueError:
        ends = []  # a long list of options may have been cut; those that trials have are known
    return Dimension(key.removeprefix("space."), kind, tuple(_list(ends)), text)


def _named(dimensions: Sequence[Dimension], trials: Sequence[Trial]) -> list[Dimension]:
    """The dimensions by the names that points use, which params cannot always have, and those that only points tell of."""
    used = {name: None for trial in trials for name in trial.point}
    by_key = {spool.plain_key(f"space.{name}").removeprefix("space."): name for name in used}
    named = [dimension._replace(name=by_key.get(dimension.name, dimension.name)) for dimension in dimensions]
    known = {dimension.name for dimension in named}
    return named + [Dimension(name, "", (), "") for name in used if name not in known]


def _told(folder: Path, entry: Any) -> Trial | None:
    """A trial as the sweep's result tells it; None for what is none."""
    if not isinstance(entry, dict) or not isinstance(entry.get("number"), int):
        return None
    number, point, objectives = entry["number"], entry.get("point"), entry.get("objectives")
    steps = _number(entry.get("steps"))
    values = objectives.items() if isinstance(objectives, dict) else ()
    return Trial(
        number,
        str(entry.get("state", "interrupted")),
        point if isinstance(point, dict) else {},
        _number(entry.get("score")),
        None if steps is None else int(steps),
        _number(entry.get("seconds")),
        folder / TRIALS / f"{number:04d}",
        str(entry.get("said") or ""),
        {str(name): float(value) for name, value in values if _number(value) is not None},
    )


def _found(run: Path, number: int, past: spool.History, dimensions: Sequence[Dimension]) -> Trial:
    """A trial as its own folder tells it, with what the sweep tracked of it."""
    own = spool.history(run)
    score = past.series.get("sweep/score", {}).get(number, own_best(own, past))
    steps = past.series.get("sweep/meta_steps", {}).get(number, max(own.series.get("train/loss", {}), default=0))
    seconds = past.series.get("sweep/seconds", {}).get(number, sum(own.series.get("time/step_s", {}).values()))
    point = _point(run, dimensions)
    return Trial(number, STATES[status_of(run, own)], point, _number(score), int(steps), seconds, run, "", {})


def own_best(own: spool.History, past: spool.History) -> float | None:
    """The best value that a trial has tracked of the sweep's metric so far."""
    found = [v for v in own.series.get(past.params.get("metric", SHARE), {}).values() if math.isfinite(v)]
    return (min if past.params.get("mode") == "min" else max)(found) if found else None


def _point(run: Path, dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """A trial's values for the dimensions that its config has."""
    try:
        config = yaml.safe_load((run / CONFIG_FILE).read_text())
    except (OSError, yaml.YAMLError):
        return {}
    flat = flatten(config) if isinstance(config, dict) else {}
    # A name may end with the option under which it exists: params have it as `learner.steps _gradient_`.
    keys = {dimension.name: re.sub(r" [(_].*$", "", dimension.name) for dimension in dimensions}
    return {name: flat[key] for name, key in keys.items() if key in flat}


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
