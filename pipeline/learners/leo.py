"""A learner that searches an episode's classifier in a latent space, from which a network writes weights."""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from pipeline.episode import Episode, Outcome
from pipeline.learners.embedding import Decide, EmbeddingLearner
from pipeline.learners.metric import class_means
from pipeline.models.heads import directions
from pipeline.models.norm import Given, Normalise, Recorded
from pipeline.tasks.task import Task
from pipeline.tensor_noise import Chance


class Gaussian(NamedTuple):
    """Independent normal distributions: mean and standard deviation of each, of one shape."""

    mean: Tensor
    deviation: Tensor

    def drawn(self, chance: Chance | None) -> Tensor:
        """A sample; without noise the mean."""
        if chance is None:
            return self.mean
        return self.mean + self.deviation * chance.normals(*self.mean.shape, dtype=self.mean.dtype)

    def divergence(self) -> Tensor:
        """KL to the standard normal distribution, the mean over all of them."""
        return (self.mean.square() + self.deviation.square() - 1).mean() / 2 - self.deviation.log().mean()


class Search(NamedTuple):
    """An inner loop: the distribution of the codes, where they began, where they came to, and the classifier."""

    codes: Gaussian
    begin: Tensor
    end: Tensor
    weights: Tensor


class Terms(NamedTuple):
    """How much the terms beside the query loss count (equations 7 and 8)."""

    divergence: float
    penalty: float
    orthogonality: float


@final
class LeoLearner(EmbeddingLearner):
    """Latent embedding optimisation (Rusu et al. 2019, section 2, algorithm 1).

    The code z of a class is drawn from a Gaussian, the mean of relate(encode(x), encode(x')) over the support samples x of the
    class and all samples x' (equations 2 and 3). decode(z) gives mean and deviation of the class's weights, from which they
    are drawn; logits are w · x (4, 5). `steps` steps of gradient descent on the support loss move the codes (6), `tuning_steps`
    more the weights themselves. Both rates are learned. The loss is
    query loss + β KL(z ‖ N(0, 1)) + γ |stopgrad(z') − z|² + λ |C − 1|² (7, 8), C being the correlations of the
    decoder's weights between latent dimensions; each term is a mean over its numbers, as in the authors' code. λ₁ is the outer
    optimizer's weight decay. The support loss is the task's, a mean where the paper has a sum: the learned rates take that up.

    Outside training nothing is drawn: means stand for the distributions. Deviations are exponentials, those of weights times
    √(2 / (features + ways)). Any number of ways will do.

    With `is_frozen` the encoder is fixed, by its running norm statistics too, as in the paper; else it is trained along.
    """

    advice = "lower learner.lr, learner.tuning_lr or meta.optimizer.lr"

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        *,
        features: int,
        latent: int,
        steps: int,
        tuning_steps: int,
        lr: float,
        tuning_lr: float,
        terms: Terms,
        is_frozen: bool = False,
    ):
        super().__init__(model.requires_grad_(not is_frozen), task)
        self.steps, self.tuning_steps, self.terms, self.is_frozen = steps, tuning_steps, terms, is_frozen
        wide = 2 * latent
        self.encode, self.decode = nn.Linear(features, latent, bias=False), nn.Linear(latent, 2 * features, bias=False)
        layers = [nn.Linear(wide, wide, bias=False) for _ in range(3)]
        self.relate = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        for layer in (self.encode, self.decode, *layers):
            nn.init.xavier_uniform_(layer.weight)
        self.rate, self.tuning_rate = nn.Parameter(torch.tensor(lr)), nn.Parameter(torch.tensor(tuning_lr))

    def codes(self, support: Tensor, labels: Tensor, ways: int) -> Gaussian:
        """The distribution of every class's code, (ways, latent)."""
        each = self.encode(support)
        square = (len(each), *each.shape)
        pairs = torch.cat([each[:, None].expand(square), each[None].expand(square)], 2)
        mean, logarithm = class_means(self.relate(pairs).mean(1), labels, ways).chunk(2, 1)
        return Gaussian(mean, logarithm.exp())

    def decoded(self, codes: Tensor) -> Gaussian:
        """The distribution of every class's weights, (ways, features)."""
        mean, logarithm = self.decode(codes).chunk(2, 1)
        return Gaussian(mean, logarithm.exp() * math.sqrt(2 / sum(mean.shape)))

    def search(self, support: Tensor, labels: Tensor, ways: int, chance: Chance | None) -> Search:
        """The inner loop on features (samples, features) and labels (samples,) of the support."""

        def loss(weights: Tensor) -> Tensor:
            return self.task.loss(support @ weights.T, labels)

        def drawn(codes: Tensor, step: int) -> Tensor:
            return self.decoded(codes).drawn(chance and chance.at(f"weights/{step}"))

        codes = self.codes(support, labels, ways)
        begin = end = codes.drawn(chance and chance.at("codes"))
        for step in range(self.steps):
            end = end - self.rate * torch.func.grad(lambda z, step=step: loss(drawn(z, step)))(end)
        weights = drawn(end, self.steps)
        for _ in range(self.tuning_steps):
            weights = weights - self.tuning_rate * torch.func.grad(loss)(weights)
        return Search(codes, begin, end, weights)

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        weights = self.search(support, labels, ways, normalise.chance).weights
        return lambda query: query @ weights.T

    def outcome(self, episode: Episode) -> Outcome:
        support, query, ways, key = episode
        chance = Chance(key)
        recorded = Recorded(chance=chance)
        normalise = Given(self.running.statistics(), chance=chance) if self.is_frozen else recorded
        known, asked = self._embedded(support, query.inputs, normalise)
        found = self.search(known, support.targets, ways, chance)
        predictions = asked @ found.weights.T
        shift = (found.end.detach() - found.begin).square().mean()
        divergence, correlation = found.codes.divergence(), self.correlation()
        terms = self.terms.divergence * divergence + self.terms.penalty * shift + self.terms.orthogonality * correlation
        metrics = {"divergence": divergence.detach(), "shift": shift.detach()}
        loss = self.loss(predictions, query.targets) + terms
        return Outcome(loss, self.task.metrics(predictions, query.targets) | metrics, recorded.statistics)

    def correlation(self) -> Tensor:
        """The mean square of what correlates in the decoder's weights: nought where latent dimensions are orthogonal."""
        rows = directions(self.decode.weight.T)
        return (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).square().mean()
