"""The verb `sweep`: trials of one search space under Ray Tune, a run each, all below one run in MLflow."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline import build, preflight, tracking
from pipeline.build import MakeLearner
from pipeline.conclude import tell_end
from pipeline.errors import InputError
from pipeline.judging import ranged
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.schema.run import RunConfig
from pipeline.session import connected
from pipeline.shipment import Target
from pipeline.stopping import exit_code, stoppable
from pipeline.sweep_plan import Plan, changed, check
from pipeline.sweeping import Sweeping, Tell, in_words
from pipeline.swept import BEST, CONFIG


class Swept(NamedTuple):
    """A sweep that ended: its folder, its results as JSON values, what to tell a person, and the exit code."""

    folder: Path
    result: dict[str, Any]
    text: str
    code: int = 0


def sweep(
    plan: Plan, *, resume: Path | None = None, make_learner: MakeLearner = build.learner, tell: Tell = lambda text: None
) -> Swept:
    """Run the trials of a plan, then evaluate the best one; all of it in the sweep's folder and in MLflow.

    `resume` is the folder of a sweep to go on with: what has ended stays, what was begun goes on. `tell` hears how trials end.

    Raises:
        InputError: the space, the data or the sweep to go on with does not fit; nothing was started.
        RunFailed: every trial failed.
    """
    example = check(plan, make_learner)
    folder = _folder(plan, example, resume)
    uri = example.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or tracking.default_uri(example.runs)
    workers = example.workers
    with ExitStack() as held:
        held.enter_context(connected(workers.least, each=workers.needs, wait_s=workers.wait_s))
        preflight.check(example, uri)
        if plan.sweep.scheduler.kind == "pbt":
            preflight.shared(plan.sweep.storage or example.runs)
        notes = (plan.sweep.storage or folder).absolute()
        _made(plan, folder)
        held.enter_context(Lease(folder, lost=_taken_over))
        ledger = held.enter_context(Ledger(folder))
        sweeping = Sweeping(
            plan, folder, ledger, make_learner, tell, Target(uri, example.tracking.experiment, folder.name)
        )
        sweeping.begin(example)
        tracking.write_target(folder, sweeping.target)
        sender = tracking.Sender(folder, uri=uri, experiment=example.tracking.experiment, name=folder.name)
        sender.start()
        status = "FAILED"
        try:
            from pipeline import tuning  # Ray Tune takes seconds

            with stoppable(sweeping.ask_to_stop) as signals:
                tuning.run_trials(sweeping, example=example, notes=notes)
            sweeping.settle()
            if sweeping.is_asked:
                status = "KILLED"
                return Swept(folder, {}, _stopped_text(folder), exit_code(signals))
            result = sweeping.conclude()
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tell_end(folder, status)
            is_sent = sender.stop(example.tracking.flush_s)
    return Swept(folder, result, _finished_text(folder, result, uri, is_sent=is_sent))


def _folder(plan: Plan, example: RunConfig, resume: Path | None) -> Path:
    """Where the sweep is kept: under its name.

    Raises:
        InputError: the name is taken, or what is to go on is another sweep.
    """
    folder = resume or example.runs / example.name
    if not (folder / CONFIG).exists():
        if resume is not None:
            raise InputError(f"--resume {folder}: not a sweep's folder; `metashard runs` lists the sweeps")
        if folder.exists():
            raise InputError(f"name = {example.name}: {folder} is there already; choose another name")
        return folder
    try:
        before = yaml.safe_load((folder / CONFIG).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(
            f"{folder / CONFIG} cannot be read ({error}); bring it back, or choose another name"
        ) from error
    differing = "; ".join(changed(before, plan.tree))
    if resume is None:
        taken = f"name = {example.name}: a sweep of this name is in {folder} with"
        if differing:
            raise InputError(f"{taken} another search space ({differing}); choose another name")
        raise InputError(
            f"{taken} this very search space; go on with it by --resume {folder.name}, or choose another name"
        )
    if differing:
        raise InputError(f"--resume {folder}: its search is another one: {differing}; undo that or choose another name")
    return folder


def _made(plan: Plan, folder: Path) -> None:
    """The folder with the sweep's file in it."""
    try:
        (folder / tracking.TRIALS).mkdir(parents=True, exist_ok=True)
        partial = folder / f".{CONFIG}.partial"
        partial.write_text(yaml.safe_dump(plan.tree, sort_keys=False))
        partial.replace(folder / CONFIG)
    except OSError as error:
        raise InputError(f"runs = {folder.parent}: {error.strerror}; name a folder that can be written") from error


def _taken_over() -> None:
    """Another driver goes on with the sweep: this one must not write into it any more."""
    print("metashard: another driver has taken this sweep over; ending", file=sys.stderr, flush=True)
    os._exit(1)


def _stopped_text(folder: Path) -> str:
    return f"stopped; go on with: metashard sweep CONFIG --resume {folder}"


def _finished_text(folder: Path, result: dict[str, Any], uri: str, *, is_sent: bool) -> str:
    """What to tell at the end."""
    states = [row["state"] for row in result["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    best = next(row for row in result["trials"] if row["number"] == result["best"])
    metric, test = result["test"]["metric"], result["test"][result["test_mode"]]
    lines = [
        f"sweep      {folder}: {len(states)} trials ({counts})",
        f"best       trial {best['number']}: {result['metric']} {best['score']:.4f} with {in_words(best['point'])}",
        f"test       {result['test_mode']} {metric} {ranged(metric, test[metric])}, of this one trial",
        f"config     {folder / BEST}: metashard train {folder / BEST}",
        f"MLflow     run {tracking.run_id_of(folder) or 'not sent yet'} in {tracking.plain_uri(uri)}",
        "open it    metashard ui" if is_sent else "MLflow has not got everything; send the rest: metashard sync",
    ]
    return "\n".join(lines)
