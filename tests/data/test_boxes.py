"""Boxes from a sample's JSON to targets: as shares, numbered by the episode, one object of each support image looked at."""

import json
import math

import numpy as np
import pytest
import torch
from tars import write_tar

from pipeline import prepare
from pipeline.data.boxes import clip
from pipeline.data.images import encode_png
from pipeline.data.index import Index
from pipeline.data.loader import Reader
from pipeline.data.pack import members
from pipeline.data.sampler import Draw, Sampler
from pipeline.data.shapes import Shape
from pipeline.data.shards import Shards
from pipeline.data.source import Sample
from pipeline.errors import InputError

WHOLE = [[0, 0, 8, 4, 1]]


def packed(place, **said) -> Index:
    """Data of one split with classes a and b of two samples each, 8 × 4 pixels; `said`: fields of a sample's JSON."""
    made = []
    for key in ("a1", "a2", "b1", "b2"):
        fields = {"class": key[0], "boxes": WHOLE, **said.get(key, {})}
        made += [
            (f"{key}.png", encode_png(np.full((4, 8, 1), 100, np.uint8))),
            (f"{key}.json", json.dumps(fields).encode()),
        ]
    place.mkdir()
    write_tar(place / "x.tar", made)
    return prepare.index([place / "x.tar"], out=None, rule="train=1.0")


def drawn(index: Index, boxes: int = 4, size: int | None = None):
    """b and a, in this order: b1 and a1 as support, b2 and a2 as queries."""
    rows = {index.key(row): row for row in range(4)}
    ids = {name: number for number, name in enumerate(index.class_names)}
    support, query = (np.array([[rows[f"b{n}"]], [rows[f"a{n}"]]]) for n in (1, 2))
    return Reader(Shards(index), invert=False, size=size, boxes=boxes).episode(
        Draw((ids["b"], ids["a"]), (0, 0), tuple(support), tuple(query))
    )


def test_boxes_are_shares_and_have_the_numbers_of_their_classes_in_the_episode(tmp_path):
    """b is the first class of the episode, a the second; what belongs to none of its classes is ground."""
    many = {
        "classes": ["a", "b", "stranger"],
        "boxes": [[2, 1, 6, 3, 1], [0, 0, 4, 4, 2], [1, 1, 2, 2, 3], [4, 0, 8, 1, -2]],
    }
    index = packed(tmp_path / "x", a2=many)
    for size in (None, 16):
        episode = drawn(index, size=size)
        assert episode.query.targets.dtype == torch.float32 and episode.query.targets.shape == (2, 4, 5)
        assert episode.query.targets[1].tolist() == [
            [0.25, 0.25, 0.75, 0.75, 2], [0, 0, 0.5, 1, 1], [0.5, 0, 1, 0.25, -1], [0, 0, 0, 0, 0]
        ]  # fmt: skip
        assert episode.query.targets[0].tolist() == [[0, 0, 1, 1, 1], *[[0] * 5] * 3]


def test_a_support_image_has_one_object_of_its_class(tmp_path):
    """The others of the episode's classes are not looked at; which one it is follows from the draw alone."""
    boxes = [[0, 0, 2, 2, 1], [2, 0, 4, 2, 1], [4, 0, 6, 2, 1], [0, 2, 2, 4, 2]]
    index = packed(tmp_path / "x", a1={"classes": ["a", "b"], "boxes": boxes})
    codes = drawn(index).support.targets[1, :, 4].tolist()
    assert sorted(codes) == [-2, -2, -1, 2] and codes == drawn(index).support.targets[1, :, 4].tolist()
    assert (drawn(index).query.targets[..., 4] > 0).sum() == 2


def test_every_object_of_a_support_image_is_chosen_now_and_then(scenes_root):
    index = Index.open(scenes_root)
    sampler, reader = (
        Sampler(index, "train", Shape(2, 3, 2), seed=0, turns=False),
        Reader(Shards(index), False, None, boxes=8),
    )
    chosen = set()
    for number in range(30):
        episode = reader.episode(sampler.draw(0, number))
        codes = episode.support.targets[..., 4]
        own = torch.arange(2).repeat_interleave(3) + 1
        assert ((codes > 0).sum(1) == 1).all() and (codes.amax(1) == own).all()
        assert torch.bincount(codes[codes > 0].long())[1:].tolist() == [3, 3]
        assert ((episode.query.targets[..., 4] == (torch.arange(2).repeat_interleave(2) + 1)[:, None]).any(1)).all()
        chosen |= {int(place) for place in codes.argmax(1)}
    assert len(chosen) > 1


