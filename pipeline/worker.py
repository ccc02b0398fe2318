"""What one worker of a run does: restore, build, train; the same under Ray and in a process of its own."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.optim import Optimizer
from torch.profiler import _ExperimentalConfig  # pyright: ignore[reportPrivateImportUsage]  (its only name)

from pipeline import build, build_outer, checkpoint, plans, ranks
from pipeline.archive import Archive
from pipeline.aside import RayAside
from pipeline.build import MakeLearner
from pipeline.config import dump, fingerprint, parse
from pipeline.data.index import Index
from pipeline.data.loader import frozen
from pipeline.data.outline import outline
from pipeline.engine import Engine, Plan
from pipeline.errors import InputError
from pipeline.failures import Failure
from pipeline.feeders import Feeders
from pipeline.judging import Score, judge, shared_score
from pipeline.learners.learner import Learner, Mode
from pipeline.loop import Budget, Hooks, Progress, meta_train
from pipeline.notices import Notices
from pipeline.restore import Subject
from pipeline.schema.run import RunConfig
from pipeline.side_by_side import on_all_threads
from pipeline.start import started
from pipeline.teacher import taught
from pipeline.tracking import system_metrics
from pipeline.watchdog import Watchdog

SYSTEM_EVERY_S = 10.0
Leaving = Callable[[], frozenset[str]]


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told."""

    config: dict[str, Any]
    archive: Archive
    make_learner: MakeLearner = build.learner


def work(job: Job, *, device: torch.device, leaving: Leaving = frozenset) -> None:
    """What one worker does: restore, build, train. All ranks ask now and then which nodes of theirs are `leaving`.

    Where the same thing failed before, it is not tried again: the driver finds that in RUN/failures.jsonl.
    """
    if ranks.told_by_first(job.archive.stubborn() if ranks.rank() == 0 else ""):
        return
    config = parse(job.config, "job")
    limit_s = config.workers.step_timeout_s
    with Watchdog(job.archive, rank=ranks.rank(), world=ranks.world(), limit_s=limit_s) as watchdog:
        try:
            _train(job, config, device, leaving, watchdog)
        except (InputError, ranks.GroupEnded):
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            job.archive.note(Failure(watchdog.place.step, ranks.rank(), said))
            raise


def _train(job: Job, config: RunConfig, device: torch.device, leaving: Leaving, watchdog: Watchdog) -> None:
    index = Index.open(config.data.root)
    saved = _latest(job.archive)
    _set_threads(config, saved)
    _set_precision(config)
    # A run that goes on has its values in its checkpoint.
    made = started(config, index, job.make_learner) if saved is None else job.make_learner(config, index)
    learner = made.to(device)
    trainee = taught(config, index, learner).to(device)
    optimizer = build_outer.optimizer(config, [p for p in learner.parameters() if p.requires_grad])
    autocast = torch.bfloat16 if config.meta.precision == "bf16" else None
    feeders = config.workers.feeders
    read = Feeders(config, feeders).read if feeders else None
    bring = build.training_place(config, index, device)
    loader = build.loader(config, index, rank=ranks.rank(), world=ranks.world(), read=read)
    if ranks.rank() == 0:
        job.archive.open()
    with loader, checkpoint.Writer(functools.partial(job.archive.save, keep=config.checkpoint.keep)) as writer:
        if saved is not None:
            plan = Plan(*saved.state["plan"])
        else:
            plan = plans.chosen(config, loader, trainee, bring, autocast, job.archive)
        # The engine lays the weights out in memory: an optimizer's state is laid out like them.
        engine = Engine(trainee, plan, autocast)
        progress = _restored(saved, learner, optimizer)
        save = functools.partial(_save, config, index, learner, optimizer, plan, writer)
        if saved is None:
            save(progress)
        hooks = Hooks(
            place=bring,
            rate=functools.partial(build_outer.rate, config),
            validate=lambda: _validate(config, index, learner, device, watchdog),
            record=_recorder(job.archive, config),
            save=save,
            # One rank looks, and the loop's gather tells the others.
            stop_asked=lambda: ranks.rank() == 0 and job.archive.stop_asked(),
            notices=Notices(leaving),
            aside=_aside(job, config, writer),
            traced=functools.partial(_traced, job.archive, config),
            moved=watchdog.moved,
        )
        budget = _budget(config)
        try:
            meta_train(engine, optimizer, loader, budget=budget, hooks=hooks, progress=progress, device=device)
        finally:
            job.archive.settle()


def _aside(job: Job, config: RunConfig, writer: checkpoint.Writer) -> RayAside | None:
    """What validates while training goes on, where that is wished."""
    if not config.validation.aside:
        return None
    return RayAside(Subject(job.config, "", job.make_learner), job.archive, writer, config)


