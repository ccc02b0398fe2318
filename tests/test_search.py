"""What a sweep tries next is a function of the trial's number and of what is known of the others."""

from __future__ import annotations

import math

import pytest

from pipeline.ledger import FAILED, FINISHED, RUNNING, STOPPED, Trial
from pipeline.schema.sweep import SweepConfig
from pipeline.search import propose
from pipeline.space import Space

SPACE = Space(
    {
        "learner": {"choice": [{"kind": "gradient", "rule": {"lr": {"loguniform": [1e-3, 1]}}}, {"kind": "prototype"}]},
        "meta": {"steps": {"int": [1, 8]}},
        "data": {"rotations": {"choice": [True, False, 1]}},
    },
    "s",
)


def value(point) -> float:
    """Best at a rate of 0.1 with 8 steps; prototypes are worse."""
    rate = point.get("learner.rule.lr")
    return -4.0 if rate is None else -abs(math.log10(rate / 0.1)) + point["meta.steps"] / 8


def searched(sweep: SweepConfig, count: int) -> dict[int, Trial]:
    trials: dict[int, Trial] = {}
    for number in range(count):
        point = propose(SPACE, sweep, number, trials)
        assert point is not None and SPACE.fits(point)
        trials[number] = Trial(number, point, "search", FINISHED, values={10: value(point)})
    return trials


def tpe(**options) -> SweepConfig:
    return SweepConfig.model_validate({"trials": 40, "search": {"kind": "tpe", "startup": 6}, **options})


def test_random_search_is_the_sample_of_its_number():
    sweep = SweepConfig(trials=3, seed=4)
    assert [propose(SPACE, sweep, n, {}) for n in range(3)] == [SPACE.sample(4, n) for n in range(3)]


def test_the_grid_ends_and_leaves_out_what_was_tried_first():
    space = Space({"seed": {"int": [0, 2]}}, "s")
    sweep = SweepConfig.model_validate({"search": {"kind": "grid"}, "start": [{"seed": 1}]})
    trials = {0: Trial(0, {"seed": 1}, "start")}
    while (point := propose(space, sweep, len(trials), trials)) is not None:
        trials[len(trials)] = Trial(len(trials), point, "search")
    assert [trial.point["seed"] for trial in trials.values()] == [1, 0, 2]


def test_the_estimator_finds_more_than_chance():
    found = searched(tpe(), 40)
    late = [value(trial.point) for number, trial in found.items() if number >= 20]
    chance = [value(SPACE.sample(0, number)) for number in range(20, 40)]
    assert sum(late) / len(late) > sum(chance) / len(chance) + 0.5


def test_the_estimator_proposes_again_what_it_proposed_before_a_kill():
    found = searched(tpe(), 20)
    for number in (0, 7, 15, 19):
        known = {n: trial for n, trial in found.items() if n < number}
        assert propose(SPACE, tpe(), number, known) == found[number].point
    other = searched(tpe(seed=1), 20)
    assert [trial.point for trial in other.values()] != [trial.point for trial in found.values()]


def test_trials_that_run_failed_or_were_stopped_do_not_stop_the_estimator():
    found = searched(tpe(), 12)
    found[8].state, found[9].state, found[10].state = RUNNING, FAILED, STOPPED
    found[9].values = {}
    point = propose(SPACE, tpe(), 12, found)
    assert point is not None and SPACE.fits(point)


def test_with_objectives_the_estimator_weighs_both():
    sweep = tpe(objectives=["parameters"])
    trials: dict[int, Trial] = {}
    for number in range(25):
        point = propose(SPACE, sweep, number, trials)
        assert point is not None
        size = {"parameters": float(point["meta.steps"])}
        trials[number] = Trial(number, point, "search", FINISHED, values={10: value(point)}, objectives=size)
    steps = [trial.point["meta.steps"] for number, trial in trials.items() if number >= 10]
    assert min(steps) <= 3 and len(set(steps)) > 2


def test_a_trial_without_a_number_for_a_value_is_no_reason_to_end():
    found = searched(tpe(), 10)
    found[9].values = {10: float("nan")}
    assert propose(SPACE, tpe(), 10, found) is not None
    assert found[9].score("max") is None


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_mode_says_which_value_is_best(mode):
    trial = Trial(0, {}, "search", FINISHED, values={1: 0.1, 2: 0.3, 3: 0.2})
    assert trial.score(mode) == {"max": 0.3, "min": 0.1}[mode]
