"""Laws 2, 5 and 9 over real ranks: the same meta-gradient for any number of workers, and all ranks decide together."""

import math

import pytest
import torch
from gloo import on_ranks
from ranked import gradients_and_losses, left_alone, some_steps
from small import LEARNERS, gradient_learner, relative

from pipeline.engine import Plan
from pipeline.learners.estimators import Implicit
from pipeline.learners.rules import Sgd
from pipeline.loop import Diverged
from pipeline.notices import Notices

LOOP = Plan("loop", 1)


BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_workers_gives_the_same_meta_gradient_and_losses(world):
    """Meta-batch 5, so that the workers have unequal shares, some of ragged episodes; the losses are those of twenty steps in
    float64."""
    alone, losses_alone = gradients_and_losses()
    for found, losses in on_ranks(world, gradients_and_losses):
        for (name, dtype, is_ragged), expected in alone.items():
            one, many = torch.tensor(expected, dtype=dtype), torch.tensor(found[name, dtype, is_ragged], dtype=dtype)
            assert relative(many, one) < BOUNDS[dtype], (name, dtype, is_ragged)
        for name, expected in losses_alone.items():
            assert losses[name] == pytest.approx(expected, rel=1e-8)
            assert expected[-1] < expected[0]


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all():
    broken = frozenset({(1, 0)})
    results = on_ranks(2, some_steps, "maml", 4, LOOP, broken)
    assert results[0]["values"] == results[1]["values"]
    assert all(math.isfinite(value) for value in results[0]["values"])
    assert [result["progress"].skipped for result in results] == [1, 1]
    assert [math.isnan(loss) for loss in results[0]["losses"]] == [False, True, False, False]


def test_too_many_in_a_row_stop_the_run_with_a_report():
    broken = frozenset((step, 3) for step in range(9))
    with pytest.raises(Diverged, match="3 meta-steps in a row"):
        some_steps("maml", 9, LOOP, broken)


def test_inner_divergence_names_the_episode_the_step_and_what_to_lower(monkeypatch):
    monkeypatch.setitem(LEARNERS, "wild", lambda: gradient_learner(rule=lambda fast: Sgd(1e200), steps=3))
    with pytest.raises(
        Diverged, match=r"episode 0 of that step left the finite at inner step \d; lower the inner rate"
    ):
        some_steps("wild", 9, LOOP)


def test_an_implicit_gradient_that_cannot_be_solved_says_to_increase_the_damping(monkeypatch):
    undamped = Implicit(1e-6, "neumann", 5, 1.0)
    monkeypatch.setitem(LEARNERS, "undamped", lambda: gradient_learner(estimate=undamped))
    with pytest.raises(Diverged, match=r"increase learner\.estimate\.damping"):
        some_steps("undamped", 9, LOOP)


def test_a_rank_whose_group_is_ended_does_not_go_on_as_if_it_were_alone():
    assert on_ranks(2, left_alone) == ["the group of workers was ended"] * 2


def test_a_notice_is_heard_by_all_ranks_and_saved_for_once():
    results = on_ranks(2, some_steps, "maml", 9, LOOP, frozenset(), -1, ("node", "other"))
    assert [result["saved"] for result in results] == [[2, 4, 9], [2, 4, 9]]


def test_nobody_is_asked_for_notices_more_often_than_it_is_due():
    asked: list[int] = []
    notices = Notices(lambda: frozenset(map(str, asked)), every_s=60)
    assert notices.is_due()
    asked.append(1)
    assert notices.came() == {"1"} and not notices.is_due() and notices.came() == frozenset()
    asked.append(2)
    assert notices.came() == {"2"}


def test_one_rank_that_is_asked_to_stop_stops_all_at_the_same_step():
    results = on_ranks(2, some_steps, "maml", 9, LOOP, frozenset(), 1)
    assert [result["progress"].step for result in results] == [3, 3]
    assert {result["progress"].stopped for result in results} == {"asked to stop"}
