"""Learners that write an episode's weights with networks that were meta-learned, instead of searching for them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pipeline.episode import Batch, Params
from pipeline.errors import InputError
from pipeline.learners.embedding import Decide, Embed, EmbeddingLearner
from pipeline.learners.learned_rules import scaled
from pipeline.learners.metric import class_means
from pipeline.models.network import Network
from pipeline.models.norm import GroupNorm, Norm, Normalise
from pipeline.tasks.task import Task


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, outputs))


def _silence(layers: nn.Module) -> None:
    """Let the last layer of a network start at zero."""
    for value in list(layers.parameters())[-2:]:
        nn.init.zeros_(value)


@final
class FilmLearner(EmbeddingLearner):
    """CNAPs: the support writes scale and shift of every norm layer, and the classifier (Requeima et al. 2019, section 2).

    z is the mean of `set_encoder` over the support. For each norm layer a network of its own gives (γ, β) of z, and the layer's
    output y becomes (1 + γ) y + β; γ = β = 0 at first. With c the mean of the features of a class, its logit for features h is
    h · (c + ψ(c)) + χ(c). Nothing depends on the number of classes or samples, and no gradient is taken to adapt.

    The paper's encoder was trained before and stays fixed; here all is learned together. Its auto-regressive variant, in which
    z of a layer sees what earlier layers make of the support, is left out.
    """

    model: Network

    def __init__(self, model: Network, task: Task, set_encoder: nn.Module, *, context: int, features: int, hidden: int):
        """`context` and `features` are how long z and the model's features are, `hidden` the units of every network."""
        super().__init__(model, task)
        modulated = {name: part for name, part in model.named_modules() if isinstance(part, Norm | GroupNorm)}
        if not modulated:
            raise InputError(
                "learner.kind = film modulates norm layers, and the model has none; choose another model.kind"
            )
        self.set_encoder, self.modulated = set_encoder, tuple(modulated)
        self.films = nn.ModuleList(_mlp(context, hidden, 2 * part.weight.shape[-1]) for part in modulated.values())
        for film in self.films:
            _silence(film)
        self.weights, self.biases = _mlp(features, hidden, features), _mlp(features, hidden, 1)

    def embed(self, support: Batch) -> Embed:
        changed = self.film(support.inputs)
        return lambda inputs, normalise: functional_call(self.model, changed, (inputs, normalise))

    def film(self, inputs: Tensor) -> Params:
        """Weight and bias of the norm layers for a support (samples, …): γ and β are folded into them."""
        context, held, changed = (
            self.set_encoder(self.model.standard(inputs)).mean(0),
            dict(self.model.named_parameters()),
            {},
        )
        for name, film in zip(self.modulated, self.films, strict=True):
            scale, shift = film(context).chunk(2)
            changed[f"{name}.weight"] = held[f"{name}.weight"] * (1 + scale)
            changed[f"{name}.bias"] = held[f"{name}.bias"] * (1 + scale) + shift
        return changed

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        means = class_means(support, labels, ways)
        weights, biases = means + self.weights(means), self.biases(means).squeeze(1)
        return lambda query: query @ weights.T + biases


class Writer(nn.Module):
    """The fast weight of every slow one from its gradient g alone: −g + network(g), by one network that all weights share.

    Its last layer starts at zero: a network that gave all weights one sign at first would leave a ReLU behind them dead.
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        _silence(self.layers)

    def forward(self, gradients: Params) -> Params:
        return {name: self.layers(torch.stack(scaled(g), -1)).squeeze(-1) - g for name, g in gradients.items()}


def attention(queries: Tensor, keys: Tensor) -> Tensor:
    """The softmax over the keys of their cosine with each query: (queries, dim), (keys, dim) -> (queries, keys)."""
    return (F.normalize(queries) @ F.normalize(keys).T).softmax(1)


@final
class MetaNetLearner(EmbeddingLearner):
    """Meta networks: gradients at the support are turned into fast weights (Munkhdalai and Yu 2017, section 3, algorithm 1).

    With features f of the model, slow weights Q of the representation, W of the classifier, fast ones Q*, W*:
    Q* = d(∇_Q of the support's embedding loss), r(f) = ReLU(Q f) + ReLU(Q* f); for each support sample i
    W*_i = m(∇_W of its loss at r_i), remembered under the key r_i; and a query with representation r reads
    W* = Σ_i a_i W*_i, a being the softmax of the cosines of r and the keys, and has the logits W r + W* r.

    Kept: both levels of fast weights, per-sample memory with attention, layer augmentation (activations summed, before the
    softmax the logits), m and d as networks shared by all weights that see a gradient alone, in the scale of Andrychowicz et
    al. 2016, and derivatives through those gradients. Simplified: fast weights for the representation's last layer and the
    classifier, the convolutions being slow; the classifier reads r (the paper's alternative in line 20); d sees the mean
    gradient of the whole support, where an LSTM over sampled ones would depend on their order; the embedding loss is
    cross-entropy for any number of shots.
    """

    def __init__(self, model: nn.Module, task: Task, *, features: int, ways: int, representation: int, hidden: int):
        super().__init__(model, task)
        self.representation = nn.Linear(features, representation)
        self.embedding_head, self.head = task.head(representation, ways), task.head(representation, ways)
        self.write_representation, self.write_head = Writer(hidden), Writer(hidden)

    def learn(self, support: Tensor, labels: Tensor, ways: int, normalise: Normalise) -> Decide:
        fast = self.write_representation(self.embedding_gradient(support, labels))
        keys = self.represent(support, fast)
        memory = self.write_head(self.head_gradients(keys, labels))

        def decide(query: Tensor) -> Tensor:
            read = self.represent(query, fast)
            weights = attention(read, keys)
            slow = self.head(read)
            return slow + torch.einsum("qs,swd,qd->qw", weights, memory["weight"], read) + weights @ memory["bias"]

        return decide

    def represent(self, features: Tensor, fast: Params) -> Tensor:
        """Slow and fast activations summed: (samples, features) -> (samples, representation)"""
        quick = F.linear(features, fast["weight"], fast["bias"])
        return F.relu(self.representation(features)) + F.relu(quick)

    def embedding_gradient(self, support: Tensor, labels: Tensor) -> Params:
        """Of the support's mean embedding loss, at the slow weights of the representation."""

        def loss(slow: Params) -> Tensor:
            representation = F.relu(functional_call(self.representation, slow, (support,)))
            return self.task.loss(self.embedding_head(representation), labels)

        return torch.func.grad(loss)(dict(self.representation.named_parameters()))

    def head_gradients(self, keys: Tensor, labels: Tensor) -> Params:
        """Of each support sample's loss, at the slow weights of the classifier: (samples, …)"""

        def loss(slow: Params, key: Tensor, label: Tensor) -> Tensor:
            return self.task.loss(functional_call(self.head, slow, (key[None],)), label[None])

        return torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(dict(self.head.named_parameters()), keys, labels)
