"""The verb `train`: one run, by workers under Ray Train or in this process, that resumes where it was."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline import build, checkpoint, failures, lineage, mirror, preflight, tracking
from pipeline.archive import STOP_FILE, Folder
from pipeline.build import MakeLearner
from pipeline.build_mixture import indexes
from pipeline.conclude import conclude, finished_text, stopped_text, tell_end, tell_start
from pipeline.config import dump
from pipeline.data.index import Index
from pipeline.data.mixture import Mixture
from pipeline.data.sampler import assign
from pipeline.errors import InputError, RunFailed
from pipeline.lineage import MAKER
from pipeline.loop import ASKED
from pipeline.ray_groups import on_ray
from pipeline.run_folder import new_folder, new_run, resumed_run, take
from pipeline.schema.run import RunConfig
from pipeline.session import connected, told_of_session
from pipeline.start import started
from pipeline.teacher import taught
from pipeline.teaching.source import own_learner
from pipeline.worker import Job, work

DRAINED = 75
"""The exit code of a run that saved and left because its machine was wanted back: start it again (EX_TEMPFAIL)."""


class Finished(NamedTuple):
    """A run that ended: its folder, its results as JSON values, what to tell a person, and the exit code."""

    folder: Path
    result: dict[str, Any]
    text: str
    code: int = 0


DRAINS = (signal.SIGTERM, signal.SIGUSR1)
"""The signals by which a cluster wants a machine back."""

Watch = Callable[[Path, int], AbstractContextManager[None]]
"""Shows the progress of (run folder, meta-steps) while the block runs."""


def fit(
    config: RunConfig,
    *,
    resume: Path | None = None,
    name: str = "",
    allow_change: bool = False,
    make_learner: MakeLearner = build.learner,
    watch: Watch = lambda folder, steps: nullcontext(),
) -> Finished:
    """Train, then evaluate the best checkpoint; all of it in the run's folder and in MLflow.

    `resume` is the folder of a run to go on with, with another config if `allow_change`; `name` the id of a new one, else
    the config's name with the time. `make_learner(config, index)` brings a learner of one's own.

    Raises:
        InputError: the config, the data or the run to resume does not fit; nothing was started.
    """
    folder = resume or new_folder(config, name)
    copy = None if config.mirror is None else config.mirror / folder.name
    is_new = resume is None and not (copy and mirror.is_known(copy))
    index = check(config, make_learner, is_new=is_new)
    if config.mirror is not None:
        mirror.check(config.mirror)
    origins = {**lineage.origins(config, index), **maker(make_learner)} if is_new else {}
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or tracking.default_uri(config.runs)
    is_alone = config.workers.is_alone
    with ExitStack() as held:
        if not is_new:
            take(held, folder, copy)
            resumed_run(config, folder, allow_change=allow_change)
        if not is_alone:
            needs = config.workers.needs
            held.enter_context(connected(config.workers.least, each=needs, wait_s=config.workers.wait_s))
            preflight.check(config, uri)
        if is_new:
            new_run(config, folder.name)
            take(held, folder, copy)
        for fault in checkpoint.faults(folder / "checkpoints"):
            print(f"warning: {fault}; going on from the last good one", file=sys.stderr)
        places = {} if is_alone else told_of_session()
        tell_start(folder, config, index, {**origins, **places})
        if copy is not None:
            held.enter_context(mirror.Mirror(folder, copy))
        sender = tracking.Sender(folder, uri=uri, experiment=config.tracking.experiment, name=folder.name)
        sender.start()
        failures.begin(folder)
        status = "FAILED"
        try:
            with watch(folder, config.meta.steps), _stoppable(folder) as signals:
                _here(folder, config, make_learner) if is_alone else on_ray(folder, config, make_learner)
            for failure in failures.since_start(folder):
                print(f"warning: after meta-step {failure.step}: {failure.said}", file=sys.stderr)
            if said := failures.stubborn(folder):
                raise RunFailed(f"{folder}: {said}")
            newest = checkpoint.latest(folder / "checkpoints")
            if newest.state["stopped"] == ASKED and newest.step < config.meta.steps:
                status = "KILLED"
                code = DRAINED if set(signals) & set(DRAINS) else 0
                return Finished(folder, {}, stopped_text(folder, newest.step), code)
            result = conclude(folder, config, index, make_learner)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tell_end(folder, status)
            is_sent = sender.stop(config.tracking.flush_s)
    return Finished(folder, result, finished_text(folder, result, uri, is_sent=is_sent))


def maker(make_learner: MakeLearner) -> dict[str, str]:
    """Who makes the learner, as a tag; none where it is as the config says."""
    if make_learner is build.learner:
        return {}
    return {MAKER: getattr(make_learner, "__qualname__", repr(make_learner))}


@contextmanager
def _stoppable(folder: Path) -> Iterator[list[int]]:
    """SIGINT, SIGTERM or SIGUSR1 asks the workers to save and stop after the step they are in; gives the signals that came.

    Ctrl-C a second time, or SIGTERM after it, does not wait for the step; a machine that is wanted back may say so again and
    again. Outside the main thread signals belong to somebody else.
    """
    stop = folder / STOP_FILE
    stop.unlink(missing_ok=True)
    came: list[int] = []

    def ask(number: int, _: object) -> None:
        is_first = not came
        came.append(number)
        if is_first:
            stop.touch()
            print("stopping after this meta-step, with a checkpoint; once more: at once", file=sys.stderr, flush=True)
        elif number != signal.SIGUSR1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, *DRAINS)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check(config: RunConfig, make_learner: MakeLearner = build.learner, *, is_new: bool = True) -> Index:
    """Find out before anything starts whether the run can be made at all; returns the index of its data.

    A run that goes on no longer needs what it started from.
    """
    index = Index.open(config.data.root)
    data = config.data
    if config.tracking.is_model:
        for made_by in maker(make_learner).values():
            raise own_learner(made_by)
    if config.validation.aside and config.workers.is_alone:
        raise InputError(
            "validation.aside = true: that is a Ray task, and one worker runs without Ray; set workers.ray = always"
        )
    build.training_place(config, index, torch.device("cpu"))
    training = build.drawn(config, index)
    parts = indexes(config, index)
    sources = training.samplers if isinstance(training, Mixture) else [training]
    measured = [build.sampler(config, part, split) for part in parts for split in (data.validation, data.test)]
    for source in (*sources, *measured):
        for lane in range(source.lanes):
            source.draw(0, lane)
    assign(training.costs(0, config.meta.batch), config.workers.most, lanes=data.lanes)
    learner = started(config, index, make_learner) if is_new else make_learner(config, index)
    taught(config, index, learner)
    return index


def _here(folder: Path, config: RunConfig, make_learner: MakeLearner) -> None:
    """One worker, in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with Folder(folder) as archive:
        work(Job(dump(config), archive, make_learner), device=device)
