"""MAML step for step against a second implementation, written from the paper with nothing but autograd and textbook layers."""

import torch
from small import episode, gradient_learner
from torch.nn import functional as F

from pipeline.engine import Engine, Plan
from pipeline.learners.estimators import Unrolled
from pipeline.loop import meta_step
from pipeline.models.norm import EPS

RATE, STEPS, TASKS, META_STEPS = 0.1, 2, 3, 4


def textbook(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Strided conv4 with batch statistics, its mean feature and a linear head."""
    for block in range(4):
        x = F.conv2d(x, weights[f"encoder.convs.{block}.weight"], stride=2, padding=1)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (weights[f"encoder.norms.{block}.{name}"][:, None, None] for name in ("weight", "bias"))
        x = torch.relu((x - mean) / (var + EPS).sqrt() * scale + shift)
    return x.mean((2, 3)) @ weights["head.weight"].t() + weights["head.bias"]


def algorithm_1(weights: dict[str, torch.Tensor], episodes) -> torch.Tensor:
    """Finn et al. 2017, algorithm 1, lines 4 to 8: the mean over tasks of the query loss after the inner steps."""
    losses = []
    for support, query, *_ in episodes:
        adapted = dict(weights)
        for _ in range(STEPS):
            loss = F.cross_entropy(textbook(adapted, support.inputs), support.targets)
            gradients = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
            adapted = {name: w - RATE * g for (name, w), g in zip(adapted.items(), gradients, strict=True)}
        losses.append(F.cross_entropy(textbook(adapted, query.inputs), query.targets))
    return torch.stack(losses).mean()


def test_losses_and_weights_are_the_same_over_several_meta_steps():
    learner = gradient_learner(steps=STEPS, estimate=Unrolled(STEPS))
    theirs = {name: value.detach().clone().requires_grad_() for name, value in learner.model.named_parameters()}
    engine = Engine(learner, Plan("vmap", TASKS))
    own_outer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    their_outer = torch.optim.Adam(theirs.values(), lr=1e-2)
    for step in range(META_STEPS):
        episodes = [episode(step * TASKS + number) for number in range(TASKS)]
        own_outer.zero_grad()
        sums = meta_step(engine, engine, episodes, scale=1 / TASKS)
        own_outer.step()
        loss = algorithm_1(theirs, episodes)
        their_outer.zero_grad()
        loss.backward()
        their_outer.step()
        assert abs(sums.loss.item() / TASKS - loss.item()) < 1e-10
    for name, value in learner.model.named_parameters():
        assert (value - theirs[name]).abs().max() < 1e-7, name
