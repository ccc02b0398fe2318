"""How d(query loss) / d(meta-parameters) is obtained: each estimate turns an inner problem into an outcome (law 4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pipeline.calculus import gradient, pull
from pipeline.episode import Outcome, Params, with_gradient
from pipeline.learners.unroll import InnerProblem, advance, first, trajectory
from pipeline.learners.walk_back import walked_back
from pipeline.noise import Noise, Purpose


class Estimate(nn.Module, ABC):
    """Values that follow the meta-step are set by `begin`, the same on all ranks; they are no part of a checkpoint."""

    differentiates_rules = True
    """Whether parameters of a learned rule receive a gradient."""
    differentiates_slow = True
    """Whether meta-parameters that do not adapt receive a gradient."""
    advice = ""
    """What to do when losses are not finite, if that is not simply to lower a rate."""

    def begin(self, step: int) -> None:
        """Told before each meta-step, on all ranks alike."""

    def phase(self) -> Hashable:
        """What decides how an outcome is computed; see `Learner.phase`."""
        return ()

    @abstractmethod
    def forward(self, problem: InnerProblem) -> Outcome:
        """The outcome of an episode after its inner loop."""


def _dot(a: Params, b: Params) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def _norm(a: Params) -> Tensor:
    return _dot(a, a).sqrt()


def _plus(a: Params, factor: Tensor | float, b: Params) -> Params:
    return {name: value + factor * b[name] for name, value in a.items()}


@final
class Unrolled(Estimate):
    """Backpropagate through every inner step, second derivatives included (MAML; Finn et al. 2017, equation 1).

    With `recompute` the inner loop runs forward without a graph, keeps the fast weights of every step, and is walked back
    one step at a time: the same gradient, with the memory of a single step.

    With `multi_step` = n > 0 the query loss counts after every inner step, each with weight 1 / steps at first, and all but
    the last fade out over n meta-steps (MAML++; Antoniou et al. 2019, section 4, "multi-step loss optimization").
    Before meta-step `first_order_until` inner gradients are constants (ibid., "derivative-order annealing").
    """

    weights: Tensor

    def __init__(self, steps: int, *, recompute: bool = False, multi_step: int = 0, first_order_until: int = 0):
        super().__init__()
        self.recompute, self.multi_step, self.first_order_until = recompute, multi_step, first_order_until
        self.second_order = first_order_until == 0
        self.register_buffer("weights", torch.zeros(steps), persistent=False)
        self.begin(0)

    def begin(self, step: int) -> None:
        self.second_order = step >= self.first_order_until
        if not self.multi_step:
            return
        steps, share = len(self.weights), min(1.0, step / self.multi_step)
        early = (1 - share) / steps
        self.weights.fill_(early)
        self.weights[-1] = 1 - (steps - 1) * early

    def phase(self) -> Hashable:
        return self.second_order

    def forward(self, problem: InnerProblem) -> Outcome:
        if self.recompute:
            return walked_back(problem)
        points = list(trajectory(problem, second_order=self.second_order))[1:]
        outcome = problem.query(problem.meta, points[-1], problem.steps)
        if not self.multi_step:
            return outcome
        losses = [problem.query(problem.meta, fast, step).loss for step, fast in enumerate(points[:-1], 1)]
        weighted = (torch.stack([*losses, outcome.loss]) * self.weights.to(outcome.loss.dtype)).sum()
        # The value stays the query loss after the last step (law 4).
        return outcome._replace(loss=outcome.loss.detach() + weighted - weighted.detach())


@final
class FirstOrder(Estimate):
    """Backpropagate through the last point only, as if the inner gradients were constants (FOMAML; ibid., section 5.2)."""

    def forward(self, problem: InnerProblem) -> Outcome:
        *_, last = trajectory(problem, second_order=False)
        return problem.query(problem.meta, last, problem.steps)


@final
class Reptile(Estimate):
    """The way from the adapted weights back to the start (Nichol et al. 2018, algorithm 2); the query gives the value alone.

    With outer SGD of rate ε a meta-step is θ ← θ + ε · mean(φ − θ).
    """

    differentiates_rules = False
    differentiates_slow = False

    def forward(self, problem: InnerProblem) -> Outcome:
        start = problem.start(problem.meta)
        with torch.no_grad():
            *_, last = trajectory(problem, second_order=False)
            outcome = problem.query(problem.meta, last, problem.steps)
        back = _plus({name: value.detach() for name, value in start.items()}, -1.0, last)
        return outcome._replace(loss=with_gradient(outcome.loss, start, back))


@final
class Warp(Estimate):
    """WarpGrad: what does not adapt learns to shape single inner steps, wherever they start (Flennerhag et al. 2020, section 2).

    With the points φ₀ … φₙ of the inner loop as constants, meta-parameters ω that do not adapt get the gradient of their
    trajectory objective, the mean over k < n of the query loss at φₖ − update(φₖ; ω): through that step, and through none before
    it (algorithm 1, with the query as meta-loss). Where fast weights start, ω being constants, is another objective, left to
    the estimate `initial`. So nothing is walked back through the whole loop, unless `initial` does it.
    """

    def __init__(self, initial: Estimate):
        super().__init__()
        self.initial = initial

    def forward(self, problem: InnerProblem) -> Outcome:
        constant = {name: value.detach() for name, value in problem.meta.items()}
        start = problem.start(problem.meta)
        outcome = self.initial(problem._replace(meta=constant, start=lambda meta: start))
        losses, point = [], first(problem, constant)
        for step in range(problem.steps):
            after = advance(problem, problem.meta, point, step, second_order=True)
            losses.append(problem.query(problem.meta, after.fast, step + 1).loss)
            point = tree_map(torch.Tensor.detach, after)
        warped = torch.stack(losses).mean()
        return outcome._replace(loss=outcome.loss + (warped - warped.detach()))


@final
class Implicit(Estimate):
    """The implicit function theorem at the adapted weights (iMAML; Rajeswaran et al. 2019, equations 3 and 6).

    The inner loss is L(φ) + damping / 2 · |φ − θ|². With u = (∇²L + damping)⁻¹ ∇(query loss), found by `iterations` of
    conjugate gradients or of the Neumann series, the gradient is −u · ∂(inner gradient)/∂(meta-parameters); for θ itself
    that is damping · u. Meta-parameters that do not adapt get their exact share too.

    The metric `residual` is |b − A u| / |b|. An episode in which it is above `tolerance`, as where the damping is less than
    the most negative curvature, has a loss of nan: the meta-step is skipped and counted.
    """

    differentiates_rules = False
    advice = "the linear system of the implicit gradient could not be solved: increase learner.estimate.damping or .iterations"

    def __init__(self, damping: float, solver: Literal["cg", "neumann"], iterations: int, tolerance: float):
        super().__init__()
        self.damping, self.solver, self.iterations, self.tolerance = damping, solver, iterations, tolerance

    def forward(self, problem: InnerProblem) -> Outcome:
        constant = {name: value.detach() for name, value in problem.meta.items()}
        start = problem.start(constant)

        def proximal(meta: Params, fast: Params, step: int) -> Tensor:
            away = _plus(fast, -1.0, problem.start(meta))
            return problem.support_loss(meta, fast, step) + self.damping / 2 * _dot(away, away)

        def slope(meta: Params, fast: Params) -> Params:
            (found,), _ = gradient(lambda f: (proximal(meta, f, problem.steps), ()), fast)
            return found

        with torch.no_grad():
            *_, last = trajectory(problem._replace(meta=constant, support_loss=proximal), second_order=False)
            (target,), _ = gradient(lambda f: (problem.query(constant, f, problem.steps).loss, ()), last)
            curve = pull(lambda f: slope(constant, f), last)
            solve = self._neumann if self.solver == "neumann" else self._cg
            solution, rest = solve(lambda u: curve(u)[0], target)
            residual = _norm(rest) / _norm(target)
        assert start.keys() == last.keys()
        outcome = problem.query(problem.meta, last, problem.steps)
        pulled = -_dot(solution, slope(problem.meta, last))
        value = torch.where(residual <= self.tolerance, outcome.loss.detach(), torch.nan)
        loss = value + (outcome.loss - outcome.loss.detach()) + (pulled - pulled.detach())
        return outcome._replace(loss=loss, metrics={**outcome.metrics, "residual": residual})

    def _cg(self, product: Callable[[Params], Params], target: Params) -> tuple[Params, Params]:
        """u with A u ≈ target, and what is left of the target (Hestenes and Stiefel 1952)."""
        solution, residual, direction = tree_map(torch.zeros_like, target), target, target
        square = _dot(residual, residual)
        # Below this the residual is rounding, and going on would divide nought by nought.
        enough = square * torch.finfo(square.dtype).eps ** 2
        for _ in range(self.iterations):
            image, is_open = product(direction), square > enough
            length = torch.where(is_open, square / _dot(direction, image), 0.0)
            solution, residual = _plus(solution, length, direction), _plus(residual, -length, image)
            before, square = square, _dot(residual, residual)
            direction = _plus(residual, torch.where(is_open, square / before, 0.0), direction)
        return solution, residual

    def _neumann(self, product: Callable[[Params], Params], target: Params) -> tuple[Params, Params]:
        """u ← u + (target − A u) / damping: the truncated series Σ (−∇²L / damping)ʲ target / damping."""
        solution, residual = tree_map(torch.zeros_like, target), target
        for _ in range(self.iterations):
            solution = _plus(solution, 1 / self.damping, residual)
            residual = _plus(target, -1.0, product(solution))
        return solution, residual


@final
class Evolution(Estimate):
    """Antithetic evolution strategies (ES-MAML; Song et al. 2020, algorithm 2): no derivative of the inner loop is taken.

    g = Σ (F(θ + σε) − F(θ − σε)) ε / (2 σ pairs), F being the query loss after the inner loop. The directions ε of a
    meta-step are the same for all episodes and ranks (common random numbers); nothing but their seed is ever sent.
    """

    def __init__(self, parameters: Params, *, sigma: float, pairs: int, seed: int):
        super().__init__()
        self.sigma, self.pairs, self.seed = sigma, pairs, seed
        self.names = tuple(parameters)
        for number, value in enumerate(parameters.values()):
            self.register_buffer(f"direction{number}", value.new_zeros((pairs, value.numel())), persistent=False)
        self.begin(0)

    def begin(self, step: int) -> None:
        for pair in range(self.pairs):
            noise = Noise(self.seed, Purpose.LEARNER, step, pair)
            for number in range(len(self.names)):
                into = self.get_buffer(f"direction{number}")[pair]
                into.copy_(torch.from_numpy(noise.normals(len(into))))

    def forward(self, problem: InnerProblem) -> Outcome:
        with torch.no_grad():
            outcome = self._at(problem, problem.meta)
        return outcome._replace(loss=with_gradient(outcome.loss, problem.meta, self.slopes(problem)))

    @torch.no_grad()
    def slopes(self, problem: InnerProblem) -> Params:
        """g for the parameters that are evolved; all others stay as they are."""
        chosen = {name: value.detach() for name, value in problem.meta.items()}
        direction = {name: self.get_buffer(f"direction{n}") for n, name in enumerate(self.names)}
        gradient = {name: torch.zeros_like(chosen[name]) for name in self.names}
        for pair in range(self.pairs):
            epsilon = {name: value[pair].reshape(chosen[name].shape) for name, value in direction.items()}
            above, below = (
                self._at(problem, {**chosen, **_plus({n: chosen[n] for n in self.names}, sign * self.sigma, epsilon)})
                for sign in (1.0, -1.0)
            )
            slope = (above.loss - below.loss) / (2 * self.sigma * self.pairs)
            gradient = _plus(gradient, slope, epsilon)
        return gradient

    def _at(self, problem: InnerProblem, meta: Params) -> Outcome:
        *_, last = trajectory(problem._replace(meta=meta), second_order=False)
        return problem.query(meta, last, problem.steps)


@final
class EvolvedRule(Estimate):
    """Search over the learning procedure: the rule's parameters evolve, `rest` differentiates all others.

    A meta-step estimates the gradient, at the rule's parameters, of the query loss smoothed over them (`Evolution`, with these
    parameters alone varied). So it neither looks through the inner loop nor asks that a rule be differentiable, and a few
    pairs are enough for the few numbers of a `Procedure`.
    """

    def __init__(self, rest: Estimate, evolution: Evolution):
        super().__init__()
        self.rest, self.evolution = rest, evolution
        self.differentiates_slow, self.advice = rest.differentiates_slow, rest.advice

    def begin(self, step: int) -> None:
        self.rest.begin(step)
        self.evolution.begin(step)

    def phase(self) -> Hashable:
        return self.rest.phase()

    def forward(self, problem: InnerProblem) -> Outcome:
        evolved = {name: problem.meta[name] for name in self.evolution.names}
        held = {name: value.detach() for name, value in evolved.items()}
        outcome = self.rest(problem._replace(meta={**problem.meta, **held}))
        pull = with_gradient(torch.zeros_like(outcome.loss), evolved, self.evolution.slopes(problem))
        return outcome._replace(loss=outcome.loss + pull)
