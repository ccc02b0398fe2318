"""How d(query loss) / d(meta-parameters) is obtained: each estimator turns an inner problem into an outcome (law 4)."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.episode import Outcome, Params
from pipeline.learners.unroll import InnerProblem, unroll

Estimator = Callable[[InnerProblem, Params], Outcome]


def unrolled(problem: InnerProblem, fast: Params) -> Outcome:
    """Backpropagate through every inner step, second derivatives included (MAML; Finn et al. 2017, equation 1)."""
    return problem.query(unroll(problem, fast, second_order=True))


def first_order(problem: InnerProblem, fast: Params) -> Outcome:
    """Backpropagate through the last point only, as if the inner gradients were constants (FOMAML; ibid., section 5.2)."""
    return problem.query(unroll(problem, fast, second_order=False))
