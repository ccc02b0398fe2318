"""The sceptic's baselines by their equations: a supervised classifier, centroids of its features, heads that start anew."""

from itertools import pairwise

import pytest
import torch
from small import WAYS, episode, gradient_learner, kept_statistics, make, network, rfs, supervised
from torch.nn import functional as F

from pipeline.episode import Batch, Episode
from pipeline.learners.initials import Fresh
from pipeline.learners.learner import Mode
from pipeline.learners.metric import imprinted
from pipeline.learners.rules import Sgd
from pipeline.models.heads import CosineLinear, cosine_logits, directions
from pipeline.models.norm import Given, Recorded, by_batch

BOTH = pytest.mark.parametrize("cosine", [False, True])


def settled(learner):
    """The learner after it has seen the norm statistics of some episodes."""
    for number in range(30):
        learner.absorb(learner.outcome(episode(number)).statistics)
    return learner


@BOTH
def test_the_loss_is_cross_entropy_of_the_base_classes(cosine):
    learner, one = supervised(cosine=cosine), episode(1)
    features = learner.model(one.query.inputs, by_batch)
    weight = learner.head.weight
    if cosine:
        logits = learner.head.scale * F.cosine_similarity(features[:, None], weight[None], dim=2)
    else:
        logits = features @ weight.T + learner.head.bias
    outcome = learner.outcome(one)
    expected = -(logits.log_softmax(1)[torch.arange(len(logits)), one.query.targets]).mean()
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert outcome.metrics["accuracy"] == (logits.argmax(1) == one.query.targets).double().mean()


def test_training_looks_at_the_query_alone():
    """The support of a supervised episode is empty, and its norm statistics are those of the query."""
    learner, one = supervised(), episode(1)
    empty = Batch(one.query.inputs[:0], one.query.targets[:0])
    outcome, other = learner.outcome(one), learner.outcome(one._replace(support=empty))
    assert outcome.loss == other.loss
    recorded = Recorded()
    learner.model(one.query.inputs, recorded)
    assert outcome.statistics.keys() == recorded.statistics.keys()
    for name, pair in recorded.statistics.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, outcome.statistics[name], strict=True))


@BOTH
def test_new_classes_go_to_the_nearest_centroid(cosine):
    """SimpleShot's L2N under a linear head, imprinted weights under a cosine one; for any number of ways."""
    learner, one = settled(supervised(cosine=cosine)), episode(4)
    for ways in (2, WAYS):
        chosen = one.support.targets < ways
        support = Batch(one.support.inputs[chosen], one.support.targets[chosen])
        logits = learner.adapt(support, ways, mode=Mode.INDUCTIVE)(one.query.inputs)
        features, query = (
            F.normalize(learner.model(x, Given(learner.running.statistics())))
            for x in (support.inputs, one.query.inputs)
        )
        means = torch.stack([features[support.targets == way].mean(0) for way in range(ways)])
        if cosine:
            expected = learner.head.scale * query @ F.normalize(means).T
        else:
            expected = -(torch.cdist(query, means) ** 2)
        assert torch.allclose(logits, expected, rtol=1e-6)


def test_base_classes_are_classified_by_the_running_statistics():
    learner, one = settled(supervised()), episode(2)
    together = learner.classify(one.query.inputs)
    apart = torch.cat([learner.classify(image[None]) for image in one.query.inputs])
    assert together.shape == (len(one.query.inputs), WAYS) and not together.requires_grad
    assert torch.allclose(together, apart)


def test_a_cosine_head_sees_directions_alone():
    head = CosineLinear(8, 4, scale=7.0).double()
    features = torch.randn(5, 8, dtype=torch.float64)
    logits = head(features)
    assert torch.allclose(head(1000 * features), logits) and logits.abs().max() <= 7
    with torch.no_grad():
        head.weight.mul_(torch.rand(4, 1) + 0.1)
    assert torch.allclose(head(features), logits)


def test_directions_have_length_one_and_two_derivatives_at_nought():
    x = torch.randn(6, 9, dtype=torch.float64)
    assert torch.allclose(directions(x).norm(dim=1), torch.ones(6, dtype=torch.float64))
    nought = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(directions(nought).sum(), nought, create_graph=True)
    (curve,) = torch.autograd.grad(slope.square().sum(), nought)
    assert torch.equal(directions(nought), nought) and bool(slope.isfinite().all() and curve.isfinite().all())


def test_imprinted_weights_are_directions_of_mean_directions():
    x, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    weight = imprinted(x, labels, 3)
    for way in range(3):
        mean = torch.stack([row / row.norm() for row in x[labels == way]]).mean(0)
        assert torch.allclose(weight[way], mean / mean.norm())
    logits = cosine_logits(x, weight, torch.tensor(2.0))
    assert torch.allclose(logits, 2 * F.normalize(x) @ weight.T)


