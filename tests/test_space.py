"""Search spaces: dimensions in a config, conditional on an option, sampled as a pure function of seed and number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.space import MOST_CORNERS, Space

MAML = {"kind": "gradient", "rule": {"kind": "sgd", "lr": {"loguniform": ["1e-2", 1]}}, "steps": {"int": [1, 5]}}
TREE = {
    "name": "x",
    "learner": {"choice": [MAML, {"kind": "prototype"}]},
    "meta": {"steps": 30, "optimizer": {"lr": {"loguniform": [1e-4, 1e-2]}}},
    "model": {"width": {"choice": [8, 16]}},
}
POINT = {
    "learner.kind": "gradient",
    "learner.rule.lr": 0.5,
    "learner.steps": 2,
    "meta.optimizer.lr": 1e-3,
    "model.width": 8,
}


def space(tree=TREE) -> Space:
    return Space(tree, "s.yaml")


def test_what_hangs_on_an_option_exists_where_that_was_taken():
    points = [space().sample(0, number) for number in range(50)]
    kinds = {point["learner.kind"] for point in points}
    assert kinds == {"gradient", "prototype"}
    for point in points:
        assert ("learner.rule.lr" in point) == ("learner.steps" in point) == (point["learner.kind"] == "gradient")


def test_a_point_makes_a_config_of_the_same_shape_with_values_for_dimensions():
    assert space().config(POINT) == {
        "name": "x",
        "learner": {"kind": "gradient", "rule": {"kind": "sgd", "lr": 0.5}, "steps": 2},
        "meta": {"steps": 30, "optimizer": {"lr": 1e-3}},
        "model": {"width": 8},
    }
    assert space().config({"learner.kind": "prototype", "meta.optimizer.lr": 1e-3, "model.width": 16})["learner"] == {
        "kind": "prototype"
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.width": 12}, "model.width = 12"),
        ({"model.width": True}, "model.width = True"),
        ({"meta.optimizer.lr": 1.0}, "is not inside"),
        ({"learner.steps": 2.5}, "learner.steps = 2.5"),
        ({"extra": 1}, "no dimension"),
    ],
)
def test_a_point_outside_is_refused(change, said):
    assert space().fits(POINT)
    assert not space().fits({**POINT, **change})
    with pytest.raises(InputError, match=said):
        space().config({**POINT, **change})
    with pytest.raises(InputError, match="no value for learner.steps"):
        space().config({name: value for name, value in POINT.items() if name != "learner.steps"})


@given(st.integers(0, 2**31), st.integers(0, 10**6))
def test_samples_lie_inside_and_depend_on_seed_and_number_alone(seed, number):
    first = space().sample(seed, number)
    assert first == space().sample(seed, number)
    assert space().fits(first)


def test_another_dimension_moves_no_sample():
    more = space({**TREE, "seed": {"int": [0, 9]}})
    for number in range(20):
        assert more.sample(3, number) | {} == {**space().sample(3, number), "seed": more.sample(3, number)["seed"]}


def test_samples_are_spread_as_the_dimension_says():
    rates = sorted(math.log10(space().sample(1, number)["meta.optimizer.lr"]) for number in range(2000))
    quartiles = [rates[500 * k] for k in (1, 2, 3)]
    assert quartiles == pytest.approx([-3.5, -3.0, -2.5], abs=0.08)
    steps = [point["learner.steps"] for n in range(4000) if "learner.steps" in (point := space().sample(1, n))]
    assert all(abs(steps.count(k) / len(steps) - 0.2) < 0.03 for k in range(1, 6))


def test_the_grid_is_every_combination_and_nothing_twice():
    tree = {
        "learner": {"choice": [{"kind": "gradient", "steps": {"int": [1, 3]}}, {"kind": "prototype"}]},
        "seed": {"int": [0, 1]},
    }
    grid = Space(tree, "s").grid()
    assert len(grid) == 8 and len({tuple(sorted(map(str, point.items()))) for point in grid}) == 8
    with pytest.raises(InputError, match="a grid needs choice or int"):
        space().grid()


def test_corners_take_every_end_of_every_dimension():
    corners = list(space().corners())
    assert len(corners) == (2 * 2 + 1) * 2 * 2
    assert {corner.get("learner.rule.lr") for corner in corners} == {0.01, 1.0, None}
    assert {corner["model.width"] for corner in corners} == {8, 16}


def test_of_too_many_corners_some_are_drawn_with_all_pairs_of_ends_among_them():
    many = Space({"data": {f"k{n}": {"int": [0, 9]} for n in range(20)}}, "s")
    corners = list(many.corners())
    assert len(corners) == MOST_CORNERS
    for a in range(20):
        assert {(corner[f"data.k{a}"], corner[f"data.k{(a + 1) % 20}"]) for corner in corners} == {
            (0, 0),
            (0, 9),
            (9, 0),
            (9, 9),
        }


@given(st.integers(0, 1000))
def test_a_moved_point_is_a_point_near_it(number):
    before = space().sample(0, number)
    after = space().moved(before, 5, number, resample=0.0)
    assert after == space().moved(before, 5, number, resample=0.0) and space().fits(after)
    if "learner.rule.lr" in before and "learner.rule.lr" in after:
        ratio = after["learner.rule.lr"] / before["learner.rule.lr"]
        assert ratio == pytest.approx(0.8) or ratio == pytest.approx(1.25) or after["learner.rule.lr"] in (0.01, 1.0)


def test_options_of_one_key_in_two_branches_keep_their_own_ranges():
    rule = {"kind": "sgd", "lr": {"loguniform": [0.1, 1]}}
    per_step = {"kind": "per_step", "lr": {"loguniform": [0.01, 0.1]}}
    both = Space({"learner": {"kind": "gradient", "rule": {"choice": [rule, per_step]}}}, "s")
    assert [d.name for d in both.dimensions] == ["learner.rule.kind", "learner.rule.lr", "learner.rule.lr (per_step)"]
    assert (
        both.config({"learner.rule.kind": "per_step", "learner.rule.lr (per_step)": 0.05})["learner"]["rule"]["lr"]
        == 0.05
    )


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"seed": 1}, "no value is a dimension"),
        ({"seed": {"int": [1]}}, "seed: int of \\[1\\]; give its two ends"),
        ({"seed": {"int": [3, 1]}}, "the first end must be below"),
        ({"seed": {"int": [0.5, 2]}}, "its ends are integers"),
        ({"meta": {"clip": {"loguniform": [0, 1]}}}, "both ends are above 0"),
        ({"meta": {"clip": {"uniform": ["a", 1]}}}, "its ends are numbers"),
        ({"meta": {"clip": {"uniform": [0, float("inf")]}}}, "the first end must be below"),
        ({"meta": {"clip": {"choice": []}}}, "at least one option"),
        ({"meta": {"clip": {"choice": [1, 1]}}}, "an option twice"),
        ({"workers": {"count": {"int": [1, 2]}}}, "workers.count decides nothing of a result"),
        ({"name": {"choice": ["a", "b"]}}, "name decides nothing"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(tree, said):
    with pytest.raises(InputError, match=said):
        Space(tree, "s.yaml")


def test_options_that_python_takes_for_equal_are_told_apart():
    one = Space({"data": {"x": {"choice": [1, True, 1.0]}}}, "s")
    assert [type(point["data.x"]) for point in one.corners()] == [int, bool, float]
    assert one.config({"data.x": True})["data"]["x"] is True
