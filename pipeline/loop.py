"""The outer loop: meta-steps, and when to validate, save and stop. All ranks decide together (law 9)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from pipeline import ranks
from pipeline.engine import Engine, chunks
from pipeline.episode import Episode
from pipeline.judging import Score
from pipeline.notices import Notices

ASKED = "asked to stop"


class Diverged(RuntimeError):
    """Too many meta-steps in a row had a loss or gradient that is not finite."""


@dataclass
class Progress:
    """Where a run is; all of it is in the checkpoint."""

    step: int = 0
    """Meta-steps done."""
    best: float = float("-inf")
    best_step: int = 0
    stale: int = 0
    """Validations since the best one."""
    pending: int = 0
    """The meta-step whose checkpoint is being validated aside; 0: none is."""
    skipped: int = 0
    skipped_in_row: int = 0
    stopped: str = ""
    """Why the run ended before its last step, if it did."""

    def state(self) -> dict[str, Any]:
        return asdict(self)


class Budget(NamedTuple):
    """How long to train and how often to look."""

    steps: int
    batch: int
    clip: float
    skip_limit: int
    validate_every: int
    patience: int
    checkpoint_every: int


class Feed(Protocol):
    """Where this rank's episodes of a step come from."""

    waited_s: float

    def share(self, step: int, *, last: int) -> Any: ...


class Aside(Protocol):
    """What validates a checkpoint while training goes on."""

    def begin(self, step: int) -> None: ...

    def result(self) -> Score: ...


class Hooks(NamedTuple):
    """What the loop asks of its surroundings; all ranks call each of them at the same steps."""

    place: Callable[[Episode], Episode]
    rate: Callable[[int], float]
    validate: Callable[[], Score]
    record: Callable[[int, dict[str, float]], None]
    save: Callable[[Progress], None]
    stop_asked: Callable[[], bool]
    notices: Notices
    """Which nodes will be taken away: what is done by then is better saved."""
    aside: Aside | None = None
    """What validates, but for the last time, in the place of `validate`."""
    traced: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext()
    """Around the computation of a meta-step, so that it can be profiled."""
    moved: Callable[[int, str], None] = lambda step, doing: None
    """Hears what is begun after so many meta-steps."""


class StepSums(NamedTuple):
    """Sums over this rank's episodes of one step."""

    loss: Tensor
    metrics: dict[str, Tensor]
    statistics: dict[str, tuple[Tensor, Tensor]]
    inner_s: float
    """Forward: inner loops and queries; all of it in a compiled plan and side by side."""
    outer_s: float
    """Backward, with what of the all-reduce it could not hide."""


def wrap(engine: Engine) -> nn.Module:
    """The engine under DDP where there are several ranks, its buckets settled by one backward without loss."""
    if ranks.world() == 1:
        return engine
    module = DistributedDataParallel(engine)
    module([]).loss.backward()
    engine.zero_grad(set_to_none=True)
    return module


def meta_step(module: nn.Module, engine: Engine, episodes: Sequence[Episode], *, scale: float) -> StepSums:
    """Backward through all episodes of this rank; gradients are reduced over the ranks in the last chunk's backward.

    `scale` = ranks / meta-batch: DDP averages over ranks, so that the result is the mean over the meta-batch
    however unevenly its episodes are shared out (law 2).
    """
    parts = chunks(episodes, engine.plan)
    outcomes, inner_s, outer_s = [], 0.0, 0.0
    for number, part in enumerate(parts, 1):
        is_last = number == len(parts)
        # All but the last backward stay local: the last one all-reduces the sum of them.
        with module.no_sync() if isinstance(module, DistributedDataParallel) and not is_last else nullcontext():
            began = time.perf_counter()
            outcome = module(part)
            halfway = time.perf_counter()
            (outcome.loss * scale).backward()
            inner_s, outer_s = inner_s + halfway - began, outer_s + time.perf_counter() - halfway
        outcomes.append(tree_map(torch.Tensor.detach, outcome))
    loss, metrics, statistics = tree_map(lambda *tensors: torch.stack(tensors).sum(0), *outcomes)
    return StepSums(loss, metrics, statistics, inner_s, outer_s)