def test_rfs_solves_on_features_of_length_one(monkeypatch):
    learner, one = settled(rfs()), episode(3)
    seen = []
    plain = type(learner).coefficients
    monkeypatch.setattr(
        type(learner), "coefficients", lambda self, gram, members: seen.append(gram) or plain(self, gram, members)
    )
    predict = learner.adapt(one.support, one.ways, mode=Mode.INDUCTIVE)
    assert torch.allclose(seen[0].diagonal(), torch.ones(len(one.support.inputs), dtype=torch.float64), atol=1e-6)
    # Whatever the length of a query's features, its logits are at most |W|.
    with torch.no_grad():
        plain_logits = predict(one.query.inputs)
        norms = learner.model.encoder.norms[3]
        norms.weight.mul_(50)
        norms.bias.mul_(50)
        longer = learner.adapt(one.support, one.ways, mode=Mode.INDUCTIVE)(one.query.inputs)
    assert torch.allclose(longer, plain_logits, rtol=1e-6)


@BOTH
@pytest.mark.parametrize("ways", [2, 3, 5])
def test_a_fresh_head_has_as_many_outputs_as_the_episode_ways(cosine, ways):
    learner, one = gradient_learner(initial=Fresh, cosine=cosine), episode(5)
    targets = torch.arange(len(one.support.targets)) % ways
    predict = learner.adapt(Batch(one.support.inputs, targets), ways, mode=Mode.INDUCTIVE)
    assert predict(one.query.inputs).shape == (len(one.query.inputs), ways)
    assert not any(p.requires_grad for n, p in learner.model.named_parameters() if n in learner.initial.replaced)


def test_the_first_step_of_a_fresh_head_is_known():
    """From zero the gradient of cross-entropy is (1 / ways − one-hot) / samples times the features."""
    rate = 0.5
    learner, one = gradient_learner(r"head\..*", initial=Fresh, rule=lambda fast: Sgd(rate), kept=True), episode(6)
    features, query = (
        learner.model.encoder(x, Given(learner.running.statistics())) for x in (one.support.inputs, one.query.inputs)
    )
    members = F.one_hot(one.support.targets, WAYS).double()
    slope = (1 / WAYS - members) / len(features)
    weight, bias = -rate * slope.T @ features, -rate * slope.sum(0)
    before, after, *_ = learner.predictors(one.support, WAYS, mode=Mode.INDUCTIVE)
    assert (before(one.query.inputs) == 0).all()
    assert torch.allclose(after(one.query.inputs), query @ weight.T + bias)


@BOTH
def test_many_steps_fit_the_support(cosine):
    learner, one = gradient_learner(r"head\.(weight|bias)", initial=Fresh, kept=True, cosine=cosine), episode(7)
    learner.test_steps, learner.rule.lr = 60, 2.0
    losses = [
        learner.task.loss(predict(one.support.inputs), one.support.targets).item()
        for predict in learner.predictors(one.support, WAYS, mode=Mode.INDUCTIVE)
    ]
    assert all(b <= a + 1e-12 for a, b in pairwise(losses)) and losses[-1] < 0.8 * losses[0]
    if not cosine:  # whose fixed scale lets no loss tend to nought
        predict = learner.adapt(one.support, WAYS, mode=Mode.INDUCTIVE)
        assert (predict(one.support.inputs).argmax(1) == one.support.targets).all()


def test_a_fresh_cosine_head_starts_imprinted():
    learner, one = gradient_learner(r"head\.weight", initial=Fresh, cosine=True, kept=True), episode(8)
    first = next(learner.predictors(one.support, WAYS, mode=Mode.INDUCTIVE))
    features, query = (
        learner.model.encoder(x, Given(learner.running.statistics())) for x in (one.support.inputs, one.query.inputs)
    )
    weight = imprinted(features, one.support.targets, WAYS)
    assert torch.allclose(first(one.query.inputs), cosine_logits(query, weight, learner.model.head.scale))


def test_kept_statistics_are_used_in_training_and_inductively_but_not_transductively():
    """With them nothing in an episode looks at a batch: alone in its support, a shot gives the same features."""
    kept, plain, one = gradient_learner(kept=True), gradient_learner(), episode(9)
    plain.load_state_dict({n: v for n, v in kept.state_dict().items() if not n.startswith("running.")})
    loss = kept.outcome(one).loss
    part = Episode(one.support, Batch(one.query.inputs[:2], one.query.targets[:2]), WAYS)
    rest = Episode(one.support, Batch(one.query.inputs[2:], one.query.targets[2:]), WAYS)
    count = len(one.query.targets)
    parts = (2 * kept.outcome(part).loss + (count - 2) * kept.outcome(rest).loss) / count
    assert loss.item() == pytest.approx(parts.item(), rel=1e-9) and loss != plain.outcome(one).loss
    found = [m.adapt(one.support, WAYS, mode=mode)(one.query.inputs) for m in (kept, plain) for mode in Mode]
    assert torch.equal(found[1], found[3]) and not torch.allclose(found[0], found[2])


def test_kept_statistics_are_buffers_that_training_leaves_alone():
    learner = make("fine-tuned-kept")
    names = {n for n, _ in learner.named_buffers() if n.startswith("running.")}
    assert len(names) == 8 and names <= learner.state_dict().keys()
    assert learner.outcome(episode(1)).statistics == {}


def test_statistics_of_the_helper_are_those_of_an_episode():
    model = network()
    recorded = Recorded()
    model(episode(0).query.inputs, recorded)
    for name, kept in kept_statistics(model).statistics().items():
        assert all(torch.allclose(a, b) for a, b in zip(kept, recorded.statistics[name], strict=True))
