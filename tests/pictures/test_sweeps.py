"""Pictures of sweeps: few trials, many, one, none with a score, dimensions that some trials have not."""

from __future__ import annotations

import pytest
from drawn import painted, size

from pipeline.pictures.canvas import BLUE, ORANGE
from pipeline.pictures.sweeps import (
    MARKS,
    Axis,
    Outcome,
    Trial,
    front_picture,
    history_picture,
    importance_picture,
    parallel_picture,
)

AXES = [Axis("kind", options=("a", "b", "$x^2$", "犬" * 40)), Axis("a.b.rate", 1e-4, 1.0, True), Axis("steps", 1, 5)]


def made(many: int, *, failed: bool = False) -> list[Trial]:
    states = list(MARKS)
    found = []
    for n in range(many):
        point: dict[str, float | str] = {
            "kind": AXES[0].options[n % 4],
            "a.b.rate": 10 ** (-4 * ((7 * n) % many) / many),
        }
        point |= {"steps": 1 + n % 5} if n % 2 else {}
        state = "failed" if failed else states[n % len(states)]
        found.append(Trial(n, state, None if state == "failed" else 50.0 + (13 * n) % 40, point))
    return found


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(("many", "failed"), [(1, False), (12, False), (200, False), (5, True)])
def test_history_and_parallel_coordinates_of_any_number_of_trials(tmp_path, many, failed, mode):
    trials = made(many, failed=failed)
    history = history_picture(tmp_path / "a.png", trials, mode=mode, metric="score (%)")
    parallel = parallel_picture(tmp_path / "b.png", trials, AXES, mode=mode, metric="score (%)")
    assert size(history)[0] > 900 and size(parallel)[0] > 900
    assert bool(painted(history, ORANGE)) is (failed or many > 1), "what failed has its own mark"
    assert bool(painted(history, BLUE)) is not failed


def test_the_best_is_drawn_in_the_same_colour_whichever_way_is_better(tmp_path):
    trials = [Trial(n, "finished", float(n), {"rate": 0.2 + 0.3 * n}) for n in range(3)]
    axis = [Axis("rate", 0.1, 1.0)]
    darkest = []
    for mode in ("max", "min"):
        path = parallel_picture(tmp_path / f"{mode}.png", trials, axis, mode=mode, metric="x")
        darkest.append(painted(path, "#00224e"))
    assert darkest[0] > 500 and darkest[1] == pytest.approx(darkest[0], rel=0.3)


def test_a_dimension_that_no_trial_has_and_one_that_all_have_at_one_value(tmp_path):
    trials = [Trial(n, "finished", 1.0, {"a": 3.0}) for n in range(3)]
    path = parallel_picture(tmp_path / "a.png", trials, [Axis("a", 3, 3), Axis("b", 0, 1)], mode="max", metric="x")
    assert painted(path, BLUE) > 100, "equal scores have no map of colours"


def test_values_lie_where_their_axis_says():
    assert [AXES[1].at(v) for v in (1e-4, 1e-2, 1.0)] == pytest.approx([0, 0.5, 1])
    assert [AXES[0].at(option) for option in AXES[0].options] == pytest.approx([0.125, 0.375, 0.625, 0.875])
    assert [text for _, text in AXES[1].ticks()] == ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert [text for _, text in Axis("x", 0.3, 0.7, True).ticks()] == ["0.3", "0.7"]
    assert all(0 <= at <= 1 for at, _ in Axis("x", 0.31, 0.74).ticks())


def test_bars_of_importance(tmp_path):
    few = importance_picture(tmp_path / "a.png", {"a": 1.0}, title="x")
    many = importance_picture(tmp_path / "b.png", {f"dimension.{n}": n / 4950 for n in range(100)}, title="x")
    assert size(few)[1] < 300 < size(many)[1] < 1700


@pytest.mark.parametrize("many", [1, 40])
def test_a_front_of_two_objectives(tmp_path, many):
    outcomes = [Outcome(n, 10.0 ** (n % 7), float(n), n % 3 == 0) for n in range(many)]
    path = front_picture(tmp_path / "a.png", outcomes, x="parameters", y="score")
    assert painted(path, BLUE) > 50
