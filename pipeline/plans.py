"""Which plan a run's engine takes: the config's, or the fastest of those measured, kept under `runs/plans/` for later runs."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from contextlib import suppress

import psutil
import torch

from pipeline import ranks
from pipeline.archive import Archive
from pipeline.build_shape import is_varied
from pipeline.config import without_rates
from pipeline.data.loader import Loader
from pipeline.engine import LOOP, Plan, Trial, measure, signature
from pipeline.episode import Episode
from pipeline.judging import Place
from pipeline.learners.learner import Learner
from pipeline.schema.run import RunConfig


def chosen(
    config: RunConfig,
    loader: Loader,
    learner: Learner,
    bring: Place,
    autocast: torch.dtype | None,
    archive: Archive,
) -> Plan:
    """The engine's plan: the config's, or what rank 0 measures on its first episodes or has measured in an earlier run."""
    asked = config.engine
    trials = []
    if config.meta.steps == 0:
        plan = LOOP
    elif asked.mode != "auto":
        chunk = 1 if asked.mode == "loop" else asked.chunk
        abreast = 1 if asked.mode == "compiled" else asked.abreast
        plan = Plan(asked.mode, chunk, asked.layout, abreast)
    else:
        plan = None
        if ranks.rank() == 0:
            episodes = [bring(loader.episode(0, number)) for number in loader.numbers(0)]
            trials = measured(config, learner, episodes, autocast, archive)
            plan = trials[0].plan
        plan = Plan(*ranks.told_by_first(plan))
    if ranks.rank() == 0:
        lines = [f"{trial.plan}: {trial.reason or f'{trial.seconds:.4g} s'}" for trial in trials]
        archive.tags({"engine.plan": str(plan), **({"engine.trials": "; ".join(lines)} if lines else {})})
    return plan


def measured(
    config: RunConfig, learner: Learner, episodes: list[Episode], autocast: torch.dtype | None, archive: Archive
) -> list[Trial]:
    """The trials of an earlier run of the same learner on a machine like this, or new ones, kept for the next run."""
    name = _likeness(config, episodes)
    with suppress(OSError, ValueError, TypeError):
        rows = json.loads(archive.plan(name))
        found = [Trial(Plan(*plan), math.inf if seconds is None else seconds, reason) for plan, seconds, reason in rows]
        if found:
            return found
    # Every new shape would be compiled anew.
    steps = 0 if is_varied(config) else config.meta.steps
    trials = measure(learner, episodes, autocast, steps=steps, memory=_memory(config, episodes[0]))
    rows = [[list(t.plan), None if math.isinf(t.seconds) else t.seconds, t.reason] for t in trials]
    archive.keep_plan(name, json.dumps(rows))
    return trials


def _likeness(config: RunConfig, episodes: list[Episode]) -> str:
    """Equal where the same plan is the fastest: machine, threads, versions, model, learner, shapes and number of episodes."""
    cuda = torch.cuda.is_available()
    machine = [
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        os.cpu_count(),
        torch.cuda.get_device_name() if cuda else "",
    ]
    parts = (config.model, config.learner, config.engine)
    # Trials of a sweep that differ in their rates have one plan.
    asked = [*(without_rates(part.model_dump()) for part in parts), config.meta.precision]
    asked.append(config.teacher and config.teacher.model_dump(mode="json"))
    shapes = [str(signature(episode)) for episode in episodes]
    told = [machine, torch.get_num_threads(), torch.__version__, asked, config.meta.steps, shapes]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _memory(config: RunConfig, episode: Episode) -> int:
    """Bytes that the tensors of this worker may take while they are measured and in training."""
    if config.engine.memory_mib is not None:
        return config.engine.memory_mib << 20
    if episode.query.inputs.is_cuda:
        return torch.cuda.mem_get_info()[0] // 2
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world()))
    return psutil.virtual_memory().available // 2 // local
