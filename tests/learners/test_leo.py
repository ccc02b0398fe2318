"""LEO against its equations, written once more with loops and autograd; what is drawn, and what is not."""

import math

import pytest
import torch
from small import episode, gradient, leo, relative
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from pipeline.episode import Batch
from pipeline.learners.learner import Mode
from pipeline.learners.leo import Gaussian
from pipeline.models.norm import Given
from pipeline.tensor_noise import Chance


def algorithm_1(learner, one, *, is_training: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the queries, and what equation 7 adds to their loss; in training with the noise of the episode's key."""
    features = learner.model(torch.cat([one.support.inputs, one.query.inputs]))
    support, query = features[: len(one.support.inputs)], features[len(one.support.inputs) :]
    labels, latent = one.support.targets, learner.encode.out_features

    def noise(place: str, like: torch.Tensor) -> torch.Tensor:
        drawn = Chance(one.key, place).normals(*like.shape, dtype=torch.float64)
        return drawn if is_training else torch.zeros_like(like)

    rows = []
    for way in range(one.ways):  # equation 2
        related = [learner.relate(torch.cat([learner.encode(x), learner.encode(y)]))
                   for x in support[labels == way] for y in support]  # fmt: skip
        rows.append(torch.stack(related).mean(0))
    mean, deviation = torch.stack(rows)[:, :latent], torch.stack(rows)[:, latent:].exp()
    begin = z = mean + deviation * noise("/codes", mean)  # equation 3

    def weights_of(z: torch.Tensor, step: int) -> torch.Tensor:  # equation 4
        numbers = z @ learner.decode.weight.T
        count = numbers.shape[1] // 2
        deviation = numbers[:, count:].exp() * math.sqrt(2 / (count + one.ways))
        return numbers[:, :count] + deviation * noise(f"/weights/{step}", deviation)

    def loss(weights: torch.Tensor) -> torch.Tensor:  # equation 5, a mean
        return F.cross_entropy(support @ weights.T, labels)

    for step in range(learner.steps):  # equation 6
        (slope,) = torch.autograd.grad(loss(weights_of(z, step)), z, create_graph=True)
        z = z - learner.rate * slope
    weights = weights_of(z, learner.steps)
    for _ in range(learner.tuning_steps):
        (slope,) = torch.autograd.grad(loss(weights), weights, create_graph=True)
        weights = weights - learner.tuning_rate * slope
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    divergence = kl_divergence(Normal(mean, deviation), prior).mean()
    rows = F.normalize(learner.decode.weight.T)
    orthogonality = F.mse_loss(rows @ rows.T, torch.eye(latent, dtype=torch.float64))
    added = learner.terms.divergence * divergence + learner.terms.orthogonality * orthogonality
    return query @ weights.T, added + learner.terms.penalty * F.mse_loss(begin, z.detach())


def test_the_loss_and_its_gradient_are_those_of_the_paper():
    """With every term, the stopped gradient of the penalty too."""
    learner, one = leo(penalty=0.7), episode(1)
    outcome = learner.outcome(one)
    outcome.loss.backward()
    found = gradient(learner)
    learner.zero_grad()
    logits, added = algorithm_1(learner, one, is_training=True)
    expected = F.cross_entropy(logits, one.query.targets) + added
    expected.backward()
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert relative(found, gradient(learner)) < 1e-8
    assert outcome.metrics["accuracy"] == (logits.argmax(1) == one.query.targets).double().mean()


def test_predictions_draw_nothing():
    learner, one = leo(), episode(2)
    expected, _ = algorithm_1(learner, one, is_training=False)
    predict = learner.adapt(one.support, one.ways, mode=Mode.TRANSDUCTIVE)
    assert torch.allclose(predict(one.query.inputs), expected, rtol=1e-9)
    losses = [learner.outcome(one._replace(key=torch.tensor(key))).loss.item() for key in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("ways", [2, 5, 9])
def test_the_number_of_ways_and_shots_is_free(ways):
    """Nine ways of nine support images, some with one shot and some with more."""
    learner, one = leo(), episode(3, shots=3)
    support = Batch(one.support.inputs, torch.arange(9) % ways)
    logits = learner.adapt(support, ways, mode=Mode.INDUCTIVE)(one.query.inputs)
    assert logits.shape == (9, ways) and logits.isfinite().all()


def test_other_numbers_for_the_classes_give_the_same_logits_in_other_places():
    learner, one = leo(), episode(4)
    places = torch.tensor([2, 0, 1])
    renamed = Batch(one.support.inputs, places[one.support.targets])
    plain, other = (
        learner.adapt(support, one.ways, mode=Mode.INDUCTIVE)(one.query.inputs) for support in (one.support, renamed)
    )
    assert torch.allclose(other[:, places], plain, rtol=1e-9)


def test_steps_in_the_latent_space_fit_the_support():
    learner, one = leo(), episode(5)
    features = learner.model(one.support.inputs).detach()
    losses = []
    for steps in (0, 2, 6):
        learner.steps = steps
        weights = learner.search(features, one.support.targets, one.ways, None).weights
        losses.append(F.cross_entropy(features @ weights.T, one.support.targets).item())
    assert losses == sorted(losses, reverse=True) and losses[2] < losses[0]


def test_a_frozen_encoder_has_neither_gradient_nor_new_statistics():
    learner, one = leo(is_frozen=True), episode(6)
    outcome = learner.outcome(one)
    outcome.loss.backward()
    assert outcome.statistics == {} and all(value.grad is None for value in learner.model.parameters())
    assert learner.encode.weight.grad.abs().max() > 0
    # By given statistics a query's logits do not depend on the others.
    normalise = Given(learner.running.statistics(), chance=Chance(one.key))
    known, asked = (learner.model(batch.inputs, normalise) for batch in (one.support, one.query))
    logits = asked @ learner.search(known, one.support.targets, one.ways, Chance(one.key)).weights.T
    terms = (
        learner.terms.divergence * outcome.metrics["divergence"] + learner.terms.orthogonality * learner.correlation()
    )
    assert outcome.loss.item() == pytest.approx((F.cross_entropy(logits, one.query.targets) + terms).item(), rel=1e-9)


def test_a_gaussian_is_drawn_with_its_mean_and_deviation():
    gaussian = Gaussian(torch.tensor([[2.0, -1.0]]).expand(5000, 2), torch.tensor([[0.5, 3.0]]).expand(5000, 2))
    drawn = gaussian.drawn(Chance(torch.tensor(1)))
    # Four standard errors.
    assert ((drawn.mean(0) - gaussian.mean[0]).abs() < 4 * gaussian.deviation[0] / 5000**0.5).all()
    assert torch.allclose(drawn.std(0), gaussian.deviation[0], rtol=4 / 10000**0.5)
    assert gaussian.drawn(None) is gaussian.mean


def test_orthogonal_dimensions_correlate_with_nothing():
    learner = leo()
    torch.nn.init.orthogonal_(learner.decode.weight)
    assert learner.correlation().abs() < 1e-12
