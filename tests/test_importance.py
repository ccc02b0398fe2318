"""Importance of dimensions: known functions, conditional dimensions, and what cannot be known."""

from __future__ import annotations

import math
import random

import pytest

from pipeline.importance import LEAST, importance


def drawn(many: int, function, *, seed: int = 0):
    """Points of three dimensions in 0…1 and what the function makes of them."""
    draw = random.Random(seed)
    points = [{name: draw.random() for name in "abc"} for _ in range(many)]
    return points, [function(draw, point) for point in points]


def test_shares_of_a_sum_are_shares_of_its_variance():
    """The variance of 2 a + b is four fifths that of 2 a; nobody reads c."""
    points, scores = drawn(80, lambda draw, p: 2 * p["a"] + p["b"])
    found = importance(points, scores)
    assert found.shares == pytest.approx({"a": 0.8, "b": 0.2, "c": 0.0}, abs=0.06)
    assert sum(found.shares.values()) == pytest.approx(1) and found.explained > 0.9 and not found.reason
    assert found.trials == 80
    assert importance(points, scores) == found, "the same trials give the same shares"


def test_scores_that_follow_from_nothing_have_no_cause():
    points, scores = drawn(40, lambda draw, p: draw.random())
    found = importance(points, scores)
    assert found.shares == {"a": 0, "b": 0, "c": 0} and found.explained == 0 and "40 trials do not" in found.reason


def test_a_constant_score_has_no_cause_and_warns_of_nothing():
    points, _ = drawn(12, lambda draw, p: 0)
    found = importance(points, [0.5] * 12)
    assert found.shares == {"a": 0, "b": 0, "c": 0} and "equal" in found.reason


def test_few_trials_with_a_score_say_nothing():
    points, scores = drawn(LEAST, lambda draw, p: p["a"])
    assert importance(points, scores).trials == LEAST
    found = importance(points, [math.nan, *scores[1:]])
    assert found.shares == {} and f"are: {LEAST - 1}" in found.reason
    assert importance([], []).shares == {}


def test_a_choice_matters_and_what_hangs_on_it_matters_where_it_exists():
    """Half of the trials have a rate, which decides of a tenth as much as the kind: a trial without it is no low rate."""
    draw, points, scores = random.Random(1), [], []
    for _ in range(100):
        kind = draw.choice(["gradient", "prototype", None])
        rate = {"rate": 10 ** draw.uniform(-3, 0)} if kind == "gradient" else {}
        points.append({"kind": kind, "other": draw.choice([1, 2, 4]), **rate})
        scores.append({"gradient": 0.8, "prototype": 0.5, None: 0.2}[kind] + 0.1 * math.log10(rate.get("rate", 1)))
    found = importance(points, scores, logarithmic=frozenset({"rate"}))
    assert found.shares["kind"] > 0.7 and 0.02 < found.shares["rate"] < 0.3 and found.shares["other"] < 0.01


def test_the_logarithm_of_a_rate_is_what_matters():
    draw = random.Random(2)
    points = [{"rate": 10 ** draw.uniform(-5, 0), "noise": draw.random()} for _ in range(60)]
    scores = [math.log10(point["rate"]) for point in points]
    for logarithmic in (frozenset({"rate"}), frozenset()):
        assert importance(points, scores, logarithmic=logarithmic).shares["rate"] > 0.97
