"""Learners that classify by likeness in a learned embedding."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.learners.embedding import Decide, EmbeddingLearner
from pipeline.models.full_context import FullContext
from pipeline.models.heads import cosine_logits, directions
from pipeline.models.norm import Normalise
from pipeline.models.relation import Relation
from pipeline.tasks.losses import memberships
from pipeline.tasks.task import Task


def class_means(features: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Mean feature of every class: (samples, features), (samples,) -> (ways, features)."""
    # A matrix product instead of index_add: the same sum in one order on every device, and vmap-friendly.
    members = (labels[None, :] == torch.arange(ways, device=labels.device)[:, None]).to(features.dtype)
    return members @ features / members.sum(1, keepdim=True)


def imprinted(features: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Directions of the classes' mean directions, (ways, features): weights of a cosine head (Qi et al. 2018, "imprinting")."""
    return directions(class_means(directions(features), labels, ways))


def squared_distance(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Squared Euclidean distances: (samples, features), (ways, features) -> (samples, ways)."""
    return (queries[:, None, :] - prototypes[None, :, :]).square().sum(-1)


@final
class PrototypeLearner(EmbeddingLearner):
    """Prototypical networks: the nearest class mean in squared Euclidean distance (Snell et al. 2017, equations 1 and 2)."""

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        prototypes = class_means(support, labels, ways)
        return lambda query: -squared_distance(query, prototypes)


@final
class CosineLearner(EmbeddingLearner):
    """w · cos + b of a query and the direction of a class, w and b learned (Wan et al. 2018, "GE2E", equation 5).

    The direction of a class is that of its samples' mean direction. b changes no softmax; it makes the sigmoid of a score the
    chance that two images are of one class, where the loss asks for it.
    """

    def __init__(self, model: nn.Module, task: Task, *, scale: float, offset: float):
        super().__init__(model, task)
        self.scale, self.offset = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(offset))

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        weight = imprinted(support, labels, ways)
        return lambda query: cosine_logits(query, weight, self.scale) + self.offset


def attended(queries: Tensor, support: Tensor, labels: Tensor, ways: int) -> Tensor:
    """log P of each class by attention to the support: features (queries, dim), (samples, dim) -> (queries, ways)."""
    # Cosines are at most 1 in size, so no attention is so small that its logarithm is not finite.
    attention = (directions(queries) @ directions(support).T).softmax(1)
    return (attention @ memberships(labels, ways, support.dtype)).log()


@final
class MatchingLearner(EmbeddingLearner):
    """Matching networks: attention over the support's labels (Vinyals et al. 2016, equation 1).

    P(y | x) = Σᵢ a(x, xᵢ) yᵢ with a the softmax over i of the cosine of x and xᵢ (section 2.1.1). A prediction is log P, so
    that cross-entropy is −log P. Support and query share one embedding; this is the learner without full context.
    """

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        return lambda query: attended(query, support, labels, ways)


@final
class ContextualMatchingLearner(EmbeddingLearner):
    """Matching networks with full context embeddings: `MatchingLearner` on f(x, S) and g(xᵢ, S) (ibid., section 2.1.2).

    g reads the support in the order in which the episode has it: class by class in the order of their labels, the shots of a
    class in the order in which they were drawn. Both are pure functions of the episode (law 1), and random; another order of the
    same support gives other predictions. f looks at its own query and the support alone (law 8).
    """

    def __init__(self, model: nn.Module, task: Task, context: FullContext):
        super().__init__(model, task)
        self.context = context

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        known = self.context.support(support)
        return lambda query: attended(self.context.query(query, known), known, labels, ways)


@final
class RelationLearner(EmbeddingLearner):
    """Relation networks: a learned comparison of feature maps (Sung et al. 2018, section 3.2, equations 1 and 2).

    The score of a query for a class is that of the relation module on the class's map beside the query's. The class's map
    is the mean of its samples' maps where the paper sums them: the same up to the scale of the module's first weights, and
    it holds for any number of shots.

    `loss`: "mse" between sigmoid scores and one-hot labels (equation 2), a prediction being the logarithm of a score; or the
    task's, on scores without the sigmoid.
    """

    def __init__(self, model: nn.Module, task: Task, relation: Relation, *, loss: Literal["mse", "task"] = "mse"):
        super().__init__(model, task, relation)
        self.relation, self.squares = relation, loss == "mse"

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        means = class_means(support.flatten(1), labels, ways).reshape(ways, *support.shape[1:])

        def decide(query: Tensor) -> Tensor:
            each = (query.shape[0], ways, *means.shape[1:])
            pairs = torch.cat([means[None].expand(each), query[:, None].expand(each)], 2)
            scores = self.relation(pairs.flatten(0, 1), normalise).reshape(query.shape[0], ways)
            return F.logsigmoid(scores) if self.squares else scores

        return decide

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        if not self.squares:
            return self.task.loss(predictions, targets)
        return F.mse_loss(predictions.exp(), memberships(targets, predictions.shape[1], predictions.dtype))
