"""What is drawn of a sweep: history, parallel coordinates, importance, fronts; each a picture with its numbers beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.charts import Make, drawn, table
from pipeline.importance import Importance, importance
from pipeline.pictures import sweeps
from pipeline.pictures.sweeps import Axis, Outcome
from pipeline.space import CHOICE, Dimension
from pipeline.swept import Sweep, Trial, counts

LESS = "less is better"


def draw(sweep: Sweep, folder: Path) -> list[Path]:
    """Draw what there is to see of a sweep into a folder; the files made. A picture that cannot be drawn is a warning."""
    return drawn(_pictures(sweep), folder, again=f"metashard report {sweep.folder}")


def importance_of(sweep: Sweep) -> Importance:
    """How much each dimension matters, from all trials that have a score: those stopped early with what they had by then."""
    scored = [trial for trial in sweep.trials if trial.score is not None and counts(trial)]
    logarithmic = frozenset(dimension.name for dimension in sweep.dimensions if dimension.is_log)
    return importance([t.point for t in scored], [t.score or 0.0 for t in scored], logarithmic=logarithmic)


def _pictures(sweep: Sweep) -> Iterator[tuple[str, Make]]:
    """The name of every picture and what draws it."""
    if not sweep.trials:
        return
    yield "history", partial(history, sweep=sweep)
    yield "parallel", partial(parallel, sweep=sweep)
    yield "importance", partial(important, sweep=sweep)
    for name in sorted({name for trial in sweep.trials if counts(trial) for name in trial.objectives}):
        yield f"front-{name}", partial(front, sweep=sweep, objective=name)


def history(path: Path, sweep: Sweep) -> list[Path]:
    """The score of every trial and the best so far."""
    trials = [_drawn(sweep, trial, {}) for trial in sweep.trials]
    best, rows = None, []
    pick = max if sweep.mode == "max" else min
    for trial in sweep.trials:
        if trial.score is not None and counts(trial):
            best = trial.score if best is None else pick(best, trial.score)
        rows.append([trial.number, trial.state, *map(_plain, (trial.score, best, trial.steps, trial.seconds))])
    head = ("trial", "state", sweep.metric, "best_so_far", "meta_steps", "seconds")
    return [
        sweeps.history_picture(path, trials, mode=sweep.mode, metric=sweep.label),
        table(path.with_suffix(".csv"), head, rows),
    ]


def parallel(path: Path, sweep: Sweep) -> list[Path]:
    """Every trial as a line over the dimensions."""
    axes = [axis_of(dimension) for dimension in sweep.dimensions]
    by_option = {axis.name for axis in axes if axis.options}
    trials = [
        _drawn(sweep, trial, {name: str(v) if name in by_option else v for name, v in trial.point.items()})
        for trial in sweep.trials
    ]
    rows = [
        [trial.number, trial.state, _plain(trial.score), *(_plain(trial.point.get(axis.name)) for axis in axes)]
        for trial in sweep.trials
    ]
    head = ("trial", "state", sweep.metric, *(axis.name for axis in axes))
    return [
        sweeps.parallel_picture(path, trials, axes, mode=sweep.mode, metric=sweep.label),
        table(path.with_suffix(".csv"), head, rows),
    ]


def axis_of(dimension: Dimension) -> Axis:
    """A dimension's axis: all of its range, or its options as texts."""
    if dimension.kind == CHOICE:
        return Axis(dimension.name, options=tuple(map(str, dimension.options)))
    return Axis(dimension.name, dimension.low, dimension.high, is_log=dimension.is_log)


def important(path: Path, sweep: Sweep) -> list[Path]:
    """How much each dimension matters; no picture where nothing is known."""
    found = importance_of(sweep)
    rows = sorted(found.shares.items(), key=lambda row: (-row[1], row[0]))
    numbers = table(path.with_suffix(".csv"), ("dimension", "importance"), rows)
    if found.reason:
        path.unlink(missing_ok=True)  # of a time when the sweep had other trials
        return [numbers]
    title = (
        f"{found.trials} trials, from which {100 * found.explained:.0f} % of the variance of others' scores is foretold"
    )
    return [sweeps.importance_picture(path, found.shares, title=title), numbers]


def front(path: Path, sweep: Sweep, objective: str) -> list[Path]:
    """The trials by an objective that is to be small and their score."""
    known = [trial for trial in sweep.trials if counts(trial) and objective in trial.objectives]
    points = [(t.number, t.objectives[objective], sweep.scale * t.score) for t in known if t.score is not None]
    best = non_dominated([(x, y if sweep.mode == "min" else -y) for _, x, y in points])
    outcomes = [Outcome(*point, is_best=own) for point, own in zip(points, best, strict=True)]
    better = "more is better" if sweep.mode == "max" else LESS
    names = {"x": f"{objective}, {LESS}", "y": f"{sweep.label}, {better}"}
    return [
        sweeps.front_picture(path, outcomes, **names),
        table(path.with_suffix(".csv"), ("trial", objective, sweep.label, "on_front"), outcomes),
    ]


def non_dominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of points of which both values are to be small, whether no other is as small in both and smaller in one."""
    return [not any(o[0] <= p[0] and o[1] <= p[1] and o != p for o in points) for p in points]


def _drawn(sweep: Sweep, trial: Trial, point: dict[str, Any]) -> sweeps.Trial:
    """A trial as pictures take it."""
    score = None if trial.score is None else sweep.scale * trial.score
    return sweeps.Trial(trial.number, trial.state, score, point)


def _plain(given: Any) -> Any:
    return "" if given is None else given
