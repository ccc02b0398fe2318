"""What learners share that decide from features alone: support and query embedded alike, norm statistics, the two modes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.episode import Batch, Episode, Outcome, Statistics
from pipeline.errors import InputError
from pipeline.learners.learner import Learner, Mode, Predictor
from pipeline.models.drop import DropBlock
from pipeline.models.norm import Given, Norm, Normalise, Recorded, Running, by_batch
from pipeline.tasks.losses import memberships
from pipeline.tasks.task import Task
from pipeline.tensor_noise import Chance

Decide = Callable[[Tensor], Tensor]
"""Features of queries (samples, …) -> predictions (samples, ways)."""
Embed = Callable[[Tensor, Normalise], Tensor]
"""Inputs (samples, …) and how to normalise -> features (samples, …)."""


class EmbeddingLearner(Learner, ABC):
    """No gradient step is taken inside an episode; what is its own is how features of the support decide on others.

    Trained with the batch statistics of support and query together; inductive predictions use running averages of them.
    `parts` are modules beside the model whose norm layers take part in that.

    With `backward` H > 0 a meta-gradient flows back through H support samples of each class alone, so that memory grows with H
    and not with the support (LITE; Bronskill et al. 2021, section 3). The value stays that of the whole support: the other
    features are computed in parts and without a graph. With vᵢ the derivative of the loss at feature fᵢ, taken at these exact
    values, what the N samples of a class give to the gradient, Σᵢ vᵢ ∂fᵢ/∂θ, becomes N/H · Σₕ vₕ ∂fₕ/∂θ over H of them. Its mean
    over all choices of the H is the exact gradient, whatever the loss makes of the features: the vᵢ do not depend on the choice.
    Only a feature that depends on other samples of the support would break that, so batch norm is refused; a network that
    sees the support beside the encoder, as the set encoder of CNAPs, keeps the graph of all of it. The H are the first of each
    class: the sampler draws the support of a class in random order, so that they are a uniformly random subset, the same one
    on any rank.
    """

    backward: int = 0

    def __init__(self, model: nn.Module, task: Task, *parts: nn.Module):
        super().__init__()
        self.model, self.task = model, task
        self.running = Running(nn.ModuleList([model, *parts]))

    def embed(self, support: Batch) -> Embed:
        """What makes features in an episode with this support: the model as it is, unless a learner changes it."""
        return self.model

    def spare(self, backward: int) -> None:
        """Have gradients flow through so many support samples of each class alone.

        Raises:
            InputError: features depend on other samples, or no gradient flows through them at all.
        """
        if any(isinstance(part, Norm) for part in self.model.modules()):
            raise InputError(
                f"learner.backward = {backward}: batch norm makes a feature depend on all samples of the support; set "
                "model.norm = group, another model.kind, as vit, or learner.backward = 0"
            )
        if any(isinstance(part, DropBlock) and part.drop > 0 for part in self.model.modules()):
            raise InputError(
                f"learner.backward = {backward}: the parts of a support would all lose the same activations; set model.drop = 0 "
                "or learner.backward = 0"
            )
        if not any(value.requires_grad for value in self.model.parameters()):
            raise InputError(
                f"learner.backward = {backward}: no gradient flows through the encoder, so that there is none to spare; set "
                "learner.backward = 0"
            )
        self.backward = backward

    @abstractmethod
    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        """What the support's features (samples, …) and labels (samples,) say about queries."""

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """A scalar, mean over the queries; the task's, unless a paper has its own."""
        return self.task.loss(predictions, targets)

    def outcome(self, episode: Episode) -> Outcome:
        support, query, ways, key = episode
        recorded = Recorded(chance=Chance(key))
        if 0 < ways * self.backward < len(support.targets):
            predictions = self._sparing(support, query.inputs, ways, recorded)
        else:
            predictions = self._together(support, query.inputs, ways, recorded)
        loss = self.loss(predictions, query.targets)
        return Outcome(loss, self.task.metrics(predictions, query.targets), recorded.statistics)

    @torch.no_grad()
    def adapt(self, support: Batch, ways: int, *, mode: Mode) -> Predictor:
        if mode is Mode.TRANSDUCTIVE:
            return torch.no_grad()(lambda inputs: self._together(support, inputs, ways, by_batch))
        normalise = Given(self.running.statistics())
        embed = self.embed(support)
        decide = self.learn(embed(support.inputs, normalise), support.targets, ways, normalise)
        return torch.no_grad()(lambda inputs: decide(embed(inputs, normalise)))

    def _together(self, support: Batch, inputs: Tensor, ways: int, normalise: Normalise) -> Tensor:
        known, asked = self._embedded(support, inputs, normalise)
        return self.learn(known, support.targets, ways, normalise)(asked)

    def _embedded(self, support: Batch, inputs: Tensor, normalise: Normalise) -> tuple[Tensor, Tensor]:
        """Features of the support and of the inputs, from one pass over both."""
        features = self.embed(support)(torch.cat([support.inputs, inputs]), normalise)
        return features[: len(support.inputs)], features[len(support.inputs) :]

    def _sparing(self, support: Batch, inputs: Tensor, ways: int, normalise: Normalise) -> Tensor:
        """As `_together`, with gradients through the first samples of every class alone."""
        embed, order, few = self.embed(support), by_turns(support.targets), ways * self.backward
        with torch.no_grad():
            others = [embed(support.inputs[part], normalise) for part in order[few:].split(few)]
        own = embed(torch.cat([support.inputs[order[:few]], inputs]), normalise)
        each = memberships(support.targets[order], ways, own.dtype)
        # Of a class of N samples H are here: each stands for N / H.
        weight = each[:few] @ (each.sum(0) / each[:few].sum(0))
        first = own[:few].detach() + _along(weight, own) * (own[:few] - own[:few].detach())
        features = torch.cat([first, *others])[order.argsort()]
        return self.learn(features, support.targets, ways, normalise)(own[few:])

    def absorb(self, statistics: Statistics) -> None:
        self.running.absorb(statistics)


def by_turns(labels: Tensor) -> Tensor:
    """An order of the samples (samples,): the first of every class, then the second of every class, and so on."""
    earlier = (labels[:, None] == labels[None, :]).tril(-1)
    return earlier.sum(1).argsort(stable=True)


def _along(weight: Tensor, features: Tensor) -> Tensor:
    """A number per sample as a factor of features (samples, …)."""
    return weight.reshape(-1, *[1] * (features.ndim - 1))
