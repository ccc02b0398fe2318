"""The verb `train`: one run, by workers under Ray Train or in this process, that resumes where it was."""

from __future__ import annotations

import fcntl
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline import build
from pipeline.build import MakeLearner
from pipeline.config import FREE, RunConfig, differences, dump, parse
from pipeline.data.index import Index
from pipeline.data.sampler import assign
from pipeline.errors import InputError
from pipeline.worker import Job, work


def fit(config: RunConfig, *, resume: Path | None = None, make_learner: MakeLearner = build.learner) -> Path:
    """Train; returns the run's folder, which holds config, checkpoints, spool.

    `make_learner(config, index)` brings a learner of one's own.

    Raises:
        InputError: the config, the data or the checkpoint to resume from does not fit; nothing was started.
    """
    check(config, make_learner)
    run = new_run(config) if resume is None else resumed_run(config, resume)
    job = Job(dump(config), str(run.absolute()), make_learner)
    if config.workers.count == 1 and config.workers.ray == "auto":
        work(job, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"), report=lambda metrics: None)
    else:
        _on_ray(job, config)
    return run


def check(config: RunConfig, make_learner: MakeLearner = build.learner) -> Index:
    """Find out before anything starts whether the run can be made at all; returns the index of its data."""
    index = Index.open(config.data.root)
    data = config.data
    for split in (data.train, data.validation, data.test):
        sampler = build.sampler(config, index, split)
        for lane in range(sampler.lanes):
            sampler.draw(0, lane)
    assign([sampler.shape.cost] * config.meta.batch, config.workers.count, lanes=data.lanes)
    make_learner(config, index)
    return index


def new_run(config: RunConfig) -> Path:
    """A fresh folder for a run under `runs`."""
    run = config.runs / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    try:
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.json").write_text(json.dumps(dump(config), indent=1))
    except OSError as error:
        raise InputError(f"runs = {config.runs}: {error.strerror}; name a folder that can be written") from error
    return run


def resumed_run(config: RunConfig, run: Path) -> Path:
    """The folder of a run to go on with, if its config is this one.

    Raises:
        InputError: it is not a run, or its config differs; the differences are named.
    """
    try:
        stored = json.loads((run / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"--resume {run}: not a run's folder ({error}); `metashard runs` lists them") from error
    if changed := differences(stored, dump(config)):
        raise InputError(
            f"--resume {run}: its config is another one: {'; '.join(changed)}; undo that, or start a new run"
        )
    return run


def stored_config(run: Path, overrides: dict[str, Any]) -> RunConfig:
    """The config that a run was started with; `overrides` replaces whole sections among those that may change."""
    tree = json.loads((run / "config.json").read_text())
    return parse({**tree, **{key: value for key, value in overrides.items() if key in FREE}}, str(run / "config.json"))


@contextmanager
def only_driver(run: Path) -> Iterator[None]:
    """Hold the run's lock, which the system lets go of when the process dies, however it dies."""
    with (run / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{run} is being trained by another process; wait for it or end it") from error
        yield


def _ray_worker(settings: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    work(settings["job"], device=ray.train.torch.get_device(), report=ray.train.report)


def _on_ray(job: Job, config: RunConfig) -> None:
    """One Ray Train run; Ray starts the group anew when a worker dies, and our own checkpoints say where to go on."""
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from pipeline.session import connected

    with connected(config.workers.count):
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"job": job},
            torch_config=TorchConfig(timeout_s=config.workers.step_timeout_s),
            scaling_config=ScalingConfig(
                num_workers=config.workers.count, use_gpu=ray.cluster_resources().get("GPU", 0) >= config.workers.count
            ),
            run_config=RayRunConfig(
                # A name of its own each time: whether and where to resume is decided by our checkpoints alone.
                name=f"ray-{secrets.token_hex(4)}",
                storage_path=str(job.folder / "ray"),
                failure_config=FailureConfig(max_failures=config.workers.max_failures),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            causes = list(getattr(error, "worker_failures", {}).values())
            for cause in causes:
                if isinstance(cause, InputError) or type(cause).__name__ == "InputError":
                    raise InputError(str(cause)) from error
            raise
