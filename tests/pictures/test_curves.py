"""Curves: drawn of any number of points, and what is drawn is there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from drawn import painted, size

from pipeline.pictures import curves
from pipeline.pictures.canvas import BLUE, GREEN, ORANGE
from pipeline.pictures.curves import Line


def test_curves_of_a_run(tmp_path):
    a = curves.adaptation_curve(tmp_path / "a.png", range(6), np.linspace(0.2, 0.9, 6), [0.01] * 6, 0.42, metric="iou")
    losses = np.linspace(1.6, 0.1, 400)
    losses[50:80], losses[100] = math.nan, math.inf
    seen = [100, 200], [0.5, 0.6], [0.01, 0.02]
    b = curves.loss_curve(tmp_path / "b.png", range(400), losses, seen, metric="accuracy")
    c = curves.loss_curve(tmp_path / "c.png", range(400), losses, ([], [], []), metric="accuracy")
    assert size(a) == (960, 600) and size(b)[1] > size(c)[1]
    assert painted(a, ORANGE) > 500 and painted(b, ORANGE) > 500 and painted(c, ORANGE) == 0
    assert min(painted(b, BLUE), painted(c, BLUE)) > 1000


@pytest.mark.parametrize(("losses", "dots"), [([], 0), ([1.5], 1), ([1.5, 0.5, 1.0], 3), ([math.nan, math.nan], 0)])
def test_a_loss_curve_of_next_to_nothing_has_its_dots(tmp_path, losses, dots):
    """A few losses have no running median, but a dot each; the key of the plot has no dot."""

    def drawn(name: str, values: list[float]) -> int:
        path = tmp_path / f"{name}.png"
        curves.loss_curve(path, range(len(values)), values, ([1], [0.5], [math.nan]), metric="accuracy")
        assert painted(path, ORANGE) > 20, "the score of validation"
        return painted(path, BLUE)

    dot = drawn("one", [1.0])
    assert 10 < dot < 200 and drawn("these", losses) == pytest.approx(dots * dot, rel=0.3)


def test_the_running_median_passes_over_gaps():
    values = np.array([1.0, math.nan, 3.0, 2.0, math.nan, math.nan, math.nan])
    assert np.array_equal(curves.running_median(values, 3), [1, 2, 2.5, 2.5, 2, math.nan, math.nan], equal_nan=True)


@pytest.mark.parametrize("far", [[0, 0.001, 0.5, 1], [0, 1], [0, 1e-7, 1]])
def test_a_receiver_operating_characteristic(tmp_path, far):
    path = curves.roc_picture(tmp_path / "a.png", (far, np.linspace(0, 1, len(far))), title="pairs")
    assert size(path) == (960, 660) and painted(path, BLUE) > 500


def test_precision_over_recall(tmp_path):
    """Each curve is there in its colour; precision that is not known leaves a gap."""
    recall, falling = np.linspace(0, 1, 101), np.linspace(1, 0.3, 101)
    one = curves.precision_recall_picture(tmp_path / "a.png", [Line("a", recall, falling)], title="one", floor=0.1)
    gap = np.where(recall < 0.5, math.nan, falling)
    lines = [Line("a", recall, gap), Line("b", recall, falling / 2), Line("c", recall, falling / 3)]
    three = curves.precision_recall_picture(tmp_path / "b.png", lines, title="three")
    assert painted(one, ORANGE) == 0 and 0 < painted(three, BLUE) < 0.8 * painted(one, BLUE)
    assert painted(three, ORANGE) > 500 and painted(three, GREEN) > 500


def test_scores_of_genuine_trials_and_impostors(tmp_path):
    edges = np.linspace(-1, 1, 11)
    shares = np.array([0, 0, 0, 0.1, 0.2, 0.4, 0.2, 0.1, 0, 0])
    path = curves.scores_picture(tmp_path / "a.png", edges, shares, shares[::-1], 0.1, title="x")
    assert size(path) == (960, 600) and painted(path, BLUE) > 500 and painted(path, ORANGE) > 300
