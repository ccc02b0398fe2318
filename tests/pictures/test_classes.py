"""Bars and confusion of classes, of few and of many."""

from __future__ import annotations

import math

import numpy as np
import pytest
from drawn import pixels, size
from matplotlib import colormaps

from pipeline.pictures import classes
from pipeline.pictures.classes import Bar


def test_a_bar_for_every_class_the_best_first(tmp_path):
    bars = [Bar("a", 0.2, 0.1, 5), Bar("犬", 0.9, None, 1), Bar("$c$", 0.5, 0.02, 3)]
    path = classes.classes_picture(tmp_path / "a.png", bars, 0.53, metric="IoU", title="three")
    found = pixels(path)
    bar = (found[..., 2] > found[..., 0].astype(int) + 60).sum(1)
    lengths = [
        int(bar[rows].max())
        for rows in np.split(np.nonzero(bar > 50)[0], np.nonzero(np.diff(np.nonzero(bar > 50)[0]) > 3)[0] + 1)
    ]
    assert len(lengths) == 3
    assert np.array(lengths) / lengths[0] == pytest.approx(np.array([0.9, 0.5, 0.2]) / 0.9, abs=0.03)


def test_of_many_classes_the_best_and_the_worst(tmp_path):
    few = [Bar(str(n), n / 100, 0.01, 2) for n in range(classes.MOST_BARS)]
    most = classes.classes_picture(tmp_path / "a.png", few, 0.5, metric="AP50", title="x")
    more = classes.classes_picture(tmp_path / "b.png", few * 3, 0.5, metric="AP50", title="x")
    # The same rows, and a line that says what is left out.
    assert 0 < size(more)[1] - size(most)[1] < 60


@pytest.mark.parametrize("many", [3, classes.MOST_CONFUSED + 5])
def test_confusion_of_classes(tmp_path, many):
    shares = np.full((many, many), 0.0)
    np.fill_diagonal(shares, np.linspace(1, 0.5, many))
    shares[0, 1] = shares[1, 0] = math.nan
    path = classes.confusion_picture(tmp_path / "a.png", [f"class {n}" for n in range(many)], shares, title="x")
    found = pixels(path)
    empty = np.round(255 * np.array(colormaps["cividis"](0.0)[:3])).astype(int)
    zeros = (np.abs(found.astype(int) - empty).max(-1) <= 1).sum()
    never = (found == 0xDD).all(-1).sum()
    # The classes that are least often right are drawn, and these met all others.
    assert zeros > 1000 and bool(never > 1000) is (many == 3)
