"""Results as tables: rows of text, the same on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.data.shapes import in_words
from pipeline.judging import ranged, shown
from pipeline.learners.learner import Mode
from pipeline.swept import Sweep

NONE = "–"
LONGEST = 40
"""Letters of a value in a table of trials."""


@dataclass(frozen=True)
class Grid:
    """A table: what its columns are called, and the text of every cell."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def show(grid: Grid) -> None:
    """Print a table; in a pipe it is as wide as it needs to be."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in grid.head:
        table.add_column(Text(name))
    for row in grid.rows:
        # Not as markup: names and values may hold brackets.
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console.width = 240
    console.print(table)


def trials(sweep: Sweep) -> Grid:
    """A sweep's trials, the best first, with their points."""
    names = [dimension.name for dimension in sweep.dimensions]
    objectives = sorted({name for trial in sweep.trials for name in trial.objectives})
    rows = []
    for trial in sweep.ranked:
        others = [value(trial.objectives[name]) if name in trial.objectives else NONE for name in objectives]
        point = [value(trial.point[name]) if name in trial.point else NONE for name in names]
        took = (str(trial.steps), f"{trial.seconds:.1f}")
        rows.append([f"{trial.number:04d}", trial.state, sweep.shown(trial.score), *took, *others, *point])
    return Grid(("trial", "state", f"best {sweep.metric}", "meta-steps", "seconds", *objectives, *names), rows)


def value(given: Any) -> str:
    """A dimension's value in a table."""
    text = f"{given:.4g}" if isinstance(given, float) else str(given)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def scores(results: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Evaluations: by name what `Evaluation.as_json` gives."""
    rows = []
    for name, result in results.items():
        shape = f"{result['split']} {in_words(result, of_each='queries')}"
        for mode, metrics in result.items():
            if not isinstance(metrics, Mapping):
                continue
            for metric, found in metrics.items():
                rows.append((name, f"{found['episodes']} of {shape}", mode, metric, ranged(metric, found)))
    return Grid(("checkpoint", "episodes", "mode", "metric", "mean ± 95 %"), rows)


def results(result: Mapping[str, Any]) -> Grid:
    """What a run's `result.json` tells: the trained learner beside the untrained one, in both modes."""
    test, untrained = result["test"], result["untrained"]
    rows = []
    for mode in Mode:
        for metric, found in test[mode.value].items():
            before = untrained[mode.value].get(metric)
            floor = NONE if before is None else ranged(metric, before)
            rows.append((mode.value, metric.replace("_", " "), ranged(metric, found), str(found["episodes"]), floor))
    return Grid(("mode", "metric", "trained, mean ± 95 %", "episodes", "untrained"), rows)


def comparison_title(result: Mapping[str, Any]) -> str:
    """What was compared on, of what `Comparison.as_json` gives."""
    return f"{result['episodes']} of {result['split']} {in_words(result, of_each='queries')}"


def comparison(result: Mapping[str, Any]) -> Grid:
    """What `Comparison.as_json` gives; accuracies and their like in %, differences in points of them."""
    rows = []
    for mode, told in result.items():
        if not isinstance(told, list):
            continue
        for number, row in enumerate(told):
            own = f"{100 * row['mean']:.2f} ± {100 * row['interval']:.2f} %"
            against = f"{100 * row['difference']:+.2f} ± {100 * row['difference_interval']:.2f}"
            verdict = "yes" if row["excludes_zero"] else "no"
            rows.append((row["run"], row["checkpoint"], mode, own, *((against, verdict) if number else (NONE, NONE))))
    head = ("run", "checkpoint", "mode", f"{result['metric']} ± 95 %", "difference ± 95 %", "excludes zero")
    return Grid(head, rows)


def seeds_title(result: Mapping[str, Any]) -> str:
    """What was measured, of what `seeds.Summary.as_json` gives."""
    shape = f"{result['split']} {in_words(result, of_each='queries')}"
    return f"{len(result['runs'])} seeds, {result['episodes']} of {shape}"


def seeds(result: Mapping[str, Any]) -> Grid:
    """What `seeds.Summary.as_json` gives: over seeds, within a run, and run by run."""
    rows = []
    for mode in Mode:
        for metric, found in result[mode.value].items():
            within = NONE if found["within"] is None else shown(metric, found["within"])
            spread = f"{shown(metric, found['mean'], unit=False)} ± {shown(metric, found['deviation'])}"
            rows.append((mode.value, metric, spread, within, *(shown(metric, value) for value in found["values"])))
    each = (f"seed {run['seed']}" for run in result["runs"])
    return Grid(("mode", "metric", "mean ± sd over seeds", "± 95 % within a run", *each), rows)


def pairs(result: Mapping[str, Any]) -> Grid:
    """What `pair_protocol.Evaluated.as_json` gives."""
    rows = [
        (result["checkpoint"], metric, ranged(metric, found))
        for metric, found in result.items()
        if isinstance(found, Mapping)
    ]
    return Grid(("checkpoint", "metric", "mean ± 95 % over persons"), rows)
