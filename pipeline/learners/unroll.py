"""The inner loop: gradient steps on the support loss, as functions of the meta-parameters and of fast weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.calculus import gradient
from pipeline.episode import Outcome, Params
from pipeline.learners.rules import State


class InnerProblem(NamedTuple):
    """One episode as an estimate sees it: where fast weights start, what they minimise, how they move, how they are judged.

    All of it is told as functions of `meta`, the meta-parameters by name, so that an estimate can differentiate whatever
    part it wants; `step` counts the inner steps that are behind.
    """

    meta: Params
    start: Callable[[Params], Params]
    """(meta) -> fast weights before the first step."""
    support_loss: Callable[[Params, Params, int], Tensor]
    """(meta, fast, step) -> scalar."""
    query: Callable[[Params, Params, int], Outcome]
    """(meta, fast, step) -> outcome whose loss is the query loss."""
    init: Callable[[Params, Params], State]
    """(meta, fast) -> the rule's state before the first step."""
    update: Callable[[Params, Params, Params, Tensor, State, int], tuple[Params, State]]
    """(meta, gradients, fast, loss, state, step) -> what is added to the fast weights, and the next state."""
    steps: int


class Point(NamedTuple):
    """Where an inner loop is: fast weights and the rule's state."""

    fast: Params
    state: State


def first(problem: InnerProblem, meta: Params) -> Point:
    """Before the first inner step."""
    fast = problem.start(meta)
    return Point(fast, problem.init(meta, fast))


def advance(problem: InnerProblem, meta: Params, point: Point, step: int, *, second_order: bool) -> Point:
    """One inner step. With `second_order` the inner gradient is a function of `meta` and the point; without, a constant."""

    def judged(fast: Params) -> tuple[Tensor, Tensor]:
        loss = problem.support_loss(meta, fast, step)
        return loss, loss

    with nullcontext() if second_order else torch.no_grad():
        (gradients,), loss = gradient(judged, point.fast)
    updates, state = problem.update(meta, gradients, point.fast, loss, point.state, step)
    return Point({name: value + updates[name] for name, value in point.fast.items()}, state)


def trajectory(problem: InnerProblem, *, second_order: bool) -> Iterator[Params]:
    """Yield the fast weights before the first inner step and after each one."""
    point = first(problem, problem.meta)
    yield point.fast
    for step in range(problem.steps):
        point = advance(problem, problem.meta, point, step, second_order=second_order)
        yield point.fast
