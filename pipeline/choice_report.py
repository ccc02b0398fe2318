"""How choosers, judgements of them and recommendations are told on a terminal, or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.adaptation import Settings
from pipeline.candidates import Candidate
from pipeline.choose_model import Judgement, Recommendation
from pipeline.chooser import Chooser, accuracies_of
from pipeline.data.shapes import in_words
from pipeline.evaluate_settings import Found
from pipeline.judging import Score, score
from pipeline.shelf import Shelf


def shelf_told(own: Shelf, fitted: Chooser, folder: Path, *, is_json: bool) -> None:
    """What each candidate reaches on average, and what choosing among them promises by cross-validation."""
    reached = [score(column.tolist()) for column in accuracies_of(own.tasks).T]
    best = own.candidates[fitted.best].name
    if is_json:
        names = [candidate.name for candidate in own.candidates]
        means = {name: {"mean": one.mean, "interval": one.interval} for name, one in zip(names, reached, strict=True)}
        told = {"folder": str(folder), "tasks": len(own.tasks), "accuracy": means, "best_on_average": best}
        print(json.dumps({**told, "chooser": fitted.kind, "cross_validated": dict(fitted.reached)}, indent=1))
        return
    table = Table("candidate", "learner", "model", "accuracy ± 95 %", "best of all", box=box.SIMPLE_HEAD)
    firsts = accuracies_of(own.tasks).argmax(1).tolist()
    for place, (candidate, one) in enumerate(zip(own.candidates, reached, strict=True)):
        table.add_row(
            candidate.name, candidate.learner, candidate.model, str(one), f"{firsts.count(place)} of {len(firsts)}"
        )
    _print(table)
    print(f"best on average: {best}; of tasks left out of the fit in turn:")
    for kind, mean in fitted.reached.items():
        print(f"  {kind:<9} {100 * mean:.2f} %{'   taken' if kind == fitted.kind else ''}")
    print(f"kept in {folder}")


def judgement_told(found: Judgement, *, is_json: bool) -> None:
    """Accuracy by way of choosing, and its difference from the best on average."""
    if is_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    print(
        f"{len(found.data)} tasks; chooser: {found.kind}; best on average: {found.best}; differences from it on the same tasks"
    )
    names = list(dict.fromkeys(found.data))
    table = Table("data", "which run", "accuracy ± 95 %", "difference ± 95 %", box=box.SIMPLE_HEAD)
    for data in (None, *(names if len(names) > 1 else ())):
        for name, (own, apart) in found.rows(data).items():
            table.add_row(data or "all", name, str(own), _points(apart))
    _print(table)
    print(_verdict(found))


def _points(apart: Score) -> str:
    return f"{100 * apart.mean:+.2f} ± {100 * apart.interval:.2f}"


def _verdict(found: Judgement) -> str:
    rows = found.rows()
    (own, apart), (first, _) = rows["chosen"], rows["best on average"]
    if own.mean - own.interval > first.mean + first.interval:
        return "choosing beats the best on average: the intervals are disjoint"
    if apart.mean > apart.interval:
        return "choosing beats the best on average: the interval of the difference excludes zero, those of the accuracies overlap"
    return "choosing does not beat the best on average: the interval of the difference reaches zero or below"


def recommendation_told(found: Recommendation, *, is_json: bool) -> None:
    """The candidate to take, its settings, and all others behind it."""
    if is_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    table = Table("run", "learner", "model", "adaptation", "expected", "held-out samples right", box=box.SIMPLE_HEAD)
    for own, expected, answer in found.ranked:
        right = f"{100 * answer.held.accuracy:.1f} %"
        table.add_row(
            own.run, own.learner, own.model, _adaptation(own, answer.settings), f"{100 * expected:.1f} %", right
        )
    _print(table)
    (first, expected, answer), (average, usual) = found.ranked[0], found.best_on_average
    print(f"take       {first.run}, {_adaptation(first, answer.settings)}: expected accuracy {100 * expected:.1f} %")
    print(f"otherwise  {average.name}, the best on average: expected accuracy {100 * usual:.1f} %")
    print(f"checkpoint {first.checkpoint}")
    for note in found.notes:
        print(f"note: {note}")


def _adaptation(own: Candidate, settings: Settings | None) -> str:
    if settings is None:
        return "no inner steps"
    pace = f"{settings.pace:g} × its updates" if own.rate is None else f"rate {settings.pace * own.rate:g}"
    return f"{settings.steps} inner steps, {pace} ({'leave-one-out' if own.is_tuned else 'as configured'})"


def settings_told(found: Found, *, is_json: bool) -> None:
    """Accuracy with the config's settings and with chosen ones, and which these were."""
    if is_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    own, tuned = found.rows
    print(
        f"{len(found.own)} of {found.split} {in_words(found.shape.told())}, inductive; differences on the same episodes"
    )
    table = Table("settings", "accuracy ± 95 %", "difference ± 95 %", box=box.SIMPLE_HEAD)
    table.add_row(f"of the config ({found.configured.steps} steps)", str(own.score), "–")
    table.add_row("leave-one-out", str(tuned.score), _points(tuned.difference))
    _print(table)
    for settings, count in found.chosen.most_common(5):
        print(f"{count:5} episodes: {settings.steps} steps, rate × {settings.pace:g}")


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 240
    console.print(table)
