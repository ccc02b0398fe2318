"""An inner loop that is walked back: the exact gradient of an unrolled one, with memory that hardly grows with its steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pipeline.calculus import gradient, pull
from pipeline.episode import Outcome, Params, with_gradient
from pipeline.learners.unroll import InnerProblem, Point, advance, first
from pipeline.memory import Ledger

KEPT_STEPS = 16
"""Inner steps up to which the fast weights of every step are kept while they are walked back."""


def walked_back(problem: InnerProblem) -> Outcome:
    """The outcome after the inner loop, its loss differentiated through every step, second derivatives included.

    The steps run once without a graph, keeping (fast weights, state); then the query loss's gradient is pulled back through
    one stretch of steps after another. `torch.utils.checkpoint` cannot be used here: it does not work inside `torch.func`,
    and keeps more (docs/decisions.md).
    """
    meta = {name: value.detach() for name, value in problem.meta.items()}

    def judged(meta: Params, fast: Params) -> tuple[Tensor, Outcome]:
        outcome = problem.query(meta, fast, problem.steps)
        return outcome.loss, outcome

    def stretch(begin: int, end: int) -> Callable[[Params, Point], Point]:
        """The steps `begin` … `end` - 1 as one function, through which a gradient can be pulled."""

        def steps(meta: Params, point: Point) -> Point:
            for step in range(begin, end):
                point = advance(problem, meta, point, step, second_order=True)
            return point

        return steps

    with torch.no_grad():
        point = first(problem, meta)
        begins = {0, *accumulate(_stretches(problem.steps, point, lambda: pull(stretch(0, 1), meta, point)))}
        kept: list[tuple[int, Point]] = []
        for step in range(problem.steps):
            if step in begins:
                kept.append((step, point))
            point = advance(problem, meta, point, step, second_order=False)
        (to_meta, to_fast), outcome = gradient(judged, meta, point.fast)
        to_point = Point(to_fast, tree_map(torch.zeros_like, point.state))
        end = problem.steps
        del to_fast
        while kept:
            begin, point = kept.pop()
            more, to_point = pull(stretch(begin, end), meta, point)(to_point, retain_graph=False)
            to_meta, end = tree_map(torch.add, to_meta, more), begin
            del more
        (more,) = pull(lambda m: first(problem, m), meta)(to_point)
        to_meta = tree_map(torch.add, to_meta, more)
    return outcome._replace(loss=with_gradient(outcome.loss, problem.meta, to_meta))


def _stretches(steps: int, point: Point, linearise: Callable[[], object]) -> list[int]:
    """How many steps to walk back at a time, first to last: points are kept where a stretch begins.

    All of them in short loops. In long ones a stretch's graph stands beside the points kept before it: as those become fewer
    on the way back, stretches may become longer, by as much as the bytes of a point make up for those of a step's graph: as
    long as fit into the least room that is enough for all steps.
    Either way every step is computed twice, once to keep its point and once with a graph.
    """
    if steps <= KEPT_STEPS:
        return [1] * steps
    with Ledger() as ledger:
        held = linearise()
        graph = max(1, ledger.held)
    del held
    weight = sum(value.nbytes for value in tree_leaves(point))

    def within(room: int) -> list[int]:
        """How long stretches may be in so many bytes: before the stretch of number n there are n points more than the first."""
        return [length for number in range(steps) if (length := (room - number * weight) // graph) > 0]

    least = bisect_left(range(steps * graph), True, lo=graph, key=lambda room: sum(within(room)) >= steps)
    lengths = within(least)
    # What is too many goes from the longest, the first.
    while (excess := sum(lengths) - steps) > 0:
        lengths[0] -= min(excess, lengths[0])
        lengths = lengths[lengths[0] == 0 :]
    return lengths
