"""The workers of a run as groups that Ray Train starts, anew each time one of them is lost."""

from __future__ import annotations

import math
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.build import MakeLearner
from pipeline.config import dump
from pipeline.distant import beside_driver
from pipeline.errors import InputError, RunFailed
from pipeline.schema.run import RunConfig
from pipeline.worker import Job, work

COLLECTIVE_S = 60
"""Seconds by which a collective waits longer than the watchdog, besides as long again."""
GROUP_START_S, ELASTIC_START_S = 60, 10
"""Seconds that Ray Train waits for room for its workers before it tries anew: Ray learns of a lost node late, and an elastic
group that counted on it should soon be content with less."""
_GROUP_START_ENV = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


def on_ray(folder: Path, config: RunConfig, make_learner: MakeLearner) -> None:
    """Train by workers under Ray Train, which reach the run's folder through an actor beside this process.

    Raises:
        InputError: a worker found that the run cannot be made.
        RunFailed: nodes went, and others did not come in time.
    """
    with beside_driver(folder) as archive:
        in_groups(Job(dump(config), archive, make_learner), config, run=folder, storage=folder.absolute() / "ray")


def in_groups(job: Job, config: RunConfig, *, run: Path, storage: Path) -> None:
    """One Ray Train run; Ray starts the group anew when a worker dies, and our own checkpoints say where to go on.

    `run` is what errors call it, `storage` where Ray Train keeps its own notes.

    Raises:
        InputError, RunFailed: as `on_ray`.
    """
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
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=workers.max_failures,
                controller_failure_limit=math.ceil(workers.replace_s / start_s),
            ),
        ),
    )
    try:
        in_thread(trainer.fit)
    except ControllerError as error:
        said = str(error.controller_failure).partition(chr(10))[0]
        raise RunFailed(f"{run}: the workers did not start again ({said}); add nodes, then resume it") from error
    except TrainingFailedError as error:
        for failure in getattr(error, "worker_failures", {}).values():
            if isinstance(failure, InputError):
                raise InputError(str(failure)) from error
        raise


def _ray_worker(settings: dict[str, Any]) -> None:
    import ray.train.torch

    work(settings["job"], device=ray.train.torch.get_device(), leaving=_leaving)


def _leaving() -> frozenset[str]:
    """The nodes of this group that will be taken away, as Ray has been told; a barrier."""
    import ray.train

    info = ray.train.get_preemption_info()
    return frozenset(info.preempted_node_ids) if info else frozenset()


def in_thread(function: Callable[[], object]) -> None:
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
