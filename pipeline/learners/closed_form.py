"""Learners that fit a linear classifier to the support's features by a solver, and differentiate through it.

All of them find weights W (features, ways) = Xᵀ A for the support's features X (samples, features), so that what they solve is
as large as the support, not as the features: A (samples, ways) depends on X through the Gram matrix X Xᵀ alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from pipeline.learners.embedding import Decide, EmbeddingLearner
from pipeline.models.heads import directions
from pipeline.models.norm import Normalise
from pipeline.tasks.losses import memberships
from pipeline.tasks.task import Task


class LinearLearner(EmbeddingLearner, ABC):
    """Predicts the logits scale · query · W, the scale being learned.

    The papers' learned bias, one number for all classes, is left out: cross-entropy does not see it. `unit`: features count by
    their direction alone, each divided by its length (RFS; Tian et al. 2020).
    """

    def __init__(self, model: nn.Module, task: Task, *, scale: float, unit: bool = False):
        super().__init__(model, task)
        self.unit = unit
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    @abstractmethod
    def coefficients(self, gram: Tensor, members: Tensor) -> Tensor:
        """A from X Xᵀ (samples, samples) and one-hot labels (samples, ways)."""

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        dtype = self.log_scale.dtype

        # Solvers need all digits, whatever the encoder computes in.
        with torch.autocast(support.device.type, enabled=False):
            support = self._seen(support)
            weights = support.T @ self.coefficients(support @ support.T, memberships(labels, ways, dtype))

        def decide(query: Tensor) -> Tensor:
            with torch.autocast(query.device.type, enabled=False):
                return self.log_scale.exp() * (self._seen(query) @ weights)

        return decide

    def _seen(self, features: Tensor) -> Tensor:
        features = features.to(self.log_scale.dtype)
        return directions(features) if self.unit else features


@final
class RidgeLearner(LinearLearner):
    """R2D2: ridge regression of one-hot labels Y (Bertinetto et al. 2019, "efficient ridge regression base learners").

    W = Xᵀ (X Xᵀ + λ I)⁻¹ Y minimises |X W − Y|² + λ |W|² by the Woodbury identity; λ is learned.
    """

    def __init__(self, model: nn.Module, task: Task, *, penalty: float, scale: float, unit: bool = False):
        super().__init__(model, task, scale=scale, unit=unit)
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))

    def coefficients(self, gram: Tensor, members: Tensor) -> Tensor:
        return torch.linalg.solve(gram + self.log_penalty.exp() * _identity(gram), members)


@final
class LogisticLearner(LinearLearner):
    """LRD2: `steps` of Newton's method from 0 for one-vs-rest logistic regression (ibid., "iterative base learners").

    For labels y = ±1 of each class it minimises Σ log(1 + exp(−y x·w)) + λ/2 |w|² with λ learned. With m = X w, s = σ(m) σ(−m)
    and z = m + y σ(−y m) / s, a step of iteratively reweighted least squares is w = Xᵀ (X Xᵀ + λ diag(s)⁻¹)⁻¹ z.
    """

    def __init__(self, model: nn.Module, task: Task, *, penalty: float, scale: float, steps: int, unit: bool = False):
        super().__init__(model, task, scale=scale, unit=unit)
        self.steps = steps
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))

    def coefficients(self, gram: Tensor, members: Tensor) -> Tensor:
        # One system per class: (ways, samples), (ways, samples, samples).
        signs = 2 * members.T - 1
        found = torch.zeros_like(signs)
        ridge = self.log_penalty.exp() * _identity(gram)
        for _ in range(self.steps):
            margins = found @ gram
            # With r = √s the step is r (r X Xᵀ r + λ I)⁻¹ r z: nothing is divided by an s that has become nought.
            root = 0.5 / torch.cosh(margins / 2)
            target = root * margins + signs * torch.exp(-signs * margins / 2)
            found = root * torch.linalg.solve(root[:, :, None] * gram * root[:, None, :] + ridge, target)
        return found.T


@final
class SvmLearner(LinearLearner):
    """MetaOptNet: the multi-class support vector machine of Crammer and Singer (Lee et al. 2019, "convex base learners").

    Its dual is solved by `crammer_singer`; decisions are within 1e-4 of the exact ones.
    """

    advice = "the support vector machine of an episode may not have been solved: lower learner.cost, or the outer learning rate"

    def __init__(self, model: nn.Module, task: Task, *, cost: float, scale: float, unit: bool = False):
        super().__init__(model, task, scale=scale, unit=unit)
        self.cost = cost

    def coefficients(self, gram: Tensor, members: Tensor) -> Tensor:
        return crammer_singer(gram.double(), members.double(), self.cost).to(gram.dtype)


RIDGE = 1e-6
"""Added to the Gram matrix, as a share of its mean diagonal: features fewer than samples would leave it singular."""
BARRIER = 1e-10
"""The product of every variable of the dual and its multiplier at the solution, as a share of the cost."""
SHRINK = 0.1
"""Factor by which an iteration lowers the barrier."""
ITERATIONS = 40
"""Enough to reach the barrier and to settle there; the larger cost · |x|², the more it takes."""
SETTLED = 1e-3
"""How far a product may be from the barrier at the end, as a share of it."""


def crammer_singer(gram: Tensor, members: Tensor, cost: float) -> Tensor:
    """A with W = Xᵀ A minimising ½ |W|² + cost · Σₙ ξₙ, where w_yₙ·xₙ − w_k·xₙ ≥ 1 − ξₙ for all k ≠ yₙ, in float64.

    The dual has A = cost · Y − β with β ≥ 0 and Σₖ βₙₖ = cost, and minimises ½ tr(Aᵀ X Xᵀ A) + Σₙ βₙyₙ. A primal-dual
    interior-point method follows β ∘ ζ = barrier, ζ being the multipliers of β ≥ 0, to a low barrier. There the solution
    is a smooth function of X Xᵀ, and one more Newton step in which nothing else is differentiated has its exact
    derivative (implicit function theorem), so that the iterations keep no graph. Where they did not settle A is nan.
    """
    gram = gram + RIDGE * gram.diagonal().mean() * _identity(gram)
    constant, lowest = gram.detach(), BARRIER * cost
    beta = torch.full_like(members, cost / members.shape[1])
    slope = members - constant @ (cost * members - beta)
    zeta = slope - slope.amin(1, keepdim=True) + 1
    for _ in range(ITERATIONS):
        barrier = (SHRINK * (beta * zeta).mean()).clamp(min=lowest)
        to_beta = _newton(constant, members, cost, beta, zeta, barrier)
        to_zeta = (barrier - zeta * to_beta) / beta - zeta
        # A step stops short of the nearest bound.
        fastest = torch.maximum((-to_beta / beta).amax(), (-to_zeta / zeta).amax())
        length = 1 / (fastest / 0.99).clamp(min=1)
        beta, zeta = beta + length * to_beta, zeta + length * to_zeta
    is_settled = (beta * zeta / lowest - 1).abs().amax() < SETTLED
    found = cost * members - beta - _newton(gram, members, cost, beta, zeta, lowest)
    return torch.where(is_settled, found, torch.nan)


def _newton(gram: Tensor, members: Tensor, cost: float, beta: Tensor, zeta: Tensor, barrier: Tensor | float) -> Tensor:
    """The step of β towards β ∘ ζ = barrier, differentiable in the gradient of the dual but not in its curvature.

    Per class (X Xᵀ + diag(ζ / β)) step = residual + ν, with ν such that the β of a sample still sum to the cost.
    """
    inverse = torch.linalg.inv(gram.detach() + torch.diag_embed((zeta / beta).T))
    residual = (gram @ (cost * members - beta) - members + barrier / beta).T
    alone = (inverse @ residual[:, :, None]).squeeze(2)
    level = torch.linalg.solve(inverse.sum(0), cost - beta.sum(1) - alone.sum(0))
    return (alone + inverse @ level).T


def _identity(gram: Tensor) -> Tensor:
    return torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