def meta_train(
    engine: Engine,
    optimizer: Optimizer,
    feed: Feed,
    *,
    budget: Budget,
    hooks: Hooks,
    progress: Progress,
    device: torch.device,
) -> Progress:
    """Train from `progress.step` to the last step, or until patience ends or somebody asks to stop.

    Raises:
        Diverged: `budget.skip_limit` steps in a row were not finite.
    """
    module = wrap(engine)
    if progress.pending and hooks.aside is not None:
        hooks.aside.begin(progress.pending)
    while progress.step < budget.steps and not progress.stopped:
        began = time.perf_counter()
        hooks.moved(progress.step, "waiting for episodes")
        share = feed.share(progress.step, last=budget.steps)
        waited_s = feed.waited_s
        for group in optimizer.param_groups:
            group["lr"] = hooks.rate(progress.step)
        optimizer.zero_grad(set_to_none=True)
        engine.learner.begin(progress.step)
        episodes = [hooks.place(episode) for episode in share.episodes]
        hooks.moved(progress.step, "computing")
        with hooks.traced(progress.step + 1):
            sums = meta_step(module, engine, episodes, scale=ranks.world() / budget.batch)
        norm = clip_grad_norm_(engine.parameters(), budget.clip).item()
        asked = [float(hooks.stop_asked()), float(hooks.notices.is_due())]
        told = [*asked, waited_s, sums.inner_s, sums.outer_s, sums.loss.item()]
        hooks.moved(progress.step, "waiting for the other ranks")
        computed_s = time.perf_counter()
        table = ranks.gather([*told, *(value.item() for value in sums.metrics.values())], device)
        reduce_s = time.perf_counter() - computed_s
        stops, looks, *_, loss = table[:, : len(told)].sum(0).tolist()
        metrics = table[:, len(told) :].sum(0).tolist()
        if _finite(norm) and _finite(loss):
            _update(engine, optimizer, sums, budget, progress)
        else:
            _skip(engine, list(zip(share.numbers, episodes, strict=True)), budget, progress, norm, device)
        progress.step += 1
        step_s = time.perf_counter() - began
        hooks.record(
            progress.step,
            {
                "train/loss": loss / budget.batch,
                **{f"train/{n}": v / budget.batch for n, v in zip(sums.metrics, metrics, strict=True)},
                "train/gradient_norm": norm,
                "train/rate": optimizer.param_groups[0]["lr"],
                "train/skipped": float(progress.skipped),
                "time/step_s": step_s,
                "time/episodes_per_s": budget.batch / step_s,
                "time/wait_for_ranks_s": reduce_s,
                **_times(table[:, len(asked) : len(told) - 1], step_s),
            },
        )
        if stops:
            progress.stopped = ASKED
        leaving = hooks.notices.came() if looks else frozenset()
        if leaving:
            hooks.record(progress.step, {"time/nodes_leaving": float(len(leaving))})
        _look(budget, hooks, progress, is_warned=bool(leaving))
    return progress


def _times(told: Tensor, step_s: float) -> dict[str, float]:
    """What took a meta-step's time, from (ranks, 3) seconds: waiting for data, inner loops, backward."""
    waited, inner, outer = told.unbind(1)
    ranks_s = {f"rank/{number}/inner_s": s for number, s in enumerate(inner.tolist())} if len(told) > 1 else {}
    return {
        "time/data_wait_share": waited.max().item() / step_s,
        "time/inner_s": inner.max().item(),
        "time/outer_s": outer.max().item(),
        "time/rank_spread": (inner.max() / inner.min()).item(),
        **ranks_s,
    }


def _finite(value: float) -> bool:
    return value - value == 0


def _update(engine: Engine, optimizer: Optimizer, sums: StepSums, budget: Budget, progress: Progress) -> None:
    """The outer update."""
    progress.skipped_in_row = 0
    optimizer.step()
    if sums.statistics:
        flat = torch.cat([tensor for pair in sums.statistics.values() for tensor in pair])
        mean = ranks.add(flat.double()) / budget.batch
        parts = iter(mean.split([tensor.numel() for pair in sums.statistics.values() for tensor in pair]))
        engine.learner.absorb({layer: (next(parts), next(parts)) for layer in sums.statistics})


def _skip(
    engine: Engine,
    episodes: Sequence[tuple[int, Episode]],
    budget: Budget,
    progress: Progress,
    norm: float,
    device: torch.device,
) -> None:
    """Leave the weights as they are on all ranks, because the reduced loss or gradient is not finite."""
    progress.skipped += 1
    progress.skipped_in_row += 1
    if progress.skipped_in_row < budget.skip_limit:
        return
    # All ranks look where it began, so that all say the same.
    broken = next(((n, at) for n, episode in episodes if (at := engine.learner.breaks(episode)) is not None), (-1, -1))
    found = [row for row in ranks.gather([float(value) for value in broken], device).tolist() if row[0] >= 0]
    where = f"; episode {found[0][0]:.0f} of that step left the finite at inner step {found[0][1]:.0f}" if found else ""
    advice = "lower the inner rate learner.rule.lr" if found else "lower meta.optimizer.lr or the inner rate"
    raise Diverged(
        f"the loss or the gradient (norm {norm}) was not finite in {progress.skipped_in_row} meta-steps in a row, up to "
        f"step {progress.step}{where}; {engine.learner.advice or advice}, or resume from an earlier checkpoint"
    )


def _look(budget: Budget, hooks: Hooks, progress: Progress, *, is_warned: bool) -> None:
    """Validate and save when it is time, and at the end; save when nodes will be taken away."""
    is_last = progress.step == budget.steps
    if progress.step % budget.validate_every == 0 or is_last:
        hooks.moved(progress.step, "validating")
        if hooks.aside is not None and progress.pending:
            _count(progress.pending, hooks.aside.result(), budget, hooks, progress)
        progress.pending = 0
        if hooks.aside is None or is_last:
            _count(progress.step, hooks.validate(), budget, hooks, progress)
        elif progress.stopped in ("", ASKED):
            progress.pending = progress.step
    # The best must be on disk before a worse one can follow, and what is validated aside is read from there.
    is_needed = progress.step in (progress.best_step, progress.pending)
    if is_last or progress.stopped or is_needed or is_warned or progress.step % budget.checkpoint_every == 0:
        hooks.moved(progress.step, "saving")
        hooks.save(progress)
    if hooks.aside is not None and progress.pending == progress.step and not progress.stopped:
        hooks.aside.begin(progress.step)


def _count(step: int, score: Score, budget: Budget, hooks: Hooks, progress: Progress) -> None:
    """What a validation of this meta-step means."""
    if score.mean > progress.best:
        progress.best, progress.best_step, progress.stale = score.mean, step, 0
    else:
        progress.stale += 1
    hooks.record(step, {"validation/score": score.mean, "validation/interval": score.interval})
    if budget.patience and progress.stale >= budget.patience:
        progress.stopped = f"no better validation in {progress.stale}"
