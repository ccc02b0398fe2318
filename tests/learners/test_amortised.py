"""Learners whose weights are written by networks, against the equations of their papers."""

import math

import pytest
import torch
from small import episode, gradient, make
from torch import nn
from torch.nn import functional as F

from pipeline.episode import Batch, Episode
from pipeline.errors import InputError
from pipeline.learners.amortised import FilmLearner, Writer, attention
from pipeline.learners.learner import Mode
from pipeline.models import convolution
from pipeline.models.network import Network
from pipeline.models.norm import Norm, by_batch
from pipeline.models.resnet12 import ResNet12
from pipeline.tasks.classification import Classification


def predict(learner, one: Episode, mode: Mode = Mode.TRANSDUCTIVE) -> torch.Tensor:
    return learner.adapt(one.support, one.ways, mode=mode)(one.query.inputs)


def test_cnaps_modulates_the_output_of_every_norm_layer_by_the_support(monkeypatch):
    """With hooks that apply (1 + γ) y + β to what the layers give, γ and β from the mean of the set encoder's features."""
    # Else the first norm would be folded into its convolution, and its hook never called.
    monkeypatch.setattr(convolution, "FEW_CHANNELS", 0)
    learner, one = make("cnaps"), episode(1)
    context = torch.stack([learner.set_encoder(x[None])[0] for x in one.support.inputs]).mean(0)
    norms = [part for part in learner.model.modules() if isinstance(part, Norm)]
    assert len(norms) == len(learner.films) == 4

    def modulate(film):
        gamma, beta = film(context)[:6, None, None], film(context)[6:, None, None]
        assert gamma.abs().max() > 0.01 and beta.abs().max() > 0.01
        return lambda layer, arguments, output: (1 + gamma) * output + beta

    both = torch.cat([one.support.inputs, one.query.inputs])
    hooks = [norm.register_forward_hook(modulate(film)) for norm, film in zip(norms, learner.films, strict=True)]
    expected = learner.model(both)
    for hook in hooks:
        hook.remove()
    found = learner.embed(one.support)(both, by_batch)
    assert torch.allclose(found, expected, rtol=1e-10)
    assert not torch.allclose(found, learner.model(both), rtol=1e-2)


def test_cnaps_classifies_by_weights_and_bias_of_the_class_means():
    learner, one = make("cnaps"), episode(2)
    features = learner.embed(one.support)(torch.cat([one.support.inputs, one.query.inputs]), by_batch)
    support, query = features[: len(one.support.inputs)], features[len(one.support.inputs) :]
    logits = torch.empty(len(query), one.ways, dtype=torch.float64)
    for way in range(one.ways):
        mean = support[one.support.targets == way].mean(0)
        logits[:, way] = query @ (mean + learner.weights(mean)) + learner.biases(mean)
    assert torch.allclose(predict(learner, one), logits, rtol=1e-10)
    assert learner.outcome(one).loss.item() == pytest.approx(F.cross_entropy(logits, one.query.targets).item())


def test_cnaps_starts_with_the_model_as_it_is():
    """γ = β = 0, whatever the support."""
    encoder = ResNet12(channels=1, width=4)
    learner = FilmLearner(
        Network(encoder, nn.Identity()),
        Classification(),
        nn.Flatten(),
        context=256,
        features=encoder.features,
        hidden=3,
    )
    one = episode(3).to("cpu", torch.float32)
    assert len(learner.films) == 16
    assert torch.equal(learner.embed(one.support)(one.query.inputs, by_batch), learner.model(one.query.inputs))


@pytest.mark.parametrize("mode", list(Mode))
def test_cnaps_is_equivariant_in_classes(mode):
    """Other numbers for the classes give the same logits in other places."""
    learner, one = make("cnaps"), episode(4)
    places = torch.tensor([2, 0, 1])
    renamed = one._replace(support=Batch(one.support.inputs, places[one.support.targets]))
    assert torch.allclose(predict(learner, renamed, mode)[:, places], predict(learner, one, mode), rtol=1e-9)


@pytest.mark.parametrize("name", ["cnaps", "metanet"])
def test_shots_need_not_be_equal(name):
    learner, one = make(name), episode(5, shots=3)
    uneven = Batch(one.support.inputs[:-2], one.support.targets[:-2])
    assert predict(learner, one._replace(support=uneven)).isfinite().all()


