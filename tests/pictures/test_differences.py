"""Differences between runs: any number of them, in any number of panels."""

from __future__ import annotations

import math

from drawn import painted, size

from pipeline.pictures.canvas import ORANGE
from pipeline.pictures.differences import difference_picture

NAMES = ["run-with-a-long-name-" * 4 + "x", "latin/a", "$x^2$ _y", "犬 ☃", "a" * 60]


def test_differences_of_any_number_of_runs_and_panels(tmp_path):
    rows = [(0.0, 0.0), (0.01, 0.004), (-0.1, 0.02), (0.001, 0.01), (math.nan, math.nan)]
    one = difference_picture(tmp_path / "a.png", NAMES, {"inductive": rows}, metric="accuracy")
    two = difference_picture(tmp_path / "b.png", NAMES[:2], {"a": rows[:2], "b": rows[1:3]}, metric="accuracy")
    assert size(one)[0] > 1200 and size(two)[1] > 300


def test_an_interval_without_zero_has_another_colour(tmp_path):
    without, across = [(0.0, 0.0), (0.02, 0.01)], [(0.0, 0.0), (0.02, 0.03)]
    drawn = [difference_picture(tmp_path / "a.png", NAMES[1:3], {"a": r}, metric="iou") for r in (without,)]
    assert painted(drawn[0], ORANGE) > 100
    assert painted(difference_picture(tmp_path / "b.png", NAMES[1:3], {"a": across}, metric="iou"), ORANGE) == 0
