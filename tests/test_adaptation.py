"""Settings by leave-one-out: what is left out, that nothing else changes, and that rates which are wrong are found out."""

from __future__ import annotations

import pytest
import torch
from small import WAYS, episode, gradient_learner, make, ragged

from pipeline import adaptation
from pipeline.adaptation import FOLDS, Settings
from pipeline.episode import Batch
from pipeline.learners.learner import Mode
from pipeline.learners.rules import Sgd


def rows(batch: Batch) -> set[bytes]:
    return {image.numpy().tobytes() for image in batch.inputs}


@pytest.mark.parametrize("shots", [2, 3, 5])
def test_folds_leave_out_one_sample_of_each_class_in_turn(shots):
    support = episode(0, shots=shots).support
    found = list(adaptation.folds(support, WAYS))
    assert len(found) == min(FOLDS, shots)
    for kept, left in found:
        assert left.targets.tolist() == list(range(WAYS)) and len(kept.targets) == WAYS * (shots - 1)
        assert rows(kept) | rows(left) == rows(support) and not rows(kept) & rows(left)
    assert len(set.union(*(rows(left) for _, left in found))) == WAYS * len(found)


def test_a_lone_sample_among_larger_classes_is_always_kept():
    support = ragged(0).support
    alone = torch.bincount(support.targets) == 1
    assert alone.any() and not alone.all()
    for kept, left in adaptation.folds(support, WAYS):
        assert set(kept.targets.tolist()) == set(range(WAYS))
        assert not alone[left.targets].any() and len(left.targets)


def test_where_all_classes_have_one_sample_copies_of_them_are_told_apart():
    support = episode(0, shots=1).support
    ((kept, left),) = adaptation.folds(support, WAYS)
    assert rows(kept) == rows(support) and not rows(left) & rows(support)
    assert torch.bincount(left.targets).tolist() == [len(left.targets) // WAYS] * WAYS
    # A copy is more like its own image than like any other.
    distances = torch.cdist(left.inputs.flatten(1), support.inputs.flatten(1))
    assert torch.equal(support.targets[distances.argmin(1)], left.targets)


def test_what_has_no_height_and_width_has_no_copies():
    support = Batch(torch.rand(WAYS, 6, 1, 1, dtype=torch.float64), torch.arange(WAYS))
    assert list(adaptation.folds(support, WAYS)) == []


def test_own_settings_are_those_of_adapt():
    learner, given = make("maml"), episode(1)
    own = adaptation.own_settings(learner)
    usual = learner.adapt(given.support, WAYS, mode=Mode.INDUCTIVE)(given.query.inputs)
    assert torch.equal(adaptation.adapted(learner, given.support, WAYS, own)(given.query.inputs), usual)
    assert (
        adaptation.held_out(learner, given.support, WAYS)
        == adaptation.by_settings(learner, given.support, WAYS)[own].held
    )


@pytest.mark.parametrize("name", ["maml", "meta-sgd", "protomaml"])
def test_pace_multiplies_the_rate(name):
    learner, given = make(name), episode(2)
    slow = gradient_learner(rule=lambda fast: Sgd(0.3)) if name == "maml" else None
    still = adaptation.adapted(learner, given.support, WAYS, Settings(2, 0.0))(given.query.inputs)
    before = adaptation.adapted(learner, given.support, WAYS, Settings(0, 5.0))(given.query.inputs)
    torch.testing.assert_close(still, before)
    if slow is not None:
        slow.load_state_dict(learner.state_dict())
        tripled = adaptation.adapted(learner, given.support, WAYS, Settings(2, 3.0))(given.query.inputs)
        wanted = adaptation.adapted(slow, given.support, WAYS, Settings(2, 1.0))(given.query.inputs)
        torch.testing.assert_close(tripled, wanted)


def test_a_rate_that_is_far_too_low_is_raised():
    torch.manual_seed(4)
    learner = gradient_learner(rule=lambda fast: Sgd(0.05))
    support = episode(3, shots=5).support
    chosen, own = adaptation.leave_one_out(learner, support, WAYS), adaptation.own_settings(learner)
    told = adaptation.by_settings(learner, support, WAYS)
    assert chosen.pace > own.pace and told[chosen].held.loss < told[own].held.loss
    assert told[chosen].held.loss == min(trial.held.loss for trial in told.values())


def test_steps_that_lead_out_of_all_bounds_are_not_chosen():
    torch.manual_seed(3)
    learner = gradient_learner(rule=lambda fast: Sgd(1e6))
    support = episode(3, shots=3).support
    told = adaptation.by_settings(learner, support, WAYS)
    assert all(0 <= trial.held.loss <= adaptation.MOST_LOSS for trial in told.values())
    assert adaptation.leave_one_out(learner, support, WAYS).steps == 0


def test_nothing_of_it_stays_on_the_learner():
    learner, given = make("maml"), episode(4)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    adaptation.leave_one_out(learner, given.support, WAYS)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


def test_a_gain_that_may_be_chance_is_not_believed():
    own, other = Settings(1, 1.0), Settings(5, 3.0)
    hits = torch.ones(4, dtype=torch.float64)

    def trial(*losses: float) -> adaptation.Trial:
        return adaptation.Trial(hits, torch.tensor(losses, dtype=torch.float64))

    usual = trial(1.0, 1.0, 1.0, 1.0)
    assert adaptation.best({own: usual, other: trial(0.8, 0.9, 0.8, 0.9)}, own) == other
    assert adaptation.best({own: usual, other: trial(0.0, 1.3, 0.2, 1.3)}, own) == own
    assert adaptation.best({own: usual, other: usual}, own) == own
    assert adaptation.best({}, own) == own
