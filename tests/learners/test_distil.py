"""Distillation: the loss is Hinton's, the teacher is a constant, and without weight it does not matter."""

import pytest
import torch
from small import WAYS, distilled, episode, gradient_learner, relation, supervised
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.learners.distil import DistilledLearner
from pipeline.learners.learner import Mode
from pipeline.tasks.classification import Classification
from pipeline.tasks.distilled import Distilled, Taught


def logits(seed: int, samples: int = 7, ways: int = 4) -> torch.Tensor:
    return torch.randn(samples, ways, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def task(weight: float = 0.3, temperature: float = 3.0) -> Distilled:
    return Distilled(Classification(), weight=weight, temperature=temperature)


LABELS = torch.tensor([0, 1, 2, 3, 3, 2, 1])


def test_the_loss_is_its_formula():
    """(1 − w) · cross-entropy + w · T² · Σ p log(p / q), sample by sample."""
    own, said, total = logits(1), logits(2), 0.0
    for row, advice, label in zip(own, said, LABELS, strict=True):
        p, q = (advice / 3).softmax(0), (row / 3).softmax(0)
        total += 0.7 * -row.log_softmax(0)[label] + 0.3 * 9 * (p * (p / q).log()).sum()
    assert task().loss(own, Taught(LABELS, said)).item() == pytest.approx((total / 7).item(), rel=1e-12)


def test_the_gradient_at_the_logits_is_hintons():
    """Of the soft part: T (q − p), section 2, times T²'s share of what the temperature takes away."""
    own, said = logits(1).requires_grad_(), logits(2)
    task(weight=1.0).loss(own, Taught(LABELS, said)).backward()
    expected = 3 * ((own / 3).softmax(1) - (said / 3).softmax(1)) / len(own)
    assert torch.allclose(own.grad, expected)


def test_a_high_temperature_matches_logits():
    """Equation 4: T² · KL tends to half the mean squared distance of centred logits, over the number of classes."""
    own, said = logits(1), logits(2)
    apart = (own - own.mean(1, keepdim=True)) - (said - said.mean(1, keepdim=True))
    expected = apart.square().sum(1).mean() / (2 * own.shape[1])
    found = task(weight=1.0, temperature=1e4).loss(own, Taught(LABELS, said))
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


def test_advice_that_agrees_costs_nothing():
    own = logits(1)
    assert task(weight=1.0).loss(own, Taught(LABELS, own + 5)).item() == pytest.approx(0, abs=1e-12)


def test_plain_targets_have_the_plain_loss_and_figures():
    own, plain, taught = logits(1), Classification(), Taught(LABELS, logits(2))
    assert task().loss(own, LABELS) == plain.loss(own, LABELS) == F.cross_entropy(own, LABELS)
    assert task().metrics(own, taught) == task().metrics(own, LABELS) == plain.metrics(own, LABELS)
    assert task().details(own, LABELS) == plain.details(own, LABELS)
    assert torch.equal(task().tally(own, LABELS), plain.tally(own, LABELS))
    tallies = plain.tally(own, LABELS)[None]
    assert task().pooled(tallies, [(0, 1)]) == plain.pooled(tallies, [(0, 1)])
    assert (task().members, task().headline) == (plain.members, plain.headline)
    assert task().head(3, 2).weight.shape == (2, 3)


def test_without_weight_a_student_is_a_plain_learner():
    learner, plain, one = distilled(weight=0.0), gradient_learner(), episode(1)
    plain.load_state_dict(learner.student.state_dict())
    found = [made.outcome(one) for made in (learner, plain)]
    for outcome in found:
        outcome.loss.backward()
    assert found[0].loss == found[1].loss and found[0].metrics == found[1].metrics
    assert all(
        torch.equal(a.grad, b.grad) for a, b in zip(learner.student.parameters(), plain.parameters(), strict=True)
    )


def test_the_loss_of_an_episode_listens_to_the_teachers_own_predictions():
    learner, one = distilled(), episode(2)
    said = learner.teacher.adapt(one.support, WAYS, mode=Mode.INDUCTIVE)(one.query.inputs)
    plain = learner.student.outcome(one)
    taught = learner.student.outcome(one._replace(query=one.query._replace(targets=Taught(one.query.targets, said))))
    assert learner.outcome(one).loss == taught.loss != plain.loss


def test_the_teacher_is_a_constant():
    learner, one = distilled(), episode(3)
    before = {name: value.clone() for name, value in learner.teacher.state_dict().items()}
    learner.outcome(one).loss.backward()
    assert all(not p.requires_grad and p.grad is None for p in learner.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in learner.teacher.state_dict().items())
    assert all(p.grad is not None for p in learner.student.parameters() if p.requires_grad)


def test_what_is_asked_of_a_taught_learner_is_answered_by_the_student():
    learner, one = distilled(), episode(4)
    for mode in Mode:
        found, own = (m.adapt(one.support, WAYS, mode=mode)(one.query.inputs) for m in (learner, learner.student))
        assert torch.equal(found, own)
    assert learner.task is learner.student.task and learner.breaks(one) is None
    assert learner.phase() == learner.student.phase()


def test_a_supervised_student_hears_of_base_classes():
    student, teacher, one = supervised(), supervised(cosine=True), episode(5)
    student.task = task(weight=1.0)
    learner = DistilledLearner(student, teacher)
    said = teacher.classify(one.query.inputs)
    outcome = learner.outcome(one)
    own = student.head(student.model(one.query.inputs))
    assert outcome.loss.item() == pytest.approx(student.task.loss(own, Taught(one.query.targets, said)).item())
    learner.absorb(outcome.statistics)
    assert not torch.equal(student.running.block0_mean, torch.zeros(6, dtype=torch.float64))
    assert torch.equal(teacher.running.block0_mean, torch.zeros(6, dtype=torch.float64))


def test_pairs_that_cannot_speak_are_refused():
    with pytest.raises(InputError, match="only a supervised teacher knows; name a run with learner.kind = supervised"):
        student = supervised()
        student.task = task()
        DistilledLearner(student, gradient_learner())
    with pytest.raises(
        InputError, match="learner.loss = mse has no room for what a teacher says; set learner.loss = t"
    ):
        DistilledLearner(relation(), supervised())
    with pytest.raises(InputError, match="the learner's task takes no teacher; make it with pipeline.build_task.task"):
        DistilledLearner(gradient_learner(), supervised())
