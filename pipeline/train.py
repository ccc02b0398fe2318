"""The verb `train`: one run, by workers under Ray Train or in this process, that resumes where it was."""

from __future__ import annotations

import math
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from pipeline import build, checkpoint, failures, mirror, preflight, tracking
from pipeline.archive import CONFIG_FILE, STOP_FILE, Folder
from pipeline.build import MakeLearner
from pipeline.build_mixture import indexes
from pipeline.conclude import conclude, finished_text, stopped_text, tell_end, tell_start
from pipeline.config import differences, dump
from pipeline.data.index import Index
from pipeline.data.mixture import Mixture
from pipeline.data.root import Url
from pipeline.data.sampler import assign
from pipeline.distant import beside_driver
from pipeline.errors import InputError, RunFailed
from pipeline.lease import Lease
from pipeline.loop import ASKED
from pipeline.schema.run import RunConfig
from pipeline.session import connected
from pipeline.start import provenance, started
from pipeline.teacher import taught
from pipeline.worker import Job, work

MAKER = "make_learner"
"""The tag that says who made the learner, where it was not the config."""
RUN_ENV = "METASHARD_RUN"
"""The variable in which a cluster's job finds its run id."""
COLLECTIVE_S = 60
"""Seconds by which a collective waits longer than the watchdog, besides as long again."""
GROUP_START_S, ELASTIC_START_S = 60, 10
"""Seconds that Ray Train waits for room for its workers before it tries anew: Ray learns of a lost node late, and an elastic
group that counted on it should soon be content with less."""
_GROUP_START_ENV = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
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
    origins = {**provenance(config), **maker(make_learner)} if is_new else {}
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or tracking.default_uri(config.runs)
    is_alone = config.workers.is_alone
    with ExitStack() as held:
        if not is_new:
            _take(held, folder, copy)
            resumed_run(config, folder, allow_change=allow_change)
        if not is_alone:
            needs = config.workers.needs
            held.enter_context(connected(config.workers.least, each=needs, wait_s=config.workers.wait_s))
            preflight.check(config, uri)
        if is_new:
            new_run(config, folder.name)
            _take(held, folder, copy)
        for fault in checkpoint.faults(folder / "checkpoints"):
            print(f"warning: {fault}; going on from the last good one", file=sys.stderr)
        tell_start(folder, config, index, origins)
        if copy is not None:
            held.enter_context(mirror.Mirror(folder, copy))
        sender = tracking.Sender(folder, uri=uri, experiment=config.tracking.experiment, name=folder.name)
        sender.start()
        failures.begin(folder)
        status = "FAILED"
        try:
            with watch(folder, config.meta.steps), _stoppable(folder) as signals:
                _here(folder, config, make_learner) if is_alone else _on_ray(folder, config, make_learner)
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


