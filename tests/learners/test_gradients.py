"""Meta-gradients are what the mathematics says: closed form, finite differences, and law 5, for all learners."""

import pytest
import torch
from small import LEARNERS, OWN_HEAD, episode, gradient, gradient_learner, make, relative

from pipeline.episode import Batch, Episode
from pipeline.learners.embedding import EmbeddingLearner
from pipeline.learners.learner import Mode
from pipeline.models.drop import DropBlock
from pipeline.models.norm import Norm

APPROXIMATE = {
    "fomaml",
    "reptile",
    "imaml",
    "imaml-neumann",
    "es-maml",
    "evolved-rule",
    "meta-lstm",
    "maml++",
    "warpgrad",
    "prototypes-sparing",
}
"""Their gradient is not that of their value; test_estimates.py and test_sparing.py say what it is."""
EXACT = sorted(set(LEARNERS) - APPROXIMATE)


@pytest.mark.parametrize("name", EXACT)
def test_gradient_equals_central_differences(name):
    """Along a random direction in float64."""
    learner, one = make(name), episode(1)
    learner.outcome(one).loss.backward()
    generator = torch.Generator().manual_seed(0)
    trained = [p for p in learner.parameters() if p.requires_grad]
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in trained]
    slope = sum((p.grad * d).sum().item() for p, d in zip(trained, direction, strict=True))
    values, eps = [], 1e-7
    for sign in (1, -2):
        with torch.no_grad():
            for p, d in zip(trained, direction, strict=True):
                p.add_(sign * eps * d)
        values.append(learner.outcome(one).loss.item())
    assert (values[0] - values[1]) / (2 * eps) == pytest.approx(slope, rel=2e-6)


def test_fomaml_is_not_maml_but_has_its_value():
    second, first = make("maml"), make("fomaml")
    losses = [learner.outcome(episode(2)).loss for learner in (second, first)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == losses[1].item()
    assert relative(gradient(first), gradient(second)) > 1e-3


def test_every_meta_parameter_receives_a_gradient(learner):
    learner.outcome(episode(3)).loss.backward()
    missing = [n for n, p in learner.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f"no gradient for {missing}; DDP would wait for them"


@pytest.mark.parametrize(("adapts", "moves"), [(r"head\..*", "head."), (r"encoder\..*", "encoder.")])
def test_only_what_the_pattern_names_adapts(adapts, moves):
    learner = gradient_learner(adapts)
    assert all(name.startswith(moves) for name in learner.initial.names)
    assert len(learner.initial.names) == sum(name.startswith(moves) for name, _ in learner.model.named_parameters())


def test_adapting_leaves_nothing_behind(learner):
    """Whichever mode comes after whichever."""
    one, other = episode(4), episode(5)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    first, again = (
        [learner.adapt(e.support, e.ways, mode=mode)(e.query.inputs) for mode, e in asked]
        for asked in (
            [(Mode.INDUCTIVE, one), (Mode.TRANSDUCTIVE, one)],
            [(Mode.TRANSDUCTIVE, other), (Mode.INDUCTIVE, one), (Mode.TRANSDUCTIVE, one)],
        )
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again[1:], strict=True))
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())


def test_inductive_predictions_depend_on_their_own_query_alone(learner):
    """Law 8: alone, in company and in another order, a query gets the same prediction."""
    one = episode(6, queries=2)
    learner.outcome(one)
    predict = learner.adapt(one.support, one.ways, mode=Mode.INDUCTIVE)
    together = predict(one.query.inputs)
    alone = torch.cat([predict(query[None]) for query in one.query.inputs])
    assert (together - alone).abs().max() < 1e-12
    assert (predict(one.query.inputs.flip(0)).flip(0) - together).abs().max() < 1e-12


def test_transductive_predictions_look_at_other_queries(learner):
    one = episode(6, queries=4)
    predict = learner.adapt(one.support, one.ways, mode=Mode.TRANSDUCTIVE)
    together = predict(one.query.inputs)
    apart = torch.cat([predict(part) for part in one.query.inputs.split(3)])
    looks = any(isinstance(module, Norm) for module in learner.modules())
    assert ((together - apart).abs().max() > 1e-3) == looks


@pytest.mark.parametrize("name", ["maml-dropping", "prototypes-dropping"])
def test_the_key_decides_what_is_drawn_in_training_alone(name):
    learner, one = make(name), episode(6)
    losses = [learner.outcome(one._replace(key=torch.tensor(key))).loss.item() for key in (5, 5, 6)]
    predicted = [learner.adapt(one.support, one.ways, mode=mode)(one.query.inputs) for mode in Mode]
    learner.model.encoder.drop.drop = 0.0
    assert losses[0] == losses[1] != losses[2] and learner.outcome(one).loss.item() not in losses
    for mode, expected in zip(Mode, predicted, strict=True):
        assert torch.equal(learner.adapt(one.support, one.ways, mode=mode)(one.query.inputs), expected)


def test_the_support_loses_other_activations_at_every_step(monkeypatch):
    places = []
    kept = DropBlock.kept
    monkeypatch.setattr(DropBlock, "kept", lambda self, x, chance: places.append(chance.place) or kept(self, x, chance))
    make("maml-dropping").outcome(episode(1))
    assert places == ["/support/0/images", "/support/1/images", "/query/2/images"]


def test_more_inner_steps_fit_the_support_better():
    learner, one = gradient_learner(steps=5), episode(7)
    losses = [
        learner.task.loss(predict(one.support.inputs), one.support.targets).item()
        for predict in learner.predictors(one.support, one.ways, mode=Mode.TRANSDUCTIVE)
    ]
    assert len(losses) == 7 and losses == sorted(losses, reverse=True)


def test_prototype_logits_are_minus_squared_distances_to_class_means():
    learner, one = make("prototypes"), episode(8)
    embed = learner.model(torch.cat([one.support.inputs, one.query.inputs]))
    support, query = embed[: len(one.support.inputs)], embed[len(one.support.inputs) :]
    means = torch.stack([support[one.support.targets == way].mean(0) for way in range(one.ways)])
    expected = -(torch.cdist(query, means) ** 2)
    logits = learner.adapt(one.support, one.ways, mode=Mode.TRANSDUCTIVE)(one.query.inputs)
    assert torch.allclose(logits, expected, rtol=1e-9, atol=1e-12)


def test_labels_of_the_support_decide_what_is_predicted(learner, request):
    """Rolling the support labels rolls the predictions of a learner without a head of its own."""
    if not isinstance(learner, EmbeddingLearner) or request.node.callspec.params["learner"] in OWN_HEAD:
        return
    one = episode(9)
    rolled = Episode(Batch(one.support.inputs, (one.support.targets + 1) % one.ways), one.query, one.ways)
    plain, other = (learner.adapt(e.support, e.ways, mode=Mode.INDUCTIVE)(one.query.inputs) for e in (one, rolled))
    assert torch.allclose(plain.roll(1, 1), other)
