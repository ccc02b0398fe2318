"""The inner loop: gradient steps on the support loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.episode import Outcome, Params
from pipeline.learners.rules import Rule


class InnerProblem(NamedTuple):
    """One episode as an estimator sees it: losses as functions of the fast weights, and how these move."""

    support_loss: Callable[[Params], Tensor]
    query: Callable[[Params], Outcome]
    rule: Rule
    steps: int


def trajectory(problem: InnerProblem, fast: Params, *, second_order: bool) -> Iterator[Params]:
    """Yield the fast weights before the first inner step and after each one.

    With `second_order` the inner gradients are functions of `fast`; without, constants.
    """
    state = problem.rule.init(fast)
    yield fast
    for step in range(problem.steps):
        # grad() ignores a no_grad outside it for its own gradient, but builds no graph through that gradient then.
        with nullcontext() if second_order else torch.no_grad():
            gradients = torch.func.grad(problem.support_loss)(fast)
        updates, state = problem.rule.update(gradients, state, step=step)
        fast = {name: value + updates[name] for name, value in fast.items()}
        yield fast


def unroll(problem: InnerProblem, fast: Params, *, second_order: bool) -> Params:
    """The fast weights after the last inner step."""
    *_, last = trajectory(problem, fast, second_order=second_order)
    return last
