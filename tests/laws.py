"""The laws of meta-gradients, as checks that every task's tests call with learners and episodes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from gloo import on_ranks, work_here
from small import gradient, relative

from pipeline import checkpoint
from pipeline.config import dump
from pipeline.engine import Engine, Plan, chunks
from pipeline.episode import Episode
from pipeline.learners.learner import Learner
from pipeline.schema.run import RunConfig
from pipeline.spool import history

LOOP = Plan("loop", 1)


def run(learner: torch.nn.Module, plan: Plan, episodes) -> tuple[float, torch.Tensor, list[dict]]:
    """The summed loss, the gradient and the norm statistics of every part."""
    engine, loss, statistics = Engine(learner, plan), 0.0, []
    for part in chunks(episodes, plan):
        outcome = engine(part)
        outcome.loss.backward()
        loss += outcome.loss.item()
        statistics.append(outcome.statistics)
    flat = gradient(learner)
    learner.zero_grad()
    return loss, flat, statistics


def assert_plans_agree(learner: Learner, plans: Sequence[Plan], episodes: Sequence[Episode]) -> None:
    """Law 2: each plan gives the loss and the gradient of a loop over the same episodes in the other order."""
    loss, expected, _ = run(learner, LOOP, episodes)
    assert expected.isfinite().all()
    for plan in plans:
        value, found, _ = run(learner, plan, episodes[::-1])
        assert value == pytest.approx(loss, rel=1e-10), plan
        assert relative(found, expected) < 1e-10, plan


def assert_every_parameter_is_reached(learner: Learner, episode: Episode) -> None:
    Engine(learner, LOOP)([episode]).loss.backward()
    assert not [name for name, value in learner.named_parameters() if value.requires_grad and value.grad is None]


def assert_slope(learner: Learner, episode: Episode, weight: torch.Tensor, *, apart: float, rel: float) -> None:
    """The gradient of the episode's loss at a weight is how it changes along a random direction."""
    learner.outcome(episode).loss.backward()
    direction, values = torch.randn_like(weight), []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * apart * direction)
        values.append(learner.outcome(episode).loss.item())
        with torch.no_grad():
            weight.sub_(sign * apart * direction)
    assert weight.grad is not None
    assert (values[0] - values[1]) / (2 * apart) == pytest.approx((weight.grad * direction).sum().item(), rel=rel)


def assert_ranks_agree(config: RunConfig, folder: Path) -> None:
    """Law 5: two ranks have the losses of one, all through the run."""
    work_here(dump(config), str(folder / "one"))
    on_ranks(2, work_here, dump(config), str(folder / "two"))
    one, two = (checkpoint.latest(folder / run / "checkpoints").learner for run in ("one", "two"))
    # Not the values: a bias before a cosine or a norm may have a gradient of nothing but rounding, of which Adam makes steps.
    losses = [history(folder / run).series["train/loss"] for run in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and len(losses[0]) == config.meta.steps
    assert one.keys() == two.keys()