def test_an_episode_is_the_same_for_every_reader(scenes_root):
    """Law 1."""
    index = Index.open(scenes_root)
    sampler = Sampler(index, "train", Shape(2, 2, 2), seed=3, turns=False)
    one, two = (Reader(Shards(Index.open(scenes_root)), False, None, boxes=8) for _ in range(2))
    for number in (5, 1, 5):
        a, b = one.episode(sampler.draw(7, number)), two.episode(sampler.draw(7, number))
        assert torch.equal(a.support.targets, b.support.targets) and torch.equal(a.query.targets, b.query.targets)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"boxes": None}, "has no boxes, which task.kind = detection needs"),
        ({"boxes": [[1, 2, 3]]}, "boxes must be lists of left, top, right, bottom and value"),
        ({"boxes": [["x", 0, 1, 1, 1]]}, "boxes must be lists of left"),
        ({"boxes": [[3, 0, 3, 4, 1]]}, r"box \[3.0, 0.0, 3.0, 4.0, 1.0\] has no area; take it out"),
        ({"boxes": [[0, 3, 4, 1, 1]]}, "has no area"),
        ({"boxes": [[0, 0, math.nan, 1, 1]]}, "has no area"),
        ({"boxes": [[-3, 0, 4, 4, 1]]}, "leaves its image, 8 × 4 pixels; clip it"),
        ({"boxes": [[0, 0, 9, 4, 1]]}, "leaves its image"),
        ({"boxes": [[0, 0, 8, 4, 2]]}, "is of class 2, and it names 1; mend its JSON"),
        ({"boxes": [[0, 0, 8, 4, 0]]}, "is of class 0"),
        ({"boxes": [[0, 0, 8, 4, 1.5]]}, "is of class 1.5"),
        ({"boxes": []}, "sample 'a2' has no box of its class 'a' that is to be looked at"),
        ({"boxes": [[0, 0, 8, 4, -1]]}, "has no box of its class 'a' that is to be looked at"),
        ({"boxes": 5 * WHOLE}, "has 5 boxes of the episode's classes, and task.boxes = 4; raise it"),
    ],
)  # fmt: skip
def test_boxes_that_mean_nothing_are_named(tmp_path, fields, said):
    with pytest.raises(InputError, match=said):
        drawn(packed(tmp_path / "x", a2=fields))


def test_a_box_that_is_rounded_beyond_its_image_is_taken(tmp_path):
    assert drawn(packed(tmp_path / "x", a2={"boxes": [[-0.3, 0, 8.2, 4, 1]]})).query.targets[1, 0].tolist() == [
        0,
        0,
        1,
        1,
        2,
    ]


def test_boxes_follow_their_image_when_it_is_packed_in_another_size():
    boxes = [[2, 1, 6, 3, 1], [0, 0, 3, 4, -2]]
    sample = Sample(
        "k", "a", lambda: np.zeros((4, 8, 1), np.uint8), meta=lambda: {"classes": ["a", "b"], "boxes": boxes}
    )
    form = {"store": "raw", "channels": None}
    as_it_is, square = (json.loads(members(sample, size=size, **form)["json"]) for size in (None, 16))
    assert as_it_is["boxes"] == boxes
    assert square["boxes"] == [[4, 4, 12, 12, 1], [0, 0, 6, 16, -2]] and square["classes"] == ["a", "b"]
    outside = Sample("k", "a", sample.image, meta=lambda: {"boxes": [[0, 0, 8, 5, 1]]})
    with pytest.raises(InputError, match="sample 'k': box .* leaves its image, 8 × 4 pixels"):
        members(outside, size=None, **form)


def test_boxes_are_clipped_to_their_image():
    assert clip((1, 1, 5, 3), 8, 4) == ((1, 1, 5, 3), False)
    assert clip((-3, 1, 5, 9), 8, 4) == ((0, 1, 5, 4), True)
    assert clip((-0.4, 1, 5, 4.4), 8, 4) == ((0, 1, 5, 4), False)
    for gone in ((9, 0, 12, 4), (3, 1, 3, 4), (5, 1, 2, 4), (0, 0, 0.5, 4), (math.inf, 0, 1, 1), (0, math.nan, 1, 1)):
        assert clip(gone, 8, 4).box is None