def _restored(saved: checkpoint.Checkpoint | None, learner: Learner, optimizer: Optimizer) -> Progress:
    """Where the run goes on, its weights and optimizer state put back."""
    if saved is None:
        return Progress()
    settings = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    try:
        checkpoint.restore(saved, learner, optimizer)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"checkpoint of step {saved.step} does not fit the changed config ({str(error).splitlines()[0]}); "
            "undo what changes the learner or the optimizer, or start a new run from it with start="
        ) from error
    # The config may be another one than then: what it says of the optimizer holds, not what was saved.
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    kept = {key: value for key, value in saved.state.items() if key in Progress.__dataclass_fields__}
    return Progress(**{**kept, "step": saved.step, "stopped": ""})


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


def _latest(archive: Archive) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from: rank 0 chooses, so that all ranks take the same one."""
    chosen: int | InputError | None = None
    if ranks.rank() == 0:
        try:
            chosen = archive.newest()
        except InputError as error:
            chosen = error
    chosen = ranks.told_by_first(chosen)
    if isinstance(chosen, InputError):
        raise chosen
    return None if chosen is None else archive.load(chosen)


def _set_threads(config: RunConfig, saved: checkpoint.Checkpoint | None) -> None:
    """The thread count changes the last bits, so a resumed run of the same size keeps it (law 3)."""
    even = max(1, len(os.sched_getaffinity(0)) // ranks.world())
    threads = config.workers.threads or even
    if saved is not None and saved.state["world"] == ranks.world() and config.workers.threads is None:
        threads = saved.state["threads"]
    torch.set_num_threads(threads)


def _set_precision(config: RunConfig) -> None:
    """Float32 products are float32 unless the config says otherwise: torch's own default for convolutions is TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.engine.tf32


def _validate(config: RunConfig, index: Index, learner: Learner, device: torch.device, watchdog: Watchdog) -> Score:
    """The headline metric on the frozen validation episodes, shared out over the ranks."""
    count, mode = config.validation.episodes, Mode(config.evaluate.mode)
    bring, headline = build.place(config, device), learner.task.headline

    def judged(learner: Learner, numbers: Iterable[int]) -> list[tuple[int, float]]:
        sampler, reader = build.validation(config, index)
        scores = []
        for number, episode in frozen(sampler, reader, numbers):
            watchdog.moved(watchdog.place.step, "validating")
            scores.append((number, judge(learner, bring(episode), mode=mode)[headline]))
        return scores

    own = on_all_threads(learner, judged, range(ranks.rank(), count, ranks.world()))
    return shared_score(own, count, device)


def _save(
    config: RunConfig,
    index: Index,
    learner: Learner,
    optimizer: Optimizer,
    plan: Plan,
    writer: checkpoint.Writer,
    progress: Progress,
) -> None:
    """Rank 0 has it written while training goes on."""
    if ranks.rank() != 0:
        return
    settings = {"plan": list(plan), "threads": torch.get_num_threads(), "world": ranks.world()}
    # By the images' size, and what else is told of the data, the learner can be built where they are gone.
    told = outline(index, config.data.train)
    settings |= {"images": list(told.images), "outline": told._asdict(), "fingerprint": fingerprint(config)}
    state = {**progress.state(), **settings}
    state.pop("step")
    made = checkpoint.Checkpoint(progress.step, learner.state_dict(), optimizer.state_dict(), state, dump(config))
    needed = {progress.best_step, *([progress.pending] if progress.pending else [])}
    writer.write(made, needed=needed)


def _recorder(archive: Archive, config: RunConfig) -> Callable[[int, dict[str, float]], None]:
    """Rank 0 tells the metrics, with its machine's own now and then."""
    looked_s = 0.0

    def record(step: int, values: dict[str, float]) -> None:
        nonlocal looked_s
        if ranks.rank() != 0:
            return
        if time.monotonic() - looked_s >= SYSTEM_EVERY_S:
            looked_s = time.monotonic()
            values = {**values, **{f"system/{name}": value for name, value in system_metrics().items()}}
        else:
            # The time of every rank, by which a slow one is known, would be most of what is told.
            values = {name: value for name, value in values.items() if not name.startswith("rank/")}
        if step % config.tracking.log_every == 0 or "train/loss" not in values:
            archive.metrics(step, values)

    return record


@contextmanager
def _traced(archive: Archive, config: RunConfig, step: int) -> Iterator[None]:
    """Rank 0 keeps a profiler trace of the meta-step that the config names, for chrome://tracing or Perfetto."""
    if ranks.rank() != 0 or step != config.engine.profile_at or step == 0:
        yield
        return
    # Chunks side by side are computed by threads that the profiler otherwise does not look at.
    with torch.profiler.profile(experimental_config=_ExperimentalConfig(profile_all_threads=True)) as profile:
        yield
    with TemporaryDirectory() as folder:
        path = Path(folder, f"trace-step-{step:08d}.json")
        profile.export_chrome_trace(str(path))
        archive.trace(path.name, path.read_bytes())
