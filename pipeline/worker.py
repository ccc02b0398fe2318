"""What one worker of a run does: restore, build, train; the same under Ray and in a process of its own."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from pipeline import build, checkpoint, ranks
from pipeline.build import MakeLearner
from pipeline.config import RunConfig, dump, fingerprint, parse
from pipeline.data.index import Index
from pipeline.data.loader import Loader, frozen
from pipeline.engine import Engine, Plan, measure
from pipeline.errors import InputError
from pipeline.judging import Place, Score, judge, shared_score
from pipeline.learners.learner import Learner, Mode
from pipeline.loop import Budget, Hooks, Progress, meta_train
from pipeline.spool import Spool
from pipeline.tracking import system_metrics

SYSTEM_EVERY_S = 10.0
STOP_FILE = "stop"
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told."""

    config: dict[str, Any]
    run: str
    make_learner: MakeLearner = build.learner

    @property
    def folder(self) -> Path:
        return Path(self.run)


def work(job: Job, *, device: torch.device, report: Report) -> None:
    """What one worker does: restore, build, train. `report` is called by all ranks at each checkpoint."""
    config = parse(job.config, "job")
    index = Index.open(config.data.root)
    saved = _latest(job.folder / "checkpoints")
    _set_threads(config, saved)
    learner = job.make_learner(config, index).to(device)
    optimizer = build.optimizer(config, [p for p in learner.parameters() if p.requires_grad])
    progress = Progress()
    if saved is not None:
        checkpoint.restore(saved, learner, optimizer)
        kept = {key: value for key, value in saved.state.items() if key in Progress.__dataclass_fields__}
        progress = Progress(**{**kept, "step": saved.step, "stopped": ""})
    sampler = build.sampler(config, index, config.data.train)
    loader = Loader(
        sampler,
        build.reader(config, index),
        batch=config.meta.batch,
        rank=ranks.rank(),
        world=ranks.world(),
        depth=config.data.prefetch,
        threads=config.data.threads,
    )
    autocast = torch.bfloat16 if config.meta.precision == "bf16" else None
    with loader, _recorder(job, config) as record:
        plan = _plan(config, saved, loader, learner, build.place(config, device), autocast, progress.step)
        save = functools.partial(_save, job, config, learner, optimizer, plan, report)
        if saved is None:
            save(progress)
        hooks = Hooks(
            place=build.place(config, device),
            rate=functools.partial(build.rate, config),
            validate=lambda: _validate(config, index, learner, device),
            record=record,
            save=save,
            stop_asked=functools.partial(_stop_asked, job),
        )
        budget = _budget(config)
        engine = Engine(learner, plan, autocast)
        meta_train(engine, optimizer, loader, budget=budget, hooks=hooks, progress=progress, device=device)


def _budget(config: RunConfig) -> Budget:
    meta, validation = config.meta, config.validation
    return Budget(
        steps=meta.steps,
        batch=meta.batch,
        clip=meta.clip,
        skip_limit=meta.skip_limit,
        validate_every=validation.every,
        patience=validation.patience,
        checkpoint_every=config.checkpoint.every,
    )


def _latest(folder: Path) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from: rank 0 chooses, so that all ranks take the same one."""
    chosen: str | InputError | None = None
    if ranks.rank() == 0 and checkpoint.all_in(folder):
        try:
            newest = checkpoint.latest(folder)
            chosen = str(folder / f"step-{newest.step:08d}")
        except InputError as error:
            chosen = error
    chosen = ranks.told_by_first(chosen)
    if isinstance(chosen, InputError):
        raise chosen
    return checkpoint.load(Path(chosen)) if chosen else None


def _set_threads(config: RunConfig, saved: checkpoint.Checkpoint | None) -> None:
    """The thread count changes the last bits, so a resumed run of the same size keeps it (law 3)."""
    even = max(1, len(os.sched_getaffinity(0)) // ranks.world())
    threads = config.workers.threads or even
    if saved is not None and saved.state["world"] == ranks.world() and config.workers.threads is None:
        threads = saved.state["threads"]
    torch.set_num_threads(threads)


def _plan(
    config: RunConfig,
    saved: checkpoint.Checkpoint | None,
    loader: Loader,
    learner: Learner,
    bring: Place,
    autocast: torch.dtype | None,
    step: int,
) -> Plan:
    """The engine's plan: the saved one, the config's, or what rank 0 measures on its first episodes."""
    if saved is not None:
        return Plan(*saved.state["plan"])
    match config.engine.mode:
        case "loop":
            return Plan("loop", 1)
        case "vmap":
            return Plan("vmap", config.engine.chunk)
    measured: Plan | None = None
    if ranks.rank() == 0:
        drawn = loader.sampler
        episodes = [bring(loader.reader.episode(drawn.draw(step, number))) for number in loader.numbers]
        measured = measure(learner, episodes, autocast)
    return Plan(*ranks.told_by_first(measured))


def _validate(config: RunConfig, index: Index, learner: Learner, device: torch.device) -> Score:
    """The headline metric on the frozen validation episodes, shared out over the ranks."""
    count, mode = config.validation.episodes, Mode(config.evaluate.mode)
    numbers = range(ranks.rank(), count, ranks.world())
    episodes = frozen(build.sampler(config, index, config.data.validation), build.reader(config, index), numbers)
    bring, headline = build.place(config, device), learner.task.headline
    own = ((number, judge(learner, bring(episode), mode=mode)[headline]) for number, episode in episodes)
    return shared_score(own, count, device)


def _save(
    job: Job, config: RunConfig, learner: Learner, optimizer: Optimizer, plan: Plan, report: Report, progress: Progress
) -> None:
    """Rank 0 writes; the report afterwards is the barrier behind which all know that it is written."""
    if ranks.rank() == 0:
        folder = job.folder / "checkpoints"
        settings = {"plan": list(plan), "threads": torch.get_num_threads(), "world": ranks.world()}
        state = {**progress.state(), **settings, "fingerprint": fingerprint(config)}
        state.pop("step")
        optimizer_state = optimizer.state_dict()
        checkpoint.save(
            folder, checkpoint.Checkpoint(progress.step, learner.state_dict(), optimizer_state, state, dump(config))
        )
        checkpoint.prune(folder, keep=config.checkpoint.keep, best=f"step-{progress.best_step:08d}")
    report({"step": float(progress.step), "best": progress.best})


@contextmanager
def _recorder(job: Job, config: RunConfig) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Rank 0 writes the metrics to the spool, with the machine's own now and then; the other ranks write nothing."""
    if ranks.rank() != 0:
        yield lambda step, values: None
        return
    spool = Spool(job.folder)
    looked_s = 0.0

    def record(step: int, values: dict[str, float]) -> None:
        nonlocal looked_s
        if time.monotonic() - looked_s >= SYSTEM_EVERY_S:
            looked_s = time.monotonic()
            values = {**values, **{f"system/{name}": value for name, value in system_metrics().items()}}
        if step % config.tracking.log_every == 0 or "validation/score" in values:
            spool.metrics(step, values)

    try:
        yield record
    finally:
        spool.close()


def _stop_asked(job: Job) -> bool:
    """Whether the driver has put down its wish to stop; one rank looks, and the loop's gather tells the others."""
    return ranks.rank() == 0 and (job.folder / STOP_FILE).exists()
