"""A sweep as its folder tells it, whether it goes on, has ended or was killed: its dimensions, its trials, the best of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import ledger, spool
from pipeline.config import read as read_yaml
from pipeline.errors import InputError
from pipeline.shipment import read_json
from pipeline.space import Dimension, Space
from pipeline.status import status_of
from pipeline.tracking import TRIALS

KIND = "sweep"
CONFIG, BEST, RESULT = "sweep.yaml", "best.yaml", "result.json"
SECTION = "sweep"
"""Of the config, what is no part of a run's."""
SHARE = "validation/score"
"""The metric that is told in %."""
INTERRUPTED = "interrupted"
"""The state of a trial that was begun and did not end, of a sweep that does not go on."""


class Trial(NamedTuple):
    """A trial: what became of it, its point, its score if it has one, what it took, its run's folder, and why it failed."""

    number: int
    state: str
    point: Mapping[str, Any]
    score: float | None
    steps: int
    seconds: float
    run: Path
    said: str = ""
    objectives: Mapping[str, float] = {}


@dataclass(frozen=True)
class Sweep:
    """A sweep; `past` is its spool, and `mode` is "max" or "min" of the `metric`."""

    folder: Path
    past: spool.History
    status: str
    metric: str
    mode: str
    dimensions: Sequence[Dimension]
    trials: Sequence[Trial]

    @property
    def ranked(self) -> list[Trial]:
        """The trials, the best first; last those that have no score, or failed with one."""
        sign = -1 if self.mode == "max" else 1
        return sorted(
            self.trials, key=lambda t: (sign * t.score if t.score is not None and counts(t) else math.inf, t.number)
        )

    @property
    def best(self) -> Trial | None:
        """The trial with the best score, if any has one."""
        return best_of(self.trials, self.mode)

    @property
    def scale(self) -> float:
        """By how much scores are multiplied to be shown: shares are told in %."""
        return 100.0 if self.metric == SHARE else 1.0

    @property
    def label(self) -> str:
        """The metric as people read it."""
        return "validation score (%)" if self.metric == SHARE else self.metric

    def shown(self, score: float | None) -> str:
        """A score as people read it, a dash for none."""
        return "–" if score is None else f"{100 * score:.2f} %" if self.metric == SHARE else f"{score:.4g}"


def counts(trial: Trial) -> bool:
    """Whether its score is one: what a trial reached before it failed is not."""
    return trial.state != ledger.FAILED


def best_of(trials: Iterable[Trial], mode: str) -> Trial | None:
    """The trial with the best score, the first of equal ones; None where none has any that counts."""
    scored = [(trial.score, trial) for trial in trials if trial.score is not None and counts(trial)]
    return (max if mode == "max" else min)(scored, key=lambda own: own[0], default=(None, None))[1]


def run_of(sweep: Path, number: int) -> Path:
    """The folder of a trial's run."""
    return sweep / TRIALS / f"{number:04d}"


def is_sweep(past: spool.History) -> bool:
    """Whether this is the spool of a sweep."""
    return past.tags.get(spool.KIND) == KIND


def read(folder: Path) -> Sweep:
    """A sweep's folder: its trials from its ledger, in whatever state, or from its result where the ledger did not come along.

    Raises:
        InputError: it is no sweep, or what it is cannot be read.
    """
    past = spool.history(folder)
    if not is_sweep(past):
        raise InputError(f"{folder} is no sweep's folder; `metashard runs` lists the sweeps")
    tree = read_yaml(folder / CONFIG)
    space = Space({key: value for key, value in tree.items() if key != SECTION}, str(folder / CONFIG))
    mode, status = past.params.get("mode", "max"), status_of(folder, past)
    trials = [known(folder, trial, mode, status) for _, trial in sorted(ledger.trials_of(folder).items())]
    return Sweep(
        folder, past, status, past.params.get("metric", SHARE), mode, space.dimensions, trials or _told(folder)
    )


def known(folder: Path, trial: ledger.Trial, mode: str, status: str) -> Trial:
    """A trial as the ledger tells it, of a sweep that stands so."""
    state = trial.state if trial.is_over or status == "RUNNING" else INTERRUPTED
    return Trial(
        trial.number,
        state,
        trial.point,
        _finite(trial.score(mode)),
        trial.steps,
        trial.seconds,
        run_of(folder, trial.number),
        trial.said,
        trial.objectives,
    )


def _told(folder: Path) -> list[Trial]:
    """The trials as the sweep's result tells them; none where there is no result."""
    return [
        Trial(
            row["number"],
            row["state"],
            row["point"],
            _finite(row["score"]),
            row["steps"],
            row["seconds"],
            run_of(folder, row["number"]),
            row["said"],
            row["objectives"],
        )
        for row in read_json(folder / RESULT).get("trials", [])
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
