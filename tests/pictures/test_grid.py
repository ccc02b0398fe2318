"""Rows of images: every shape of input, nothing left out unsaid, wrong predictions told by more than colour."""

from __future__ import annotations

import math

import numpy as np
import pytest
from drawn import painted, pixels, size

from pipeline.pictures import grid
from pipeline.pictures.boxes import KEYS, detection_picture, judged
from pipeline.pictures.canvas import BLUE, GREEN, GREY, LONGEST_NAME, ORANGE, legible
from pipeline.pictures.episodes import episode_picture, note, sample_picture
from pipeline.pictures.grid import Answer, Frame, Part
from pipeline.pictures.masks import segmentation_picture, tinted

CLASSES = ("latin/a", "$x^2$ _y", "犬 ☃", "a" * 60)
RED, LIME = (255, 0, 0), (0, 255, 0)


def part(ways: int, each: int, *shape: int) -> Part:
    values = np.linspace(-0.1, 1.1, ways * each * math.prod(shape)).reshape(-1, *shape)
    return Part(values, np.arange(ways).repeat(each))


def plain(colour: tuple[int, int, int], height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), np.array(colour) / 255)


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 6, 3), (2, 8, 8)])
def test_an_episode_of_any_axis_order_and_channels(tmp_path, shape):
    support, query = part(4, 1, *shape), part(4, 3, *shape)
    right, wrong = np.asarray(query.targets).copy(), np.asarray(query.targets).copy()
    wrong[5] = 3
    path = tmp_path / "pictures" / "episode.png"
    episode_picture(path, support, query, [Answer("before", wrong), Answer("after", right)], CLASSES, title="x")
    key = painted(path, ORANGE)
    assert size(path)[0] > 400 and size(path)[1] > 400 and key > 0
    assert [file.name for file in path.parent.iterdir()] == ["episode.png"]
    episode_picture(path, support, query, [Answer("before", right), Answer("after", wrong)], CLASSES, title="x")
    # A frame of four sides, besides the key that explains it.
    assert painted(path, ORANGE) > key + 500


def test_one_row_a_class_whatever_the_order_of_samples():
    images, labels = part(2, 3, 4, 4, 1)
    made = grid.block("support", images[::-1], labels[::-1], 8)
    places = [(cell.row, cell.column) for cell in made.cells]
    assert made.columns == 3 and places == [(1, 0), (1, 1), (1, 2), (0, 0), (0, 1), (0, 2)]


def test_what_a_query_was_taken_for_is_told_in_words():
    assert [note([0], 0), note([2], 0), note([0, 0], 0)] == ["", "✗ 3", ""]
    assert [note([2, 0], 0), note([0, 1], 0), note([1, 1], 0)] == ["✗ 3 → ✓", "✓ → ✗ 2", "✗ 2 → ✗ 2"]


def test_images_of_a_block_are_of_one_size_if_any_has_a_note():
    images, labels = part(3, 1, 4, 4, 1)
    made = grid.block("queries", images, labels, 8, notes=["", "✗ 3", ""], wrong=[False, True, False])
    assert [(cell.note, cell.is_wrong) for cell in made.cells] == [(" ", False), ("✗ 3", True), (" ", False)]
    assert [cell.note for cell in grid.block("queries", images, labels, 8, notes=["", "", ""]).cells] == ["", "", ""]


def test_what_has_no_room_is_counted(tmp_path):
    support, query = part(12, 6, 4, 4, 1), part(12, 9, 4, 4, 1)
    names = [str(number) for number in range(12)]
    told = grid.left_out(names, support.targets, query.targets, 8)
    assert told == "\nnot shown: 2 classes, 10 support, 10 queries"
    assert grid.left_out(names[:2], [0, 1], [0, 1], 8) == ""
    width, height = size(sample_picture(tmp_path / "a.png", support, query, names, title="twelve"))
    cell = 150 * grid.CELL_IN
    assert 13 * cell < width < 15 * cell and 10 * cell < height < 12 * cell


