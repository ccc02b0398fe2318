"""Pictures: drawn for every shape of input, nothing left out unsaid, wrong predictions told by more than colour."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from pipeline import pictures

CLASSES = ("latin/a", "$x^2$ _y", "犬 ☃", "a" * 60)


def episode(ways: int, each: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.linspace(-0.1, 1.1, ways * each * math.prod(shape)).reshape(-1, *shape)
    return values, np.arange(ways).repeat(each)


def size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return image.size


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 6, 3), (2, 8, 8)])
def test_an_episode_of_any_axis_order_and_channels(tmp_path, shape):
    support, query = episode(4, 1, *shape), episode(4, 3, *shape)
    predictions = query[1].copy()
    predictions[5] = 3
    path = tmp_path / "pictures" / "episode.png"
    pictures.episode_picture(path, *support, *query, predictions, CLASSES)
    width, height = size(path)
    assert width > 400 and height > 400
    assert [file.name for file in path.parent.iterdir()] == ["episode.png"]


def test_one_row_a_class_whatever_the_order_of_samples(tmp_path):
    values, labels = episode(2, 3, 4, 4, 1)
    cells, columns = pictures._block(values[::-1], labels[::-1], 8)
    assert columns == 3 and [(cell.row, cell.column) for cell in cells] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (0, 0),
        (0, 1),
        (0, 2),
    ]


def test_a_wrong_prediction_is_told_in_words(tmp_path):
    values, labels = episode(3, 1, 4, 4, 1)
    cells, _ = pictures._block(values, labels, 8, predictions=[0, 2, 2])
    assert [(cell.is_wrong, cell.note) for cell in cells] == [(False, ""), (True, "✗ 3"), (False, "")]


def test_what_has_no_room_is_counted(tmp_path):
    support, query = episode(12, 6, 4, 4, 1), episode(12, 9, 4, 4, 1)
    names = [str(number) for number in range(12)]
    assert pictures._left_out(names, support[1], query[1]) == "\nnot shown: 2 classes, 10 support, 10 queries"
    assert pictures._left_out(names[:2], [0, 1], [0, 1]) == ""
    size(pictures.sample_picture(tmp_path / "a.png", *support, *query, names, title="twelve"))


def test_images_of_different_sizes(tmp_path):
    images = [np.zeros((4, 4, 1)), np.ones((9, 3, 1))]
    size(pictures.sample_picture(tmp_path / "a.png", images, [0, 1], images, [0, 1], ["a", "b"], title=""))


def test_names_show_their_letters_or_their_code_points():
    assert pictures._legible("犬a") == "\\u72aca"
    assert pictures._legible("x" * 60) == "…" + "x" * (pictures.LONGEST_NAME - 1)


def test_curves(tmp_path):
    a = pictures.adaptation_curve(
        tmp_path / "a.png", range(6), np.linspace(0.2, 0.9, 6), [0.01] * 6, 0.42, metric="iou"
    )
    losses = np.linspace(1.6, 0.1, 400)
    losses[50:80], losses[100] = math.nan, math.inf
    b = pictures.loss_curve(
        tmp_path / "b.png", range(400), losses, ([100, 200], [0.5, 0.6], [0.01, 0.02]), metric="accuracy"
    )
    c = pictures.loss_curve(tmp_path / "c.png", range(400), losses, ([], [], []), metric="accuracy")
    assert size(a)[1] == 600 and size(b)[1] > size(c)[1]


@pytest.mark.parametrize("far", [[0, 0.001, 0.5, 1], [0, 1], [0, 1e-7, 1]])
def test_a_receiver_operating_characteristic(tmp_path, far):
    path = pictures.roc_picture(tmp_path / "a.png", (far, np.linspace(0, 1, len(far))), title="pairs")
    assert size(path) == (960, 660)


def test_differences_of_any_number_of_runs_and_panels(tmp_path):
    names = ["run-with-a-long-name-" * 4 + "x", *CLASSES]
    rows = [(0.0, 0.0), (0.01, 0.004), (-0.1, 0.02), (0.001, 0.01), (math.nan, math.nan)]
    one = pictures.difference_picture(tmp_path / "a.png", names, {"inductive": rows}, metric="accuracy")
    two = pictures.difference_picture(tmp_path / "b.png", names[:2], {"a": rows[:2], "b": rows[1:3]}, metric="accuracy")
    assert size(one)[0] > 1200 and size(two)[1] > 300


@pytest.mark.parametrize("losses", [[], [1.5], [math.nan, math.nan]])
def test_a_loss_curve_of_next_to_nothing(tmp_path, losses):
    size(
        pictures.loss_curve(tmp_path / "a.png", range(len(losses)), losses, ([1], [0.5], [math.nan]), metric="accuracy")
    )


def test_the_running_median_passes_over_gaps():
    values = np.array([1.0, math.nan, 3.0, 2.0, math.nan, math.nan, math.nan])
    assert np.array_equal(pictures._running_median(values, 3), [1, 2, 2.5, 2.5, 2, math.nan, math.nan], equal_nan=True)


def test_boxes_of_an_episode(tmp_path):
    """Found, missed, wrong and not looked at; the first of two detections of an object counts."""
    truth = np.zeros((2, 3, 5), np.float32)
    truth[:, 0], truth[:, 1], truth[1, 2] = (0.1, 0.1, 0.4, 0.4, 1), (0.6, 0.1, 0.9, 0.4, 1), (0.1, 0.6, 0.4, 0.9, -1)
    said = np.zeros((2, 5, 6), np.float32)
    said[1, :4] = [
        (0.1, 0.1, 0.4, 0.4, 0.9, 0),
        (0.1, 0.1, 0.4, 0.35, 0.8, 0),
        (0.1, 0.6, 0.4, 0.9, 0.7, 0),
        (0.6, 0.1, 0.9, 0.4, 0.7, 1),
    ]
    frames, found, there = pictures._judged(truth[1], said[1], 0)
    colours = [frame.colour for frame in frames]
    assert (found, there) == (1, 2) and colours == [pictures.GREY, pictures.BLUE, pictures.ORANGE, pictures.GREEN]
    images = np.full((2, 1, 16, 16), 0.5)
    size(pictures.detection_picture(tmp_path / "a.png", images, truth, images, truth, said, ["a"]))
