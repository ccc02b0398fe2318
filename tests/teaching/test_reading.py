"""A folder of images becomes a support set, or a sentence that says what is wrong with it."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from teachable import DETECTION, NAMES, PROTOTYPE, SEGMENTATION, class_folders, learner_of, picture, support_of

from pipeline.data.images import encode_png
from pipeline.errors import InputError
from pipeline.teaching import reading
from pipeline.teaching.reading import support_of as read


@pytest.fixture(scope="module")
def learner(glyphs_root, tmp_path_factory):
    return learner_of(glyphs_root, tmp_path_factory.mktemp("runs"), **PROTOTYPE)


@pytest.fixture(scope="module")
def segmenter(scenes_root, tmp_path_factory):
    return learner_of(scenes_root, tmp_path_factory.mktemp("runs"), **SEGMENTATION)


@pytest.fixture(scope="module")
def detector(scenes_root, tmp_path_factory):
    return learner_of(scenes_root, tmp_path_factory.mktemp("runs"), **DETECTION)


def scene(number: int) -> np.ndarray:
    """A colour picture (32, 32, 3) with a square at a place of its number."""
    shown = np.full((32, 32, 3), 40 * number, np.uint8)
    shown[4:14, 4 + number : 14 + number] = 255
    return shown


def test_class_folders(tmp_path, learner):
    found = read(class_folders(tmp_path / "images"), learner)
    made = support_of(learner)
    order = sorted(range(9), key=lambda n: made.names[n])
    assert found.support.classes == tuple(sorted(NAMES)) and found.warnings == []
    assert found.support.names == tuple(made.names[n] for n in order)
    assert torch.equal(found.support.inputs, made.inputs[order])
    assert [found.support.classes[way] for way in found.support.targets] == [
        name.split("/")[0] for name in found.support.names
    ]


def test_it_does_not_depend_on_the_order_of_files(tmp_path, learner):
    first = read(class_folders(tmp_path / "a"), learner).support
    second = read(class_folders(tmp_path / "b", names=NAMES[::-1]), learner).support
    assert first.names == second.names and torch.equal(first.inputs, second.inputs)


def test_images_and_masks(tmp_path, segmenter):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    (tmp_path / "classes.json").write_text(json.dumps({"1": "square", "2": "ground"}))
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(encode_png(scene(number)))
        mask = np.zeros((32, 32), np.uint8)
        mask[4:14, 4 + number : 14 + number] = 1
        mask[20:] = 2
        (tmp_path / "masks" / f"{number}.png").write_bytes(encode_png(mask))
    support = read(tmp_path, segmenter).support
    # Of two classes in a picture there is still one picture.
    assert support.classes == ("ground", "square") and len(support.inputs) == 3
    height, width, _ = segmenter.inputs.shape
    assert support.targets.shape == (3, height, width) and support.targets.unique().tolist() == [0, 1, 2]
    share = (support.targets == 2).double().mean().item()
    assert share == pytest.approx(100 / 32**2, abs=0.02)
    assert (support.targets[:, -1] == 1).all()


def test_boxes_of_coco(tmp_path, detector):
    (tmp_path / "images").mkdir()
    told = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "square"}]}
    for number in range(2):
        (tmp_path / "images" / f"{number}.png").write_bytes(encode_png(scene(number)))
        told["images"].append({"id": number, "file_name": f"{number}.png", "width": 32, "height": 32})
        for _ in range(1 + number):
            own = {"id": len(told["annotations"]), "image_id": number, "category_id": 7}
            told["annotations"].append({**own, "bbox": [4 + number, 4, 10, 10], "iscrowd": 0, "area": 100})
    (tmp_path / "instances.json").write_text(json.dumps(told))
    support = read(tmp_path, detector).support
    assert support.classes == ("square",) and support.targets.shape == (2, 2, 5)
    torch.testing.assert_close(support.targets[0, 0], torch.tensor([4 / 32, 4 / 32, 14 / 32, 14 / 32, 1]))
    assert not support.targets[0, 1].any() and support.targets[1, :, 4].tolist() == [1, 1]


def test_what_is_odd_is_said(tmp_path, learner):
    place = class_folders(tmp_path, shots=1)
    for number in range(4):
        (place / "disc" / f"more{number}.png").write_bytes(encode_png(picture("disc", number + 1, size=16 + number)))
    (place / "cross" / "again.png").write_bytes((place / "cross" / "0.png").read_bytes())
    (place / "bars" / "long.png").write_bytes(encode_png(np.zeros((7, 60, 1), np.uint8)))
    found = read(place, learner)
    said = "\n".join(found.warnings)
    assert "there twice and count once: cross/again (as cross/0)" in said or "cross/0 (as cross/again)" in said
    assert "'disc' has 5 samples, 'cross' 1" in said
    assert "less than half the 16 × 16 pixels that the learner sees: bars/long" in said
    assert "over 2 times as long as wide, and squeezed: bars/long" in said
    assert len(found.support.inputs) == 1 + 2 + 5


def huge_png(side: int) -> bytes:
    """The header of a picture of so many pixels a side, and nothing of them."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cross/bad.png", b"no image at all", r"image 'cross/bad'.*mend it, or take it out of the support"),
        ("cross/half.png", encode_png(picture("cross", 0))[:-30], "image 'cross/half'"),
        ("cross/huge.png", huge_png(50_000), "image 'cross/huge'.*pixels"),
        ("disc/same.png", encode_png(picture("cross", 1)), "are the same picture in two classes"),
    ],
)
def test_bad_images_are_named(tmp_path, learner, name, content, said):
    place = class_folders(tmp_path)
    (place / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        read(place, learner)


def test_all_bad_images_are_counted(tmp_path, learner):
    place = class_folders(tmp_path)
    for number in range(3):
        (place / "disc" / f"bad{number}.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"bad0.*\(2 more cannot be read either\)"):
        read(place, learner)


def test_too_few(tmp_path, learner, glyphs_root):
    with pytest.raises(InputError, match="no such folder"):
        read(tmp_path / "nowhere", learner)
    with pytest.raises(InputError, match="no labelled images found"):
        (tmp_path / "empty").mkdir()
        read(tmp_path / "empty", learner)
    with pytest.raises(InputError, match="one class, 'cross', and nothing to tell it from"):
        read(class_folders(tmp_path / "one", names=("cross",)), learner)
    place = class_folders(tmp_path / "hollow")
    (place / "nothing").mkdir()
    with pytest.raises(InputError, match="class 'nothing' has no image; put one in, or remove the folder"):
        read(place, learner)


def test_more_classes_than_the_head_has_outputs(tmp_path, glyphs_root):
    learner = learner_of(glyphs_root, tmp_path / "runs")
    assert learner.most_ways == 3
    place = class_folders(tmp_path / "images")
    (place / "fourth").mkdir()
    (place / "fourth" / "a.png").write_bytes(encode_png(255 - picture("disc", 0)))
    with pytest.raises(InputError, match="4 classes, and this learner tells at most 3 apart.*data.ways = 4"):
        read(place, learner)


def test_layouts_go_with_tasks(tmp_path, learner, segmenter):
    with pytest.raises(InputError, match="--layout coco is not for task.kind = classification; choose of folder"):
        read(tmp_path, learner, layout="coco")
    task = segmenter.config.task
    assert reading.layout_of(tmp_path, task, "") == "fss"
    (tmp_path / "Annotations").mkdir()
    assert reading.layout_of(tmp_path, task, "") == "voc"


def test_an_object_that_is_lost_in_small_pictures(tmp_path, segmenter):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    (tmp_path / "classes.json").write_text(json.dumps({"1": "dot"}))
    (tmp_path / "images" / "a.png").write_bytes(encode_png(np.zeros((2000, 8, 3), np.uint8)))
    mask = np.zeros((2000, 8), np.uint8)
    # Between the first two rows that are left of 2000.
    mask[:20] = 1
    (tmp_path / "masks" / "a.png").write_bytes(encode_png(mask))
    with pytest.raises(InputError, match="nothing of 'dot' is left as the learner sees it; give larger objects"):
        read(tmp_path, segmenter)
