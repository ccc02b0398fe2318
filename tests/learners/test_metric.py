"""Learners that classify by likeness, against their defining equations."""

import pytest
import torch
from small import LEARNERS, OWN_HEAD, episode, make, relation
from torch.nn import functional as F

from pipeline.episode import Batch
from pipeline.learners.embedding import EmbeddingLearner
from pipeline.learners.learner import Mode
from pipeline.learners.metric import RelationLearner
from pipeline.learners.supervised import SupervisedLearner
from pipeline.models.conv4 import Conv4
from pipeline.models.network import Network
from pipeline.models.norm import Given, by_batch
from pipeline.models.relation import Relation
from pipeline.tasks.classification import Classification

EMBEDDING = [name for name in LEARNERS if isinstance(make(name), EmbeddingLearner)]


def embedded(learner, one) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of support and query, normalised together."""
    features = learner.model(torch.cat([one.support.inputs, one.query.inputs]), by_batch)
    known = len(one.support.inputs)
    return features[:known], features[known:]


def test_matching_sums_labels_by_attention_to_the_support():
    """P(y | x) = Σᵢ a(x, xᵢ) yᵢ with a = exp(cos(x, xᵢ)) / Σⱼ exp(cos(x, xⱼ))."""
    learner, one = make("matching"), episode(1)
    support, query = embedded(learner, one)
    expected = torch.zeros(len(query), one.ways, dtype=torch.float64)
    for number, x in enumerate(query):
        likeness = torch.stack([x @ other / (x.norm() * other.norm()) for other in support]).exp()
        for each, label in zip(likeness / likeness.sum(), one.support.targets, strict=True):
            expected[number, label] += each
    predictions = learner.adapt(one.support, one.ways, mode=Mode.TRANSDUCTIVE)(one.query.inputs)
    assert torch.allclose(predictions.exp(), expected, rtol=1e-10)
    assert torch.allclose(predictions.exp().sum(1), torch.ones(len(query), dtype=torch.float64))
    picked = expected[torch.arange(len(query)), one.query.targets]
    assert learner.outcome(one).loss.item() == pytest.approx(-picked.log().mean().item(), rel=1e-10)


def test_matching_does_not_see_how_long_features_are():
    learner, one = make("matching"), episode(2)
    support, query = embedded(learner, one)
    decide = [learner.learn(factor * support, one.support.targets, one.ways, by_batch) for factor in (1, 9)]
    assert torch.allclose(decide[0](query), decide[1](0.2 * query))


def test_relation_scores_every_query_against_every_class_mean():
    """r = g([mean map of the class, map of the query]), one pair at a time, by running statistics."""
    learner, one = make("relation"), episode(3)
    learner.absorb(learner.outcome(one).statistics)
    normalise = Given(learner.running.statistics())
    support, query = (learner.model(part.inputs, normalise) for part in (one.support, one.query))
    means = [support[one.support.targets == way].mean(0) for way in range(one.ways)]
    pairs = [[torch.cat([mean, x])[None] for mean in means] for x in query]
    expected = torch.stack([torch.cat([learner.relation(pair, normalise) for pair in row]) for row in pairs])
    scores = learner.adapt(one.support, one.ways, mode=Mode.INDUCTIVE)(one.query.inputs)
    assert torch.allclose(scores.exp(), expected.sigmoid(), rtol=1e-10)
    plain = relation(loss="task")
    plain.load_state_dict(learner.state_dict())
    scores = plain.adapt(one.support, one.ways, mode=Mode.INDUCTIVE)(one.query.inputs)
    assert torch.allclose(scores, expected, rtol=1e-10)


@pytest.mark.parametrize(("loss", "expected"), [
    ("mse", lambda scores, targets: (scores.exp() - torch.eye(scores.shape[1]).double()[targets]).square().mean()),
    ("task", F.cross_entropy),
])  # fmt: skip
def test_relation_is_trained_by_the_loss_asked_for(loss, expected):
    learner, one = relation(loss=loss), episode(4)
    scores = learner.adapt(one.support, one.ways, mode=Mode.TRANSDUCTIVE)(one.query.inputs)
    assert learner.outcome(one).loss.item() == pytest.approx(expected(scores, one.query.targets).item(), rel=1e-10)


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
@pytest.mark.parametrize(("size", "side"), [(4, 1), (16, 4), (28, 7), (32, 8), (84, 21)])
def test_relation_takes_maps_of_any_size(size, side, downsample):
    """Omniglot's maps of 7 pixels end as one, as in the paper."""
    encoder = Conv4(channels=3, width=4, size=size, downsample=downsample, features="map")
    assert encoder(torch.rand(2, 3, size, size)).shape == (2, 4, encoder.side, encoder.side)
    assert encoder.side == side
    comparison = Relation(width=4, side=side)
    assert comparison.hidden.in_features == 4 * max(1, side // 4) ** 2
    learner = RelationLearner(Network(encoder, torch.nn.Identity()), Classification(), comparison)
    support = Batch(torch.rand(4, 3, size, size), torch.tensor([0, 1, 1, 0]))
    for mode in Mode:
        assert learner.adapt(support, 2, mode=mode)(torch.rand(3, 3, size, size)).shape == (3, 2)


@pytest.mark.parametrize("name", EMBEDDING)
def test_inductive_predictions_use_the_statistics_taken_in(name):
    """With the statistics of an episode itself they are the transductive ones."""
    learner, one = make(name), episode(5)
    learner.running.momentum = 1.0
    taken = one
    if isinstance(learner, SupervisedLearner):  # its training looks at queries alone
        taken = one._replace(query=Batch(*(torch.cat(pair) for pair in zip(one.support, one.query, strict=True))))
    learner.absorb(learner.outcome(taken).statistics)
    each = [learner.adapt(one.support, one.ways, mode=mode)(one.query.inputs) for mode in Mode]
    assert torch.allclose(each[0], each[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", EMBEDDING)
def test_the_order_of_the_support_does_not_matter(name):
    learner, one = make(name), episode(6)
    turned = Batch(one.support.inputs.flip(0), one.support.targets.flip(0))
    each = [
        learner.adapt(support, one.ways, mode=Mode.INDUCTIVE)(one.query.inputs) for support in (one.support, turned)
    ]
    assert torch.allclose(each[0], each[1], rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in EMBEDDING if name not in OWN_HEAD])
def test_ways_may_differ_from_those_of_training(name):
    learner, one = make(name), episode(7)
    few = one.support.targets < 2
    support = Batch(one.support.inputs[few], one.support.targets[few])
    for mode in Mode:
        assert learner.adapt(support, 2, mode=mode)(one.query.inputs).shape == (len(one.query.inputs), 2)


@pytest.mark.parametrize("name", ["prototypes", "relation", "svm", "metanet"])
def test_embeddings_are_learned(name):
    """20 steps of Adam on the same episode take a third off the loss."""
    learner, one = make(name), episode(0)
    optimizer, losses = torch.optim.Adam(learner.parameters(), lr=5e-3), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = learner.outcome(one).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.67 * losses[0]