def new_folder(config: RunConfig, name: str = "") -> Path:
    """Where a run under `runs` is to be, called as the config and the time if it has no name yet."""
    return config.runs / (name or f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")


def new_run(config: RunConfig, name: str = "") -> Path:
    """The folder of a new run, made with its config; it may be there, of a run killed before it had one."""
    run = new_folder(config, name)
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        _keep(config, run)
    except OSError as error:
        raise InputError(f"runs = {config.runs}: {error.strerror}; name a folder that can be written") from error
    return run


def _take(held: ExitStack, run: Path, copy: Url | None) -> None:
    """Be the run's only driver until `held` is closed; where it has a copy in a store, go on from that if it is newer.

    Raises:
        InputError: another driver trains it, it is no run, or the store cannot be used.
    """
    if not (run / CONFIG_FILE).exists() and not (copy and mirror.is_known(copy)):
        raise no_run(run, f"it has no {CONFIG_FILE}")
    if copy is None:
        held.enter_context(Lease(run, lost=_taken_over))
        return
    run.mkdir(parents=True, exist_ok=True)
    # On one machine several folders may be copies of the run: the lock of one says nothing of the others.
    board, host = mirror.StoreBoard(copy), f"{socket.gethostname()}:{run.absolute()}"
    lease = held.enter_context(Lease(run, lost=_taken_over, board=board, host=host))
    mirror.bring(run, copy, before=lease.before)
    mirror.held(run, copy, lease.nonce)


def no_run(run: Path, why: object) -> InputError:
    """What is said of a folder that a person takes for a run's."""
    return InputError(f"--resume {run}: not a run's folder ({why}); `metashard runs` lists them")


def found_run(config: RunConfig, name: str) -> Path | None:
    """The folder of the run of this id, if it was begun.

    Raises:
        InputError: the id cannot be a folder's name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"run id {name!r}: letters, digits, '.', '_' and '-' only")
    folder = config.runs / name
    return folder if (folder / CONFIG_FILE).exists() else None


def resumed_run(config: RunConfig, run: Path, *, allow_change: bool = False) -> None:
    """See that the config of a run to go on with is this one, or keep this one if another one is allowed.

    Raises:
        InputError: it is not a run, or its config differs; the differences are named.
    """
    try:
        stored = yaml.safe_load((run / CONFIG_FILE).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise no_run(run, error) from error
    if changed := differences(stored, dump(config)):
        said = f"--resume {run}: its config is another one: {'; '.join(changed)}"
        if not allow_change:
            raise InputError(f"{said}; undo that, start a new run, or say --allow-change")
        print(f"{said}; going on with the new one", file=sys.stderr)
        _keep(config, run)


def _keep(config: RunConfig, run: Path) -> None:
    """Write the config where a resume looks for it; whoever is killed meanwhile leaves the old one or none."""
    partial = run / f".{CONFIG_FILE}.partial"
    partial.write_text(yaml.safe_dump(dump(config), sort_keys=False))
    partial.replace(run / CONFIG_FILE)


def _taken_over() -> None:
    """Another driver goes on with the run: this one must not write into it any more, not even to save."""
    print("metashard: another driver has taken this run over; ending", file=sys.stderr, flush=True)
    os._exit(1)


def _here(folder: Path, config: RunConfig, make_learner: MakeLearner) -> None:
    """One worker, in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with Folder(folder) as archive:
        work(Job(dump(config), archive, make_learner), device=device)


def _ray_worker(settings: dict[str, Any]) -> None:
    import ray.train.torch

    work(settings["job"], device=ray.train.torch.get_device(), leaving=_leaving)


def _leaving() -> frozenset[str]:
    """The nodes of this group that will be taken away, as Ray has been told; a barrier."""
    import ray.train

    info = ray.train.get_preemption_info()
    return frozenset(info.preempted_node_ids) if info else frozenset()


def _in_thread(function: Callable[[], object]) -> None:
    """Run it in a thread: in the main thread Ray would take SIGINT for itself, and end the process without a word.

    The thread is a daemon, so that a second Ctrl-C need not wait for it.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _on_ray(folder: Path, config: RunConfig, make_learner: MakeLearner) -> None:
    with beside_driver(folder) as archive:
        _in_groups(Job(dump(config), archive, make_learner), folder, config)


def _in_groups(job: Job, folder: Path, config: RunConfig) -> None:
    """One Ray Train run; Ray starts the group anew when a worker dies, and our own checkpoints say where to go on."""
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

    workers = config.workers
    start_s = ELASTIC_START_S if workers.is_elastic else GROUP_START_S
    os.environ[_GROUP_START_ENV] = str(start_s)  # Ray Train has no other way to be told
    has_gpus = ray.cluster_resources().get("GPU", 0) >= workers.least
    gpus = float(has_gpus) if workers.gpus is None else workers.gpus
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"job": job},
        # The watchdog comes first: it says where the ranks are, which a collective that gave up does not.
        torch_config=TorchConfig(
            backend=None if workers.backend == "auto" else workers.backend,
            timeout_s=2 * workers.step_timeout_s + COLLECTIVE_S,
        ),
        scaling_config=ScalingConfig(
            num_workers=(workers.least, workers.most) if workers.is_elastic else workers.count,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": gpus} if gpus else {})},
            placement_strategy=workers.placement.upper(),
            elastic_resize_monitor_interval_s=workers.resize_s,
        ),
        run_config=RayRunConfig(
            # A name of its own each time: whether and where to resume is decided by our checkpoints alone.
            name=f"ray-{secrets.token_hex(4)}",
            storage_path=str(folder.absolute() / "ray"),
            failure_config=FailureConfig(
                max_failures=workers.max_failures,
                controller_failure_limit=math.ceil(workers.replace_s / start_s),
            ),
        ),
    )
    try:
        _in_thread(trainer.fit)
    except ControllerError as error:
        said = str(error.controller_failure).partition(chr(10))[0]
        raise RunFailed(f"{folder}: the workers did not start again ({said}); add nodes, then resume it") from error
    except TrainingFailedError as error:
        for failure in getattr(error, "worker_failures", {}).values():
            if isinstance(failure, InputError):
                raise InputError(str(failure)) from error
        raise