def test_a_task_makes_the_features_of_cnaps():
    """The same query has other features with another support, and the set encoder learns from it."""
    learner, one, other = make("cnaps"), episode(6), episode(7)
    each = [learner.embed(e.support)(one.query.inputs, by_batch) for e in (one, other)]
    assert (each[0] - each[1]).abs().max() > 1e-3
    learner.outcome(one).loss.backward()
    assert all(value.grad.abs().max() > 0 for value in learner.set_encoder.parameters())


def test_film_without_a_norm_layer_is_refused():
    with pytest.raises(InputError, match="modulates norm layers, and the model has none; choose another model.kind"):
        FilmLearner(nn.Linear(4, 2), Classification(), nn.Flatten(), context=4, features=2, hidden=3)


def written(writer: Writer, slopes: torch.Tensor) -> torch.Tensor:
    """−g + network(g) for one number g after another, which the network sees as in Andrychowicz et al. 2016, appendix A."""
    found = []
    for slope in slopes.flatten().tolist():
        large = abs(slope) >= math.exp(-10)
        seen = [math.log(abs(slope)) / 10, math.copysign(1, slope)] if large else [-1.0, math.exp(10) * slope]
        found.append(writer.layers(torch.tensor(seen, dtype=torch.float64)) - slope)
    return torch.stack(found).reshape(slopes.shape)


def test_metanet_is_its_algorithm():
    """Algorithm 1 line by line, with autograd's gradients and a query and a support sample at a time."""
    learner, one = make("metanet"), episode(8)
    features = learner.model(torch.cat([one.support.inputs, one.query.inputs])).detach()
    support, query = features[: len(one.support.inputs)], features[len(one.support.inputs) :]
    slow = [learner.representation.weight, learner.representation.bias]

    embedding = [  # lines 1 to 5, the mean over the support in place of a sample of it
        F.cross_entropy(learner.embedding_head(F.relu(slow[0] @ x + slow[1])), label)
        for x, label in zip(support, one.support.targets, strict=True)
    ]
    slopes = torch.autograd.grad(torch.stack(embedding).mean(), slow)
    fast = [written(learner.write_representation, slope) for slope in slopes]  # line 6

    def represent(x: torch.Tensor) -> torch.Tensor:
        return F.relu(slow[0] @ x + slow[1]) + F.relu(fast[0] @ x + fast[1])

    memory, keys = [], []
    for x, label in zip(support, one.support.targets, strict=True):  # lines 7 to 14
        keys.append(represent(x).detach())
        loss = F.cross_entropy(learner.head(keys[-1]), label)
        slopes = torch.autograd.grad(loss, [learner.head.weight, learner.head.bias])
        memory.append([written(learner.write_head, slope) for slope in slopes])

    logits = []
    for x in query:  # lines 16 to 20
        r = represent(x)
        likeness = torch.stack([r @ key / (r.norm() * key.norm()) for key in keys]).exp()
        weights = likeness / likeness.sum()
        weight, bias = (sum(a * m[part] for a, m in zip(weights, memory, strict=True)) for part in (0, 1))
        logits.append(learner.head(r) + weight @ r + bias)
    assert torch.allclose(predict(learner, one), torch.stack(logits), rtol=1e-9)


def test_the_attention_of_metanet_is_a_distribution_over_the_support():
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (5, 3))
    weights = attention(queries, keys)
    assert weights.shape == (5, 3) and (weights > 0).all()
    assert torch.allclose(weights.sum(1), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(attention(keys, keys).argmax(1), torch.arange(3))
    assert torch.allclose(attention(7 * queries, 0.1 * keys), weights)


def test_a_fast_weight_of_metanet_sees_its_own_gradient_alone():
    """Shared by all weights: it commutes with any order of them, and with every shape."""
    writer = make("metanet").write_head
    slopes = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = writer({"w": slopes})["w"]
    assert torch.equal(writer({"w": slopes.T})["w"], found.T)
    changed = slopes.clone()
    changed[2, 3] *= -2
    differs = writer({"w": changed})["w"] != found
    assert differs.sum() == 1 and differs[2, 3]
    assert (writer({"w": slopes[1]})["w"] - found[1]).abs().max() < 1e-15


def test_metanet_learns_through_the_gradients_that_it_reads():
    """The embedding head is in no prediction: all that moves it are second derivatives."""
    learner = make("metanet")
    learner.outcome(episode(9)).loss.backward()
    assert learner.embedding_head.weight.grad.abs().max() > 0
    assert gradient(learner).isfinite().all()


def test_the_fast_weights_of_metanet_start_as_a_step_of_gradient_descent():
    slopes = {"w": torch.randn(3, 4)}
    assert torch.equal(Writer(6)(slopes)["w"], -slopes["w"])