def test_images_of_different_sizes_keep_their_shapes_and_colours(tmp_path):
    """A square and a tall image: both fill the height of their cell, the tall one a third of its width."""
    images = [plain(RED, 4, 4), plain(LIME, 9, 3)]
    found = pixels(sample_picture(tmp_path / "a.png", Part(images, [0, 1]), Part(images, [0, 1]), ["a", "b"], title=""))
    red, lime = ((found == np.array(colour)).all(-1) for colour in (RED, LIME))
    side = 0.89 * grid.CELL_IN * 150
    assert red.sum() == pytest.approx(2 * side**2, rel=0.1) and lime.sum() == pytest.approx(2 * side**2 / 3, rel=0.1)
    # The first class is above the second, its support left of its query.
    assert np.nonzero(red)[0].max() < np.nonzero(lime)[0].min()
    assert np.ptp(np.nonzero(red)[1]) > 1.5 * side


def test_names_show_their_letters_or_their_code_points():
    assert legible("犬a") == "\\u72aca"
    assert legible("x" * 60) == "…" + "x" * (LONGEST_NAME - 1)


def test_what_belongs_to_a_class_is_tinted_and_the_rest_grey():
    image, nothing = np.zeros((2, 2, 3)), np.zeros((2, 2), bool)
    areas = [nothing.copy() for _ in range(4)]
    for number, area in enumerate(areas):
        area.flat[number] = True
    shown = tinted(image + 0.5, *areas[:3], unseen=areas[3])
    assert shown.shape == (2, 2, 3)
    blue, white, orange, unseen = shown.reshape(4, 3)
    assert blue.argmax() == 2 and orange.argmax() == 0 and np.ptp(white) == 0
    assert white.min() > 0.6 > 0.4 > unseen.max()
    assert np.allclose(tinted(image + 0.5, unseen=nothing), 0.75 * 0.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_masks_before_and_after(tmp_path, channels):
    """Two classes; the first answer finds nothing, the second all, so that only before there are frames."""
    images = np.zeros((4, channels, 16, 16))
    masks = np.zeros((4, 16, 16), int)
    masks[:2, 4:12, 4:12], masks[2:, :8] = 1, 2
    masks[:, 15] = 255
    support, query = Part(images[::2], masks[::2]), Part(images, masks)
    nothing, everything = Answer("before", np.zeros_like(masks)), Answer("after", np.where(masks == 255, 1, masks))
    one = segmentation_picture(tmp_path / "a.png", support, query, [everything], ["a", "b"], title="x")
    two = segmentation_picture(tmp_path / "b.png", support, query, [nothing, everything], ["a", "b"], title="x")
    key = painted(one, ORANGE)
    assert key > 0 and painted(two, ORANGE) > key + 1000 and size(two)[1] == size(one)[1]


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
    frames, found, there = judged(truth[1], said[1], 0)
    assert (found, there) == (1, 2) and [frame.colour for frame in frames] == [GREY, BLUE, ORANGE, GREEN]
    assert frames[3] == Frame(pytest.approx((0.6, 0.1, 0.9, 0.4)), GREEN, "--")
    images = np.full((2, 1, 16, 16), 0.5)
    support, query = Part(images, truth), Part(images, truth)
    answers = [Answer("before", np.zeros_like(said)), Answer("after", said)]
    path = detection_picture(tmp_path / "a.png", support, query, answers, ["a"], title="x")
    before = detection_picture(tmp_path / "b.png", support, query, answers[:1], ["a"], title="x")
    assert {key.colour for key in KEYS} == {BLUE, GREEN, ORANGE, GREY}
    for colour in (BLUE, GREEN):
        assert painted(path, colour) > 50
    # After adapting something is found besides what the support labels.
    assert painted(path, BLUE) > painted(before, BLUE) + 20
