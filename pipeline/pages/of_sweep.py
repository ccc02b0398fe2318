"""The page of a sweep: its trials, what mattered, the best of them, and how to do it again."""

from __future__ import annotations

import shlex
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import spool, sweep_charts, swept, tables
from pipeline.importance import DOUBTFUL, Importance
from pipeline.pages import of_run, told
from pipeline.pages.parts import Code, Facts, Note, Page, Part, Section, Table, picture
from pipeline.swept import Sweep
from pipeline.tables import NONE, Grid

SPACE = "space."
ENVIRONMENT = (told.REVISION, "python", "machine")
"""Tags that trials have and their sweep has not."""
FRONT = "front-"


def page(folder: Path) -> Page:
    """The page of a sweep's folder, whether it goes on, has ended or was killed."""
    sweep = swept.read(folder)
    past = _noted(sweep)
    found = sweep_charts.importance_of(sweep)
    config = told.text_of(folder / swept.CONFIG)
    sections = [
        Section("Summary", [Facts({**told.times(folder, sweep.past), **_reached(sweep)})]),
        Section("Warnings", [*_failures(sweep), *told.warnings(folder, past)]),
        Section("Pictures", _pictures(sweep)),
        Section("Trials", _trials(sweep)),
        Section("Search space", _space(sweep, found)),
        Section("Budget", _budget(sweep)),
        Section("Best trial", _best(sweep)),
        Section("Config", [Code(swept.CONFIG, config)] if config else []),
        Section("Environment", told.environment(past)),
        Section("MLflow", told.tracked(folder, sweep.past)),
        Section("Reproduce", _again(sweep, past, config)),
    ]
    name = sweep.past.params.get("name", folder.name)
    return Page(folder.name, f"Sweep of {name}: {told.STATES[sweep.status]}.", sections)


def _noted(sweep: Sweep) -> spool.History:
    """The sweep's spool with what its best trial, or its first, noted of where it ran: the same for all of them."""
    trial = sweep.best or next(iter(sweep.trials), None)
    own = {} if trial is None else spool.history(trial.run).tags
    shared = {key: text for key, text in own.items() if key in ENVIRONMENT or key.startswith(("version.", "data."))}
    return replace(sweep.past, tags={**shared, **sweep.past.tags})


def _reached(sweep: Sweep) -> dict[str, str]:
    """How far the search came."""
    states = Counter(trial.state for trial in sweep.trials)
    by_state = ", ".join(f"{many} {state}" for state, many in states.most_common())
    facts = {
        "Trials": f"{len(sweep.trials)}" + (f": {by_state}" if by_state else ""),
        "Judged by": f"the {'highest' if sweep.mode == 'max' else 'lowest'} {sweep.metric} of a trial",
        "Meta-steps of all trials": str(sum(trial.steps for trial in sweep.trials)),
        "Seconds of all trials": f"{sum(trial.seconds for trial in sweep.trials):.0f}",
    }
    if best := sweep.best:
        facts["Best"] = f"{sweep.shown(best.score)}, trial {best.number:04d}"
    return facts


def _failures(sweep: Sweep) -> list[Part]:
    """Why trials failed, each reason once with the trials that give it."""
    by_reason: dict[str, list[str]] = {}
    for trial in sweep.trials:
        if trial.said or trial.state == "failed":
            by_reason.setdefault(trial.said or "nothing was said", []).append(f"{trial.number:04d}")
    said = [f"Trial {', '.join(numbers)}: {reason}" for reason, numbers in by_reason.items()]
    if sweep.status not in ("RUNNING", "FINISHED"):
        again = f"metashard sweep {swept.CONFIG} --resume {shlex.quote(str(sweep.folder))}"
        said.append(f"The sweep has not ended; go on with: {again}")
    return [Note(text, is_warning=True) for text in said]


def _pictures(sweep: Sweep) -> list[Part]:
    """Drawn anew: a sweep that goes on, or was killed, has none or old ones."""
    if not sweep.trials:
        return [Note("No trial has begun yet.")]
    with tempfile.TemporaryDirectory() as folder:
        made = [path for path in sweep_charts.draw(sweep, Path(folder)) if path.suffix == ".png"]
        return [picture(path, *_in_words(sweep, path.stem)) for path in made]


def _in_words(sweep: Sweep, name: str) -> tuple[str, str]:
    """What those hear who do not see a picture, and what stands below it."""
    best = sweep.best
    reached = f" The best is trial {best.number} with {sweep.shown(best.score)}." if best else " No trial has a score."
    match name:
        case "history":
            caption = "The score of every trial by its number, marked by what became of it, and the best so far."
        case "parallel":
            caption = "A line for every trial over what was searched, the darker the better its score at the right."
        case "importance":
            caption = "How much each dimension matters for the score of trials that the estimate has not seen."
        case _:
            caption = (
                f"Trials by {name.removeprefix(FRONT)} and score; no trial is better in both than one of the front."
            )
    return caption + reached, caption


def _trials(sweep: Sweep) -> list[Part]:
    if not sweep.trials:
        return []
    return [Table(f"The best first, by {sweep.label}; {NONE}: not there", tables.trials(sweep), numbers=2)]


def _space(sweep: Sweep, found: Importance) -> list[Part]:
    """What was searched, and how much each part of it matters."""
    rows = []
    for dimension in sweep.dimensions:
        is_known = dimension.name in found.shares and not found.reason
        share = f"{100 * found.shares[dimension.name]:.1f} %" if is_known else NONE
        rows.append((dimension.name, str(dimension), share))
    caption = "The dimensions; importance: what share of their common effect on the score each has"
    parts: list[Part] = [Table(caption, Grid(("dimension", "searched", "importance"), rows), numbers=2)]
    if found.reason:
        return [*parts, Note(f"Importance is not known: {found.reason}.")]
    trusted = f"{100 * found.explained:.0f} % of the variance of scores that were not shown to it"
    doubt = " That is little: these shares may be chance." if found.explained < DOUBTFUL else ""
    return [*parts, Note(f"From {found.trials} trials a random forest foretells {trusted}.{doubt}")]


def _budget(sweep: Sweep) -> list[Part]:
    settings = {key: text for key, text in sweep.past.params.items() if not key.startswith(SPACE)}
    return [Facts(settings)] if settings else []


def _best(sweep: Sweep) -> list[Part]:
    """The best trial: its point, its figures and pictures as of any run, and a config that trains it again."""
    best = sweep.best
    if best is None:
        return [Note("No trial has a score.")]
    point = {name: tables.value(value) for name, value in best.point.items()}
    parts: list[Part] = [Facts({"Trial": f"{best.number:04d}", sweep.label: sweep.shown(best.score), **point})]
    past = spool.history(best.run)
    if past.id:
        parts += [*of_run.figures(best.run, of_run.result_of(best.run)), *of_run.pictures(best.run, past)]
    config = told.text_of(sweep.folder / swept.BEST)
    return [*parts, Code(swept.BEST, config)] if config else parts


def _again(sweep: Sweep, past: spool.History, config: str) -> Sequence[Part]:
    if not config:
        lacking = f"{sweep.folder} has no {swept.CONFIG}, so it cannot be said how to do it again."
        return [Note(lacking, is_warning=True)]
    parts = [told.commands(past, "sweep", swept.CONFIG, config)]
    if (sweep.folder / swept.BEST).exists():
        parts.append(Code("The best trial alone", told.command_line(["metashard", "train", sweep.folder / swept.BEST])))
    return [*parts, *told.data_hint(told.tree_of(config), past)]
