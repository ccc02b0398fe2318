"""A model is a function of its file; it says the same wherever it is asked, and an altered file says nothing."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from teachable import DETECTION, NAMES, PROTOTYPE, SEGMENTATION, learner_of, picture, support_of
from test_combinations import kinds

from pipeline.data.images import encode_png
from pipeline.errors import InputError
from pipeline.schema.learner import LearnerConfig
from pipeline.teaching import adapted
from pipeline.teaching.adapted import KEY, UNKNOWN, Adapted
from pipeline.teaching.answers import Boxes, Mask, answers, as_json, opened
from pipeline.teaching.support import Support


@pytest.fixture(scope="module")
def model(glyphs_root, tmp_path_factory) -> Adapted:
    learner = learner_of(glyphs_root, tmp_path_factory.mktemp("runs"), **PROTOTYPE)
    return Adapted(learner, support_of(learner), origin={"step": 3})


@pytest.fixture
def file(model, tmp_path):
    adapted.save(model, tmp_path / "deep" / "model.safetensors")
    return tmp_path / "deep" / "model.safetensors"


def asked(model: Adapted, **sizes) -> list:
    return [opened(model, encode_png(picture(name, 5, **sizes)), name) for name in NAMES]


@pytest.mark.parametrize("kind", kinds(LearnerConfig))
def test_every_learner_says_the_same_out_of_its_file(tmp_path, glyphs_root, kind):
    sections = {"model": {"kind": "conv4", "width": 4, "features": "map"}} if kind == "relation" else {}
    learner = learner_of(glyphs_root, tmp_path, learner={"kind": kind}, **sections)
    first = Adapted(learner, support_of(learner), origin={})
    adapted.save(first, tmp_path / "model")
    second = adapted.load(tmp_path / "model")
    inputs = learner.inputs.tensor([each.arrays for each in asked(first)])
    assert torch.equal(first.scores(inputs), second.scores(inputs))
    assert first.labels(inputs) == second.labels(inputs)
    assert first.calibration == second.calibration and first.support.names == second.support.names


def test_the_same_support_gives_the_same_bytes(model, tmp_path):
    again = Adapted(model.learner, support_of(model.learner), origin={"step": 3})
    for name, made in (("a", model), ("b", again)):
        adapted.save(made, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_an_answer_depends_on_its_own_image_alone(model):
    together = answers(model, asked(model))
    alone = [answers(model, [one])[0] for one in asked(model)]
    for one, other in zip(together, alone, strict=True):
        assert one.label == other.label and one.nearest == other.nearest
        assert one.probability == pytest.approx(other.probability, abs=1e-6)


def test_what_was_shown_is_known_and_nearest_to_itself(model):
    for number, label in enumerate(model.labels(model.support.inputs)):
        assert label.nearest == number and label.likeness == pytest.approx(1, abs=1e-5)
        assert label.label != UNKNOWN
        assert sum(label.probabilities.values()) == pytest.approx(1) and label.probability == max(
            label.probabilities.values()
        )


def test_the_threshold_decides_what_is_unknown(model):
    inputs = model.learner.inputs.tensor([each.arrays for each in asked(model)])
    for label in model.labels(inputs, threshold=1.1):
        assert label.label == UNKNOWN and label.probabilities
    assert all(label.label != UNKNOWN for label in model.labels(inputs, threshold=-1.1))


def test_fewer_classes_than_outputs(glyphs_root, tmp_path):
    learner = learner_of(glyphs_root, tmp_path)
    made = Adapted(learner, support_of(learner, names=NAMES[:2]), origin={})
    assert made.scores(made.support.inputs).shape == (6, 2)


def test_masks_come_in_the_pixels_of_their_image(scenes_root, tmp_path):
    learner = learner_of(scenes_root, tmp_path, **SEGMENTATION)
    height, width, channels = learner.inputs.shape
    inputs = torch.rand(3, channels, height, width)
    masks = torch.zeros(3, height, width, dtype=torch.int64)
    masks[:, 4:20, 4:20], masks[1:, 30:40, 30:40] = 1, 2
    made = Adapted(learner, Support(("one", "two"), inputs, masks, ("a", "b", "c")), origin={})
    image = np.random.default_rng(0).integers(0, 255, (30, 50, channels), np.uint8)
    (found,) = answers(made, [opened(made, encode_png(image), "image")])
    assert isinstance(found, Mask) and found.mask.shape == (30, 50) and set(np.unique(found.mask)) <= {0, 1, 2}
    assert sum(found.areas.values()) == pytest.approx((found.mask > 0).mean())
    assert as_json(found, made) == {"areas": found.areas}


def test_a_mask_has_values_for_so_many_classes_and_no_more(scenes_root, tmp_path):
    learner = learner_of(scenes_root, tmp_path, **SEGMENTATION)
    height, width, channels = learner.inputs.shape
    many = tuple(str(number) for number in range(255))
    support = Support(many, torch.zeros(1, channels, height, width), torch.ones(1, height, width).long(), ("a",))
    with pytest.raises(InputError, match="255 classes, and this learner tells at most 254 apart"):
        Adapted(learner, support, origin={})


def test_boxes_come_in_the_pixels_of_their_image(scenes_root, tmp_path):
    learner = learner_of(scenes_root, tmp_path, **DETECTION)
    height, width, channels = learner.inputs.shape
    boxes = torch.tensor([[[0.1, 0.1, 0.5, 0.5, 1]], [[0.2, 0.3, 0.8, 0.9, 2]]])
    inputs = torch.rand(2, channels, height, width)
    made = Adapted(learner, Support(("one", "two"), inputs, boxes, ("a", "b")), origin={})
    image = np.random.default_rng(0).integers(0, 255, (30, 60, channels), np.uint8)
    (found,) = answers(made, [opened(made, encode_png(image), "image")], threshold=0.0)
    assert isinstance(found, Boxes) and found.boxes
    for box in found.boxes:
        left, top, right, bottom = box.box
        assert 0 <= left <= right <= 60 and 0 <= top <= bottom <= 30 and box.label in ("one", "two")
    assert [box.score for box in found.boxes] == sorted((box.score for box in found.boxes), reverse=True)
    assert json.dumps(as_json(found, made))
    assert not answers(made, [opened(made, encode_png(image), "image")], threshold=1.1)[0].boxes


def changed(file, **about):
    """The file with other things said in it."""
    with safe_open(file, framework="pt") as opened_file:
        said = json.loads(opened_file.metadata()[KEY])
    save_file(load_file(file), file, metadata={KEY: json.dumps({**said, **about})})


def test_an_altered_file_is_refused(file, model):
    whole = file.read_bytes()
    for change, said in [
        (lambda: changed(file, format=99), "format 99, this version reads 1"),
        (lambda: changed(file, classes=["x", "y", "z"]), "is not what was written"),
        (lambda: file.write_bytes(whole[:-3] + b"abc"), "is not what was written"),
        (lambda: file.write_bytes(whole[: len(whole) // 2]), "is no model of metashard adapt"),
        (lambda: file.write_bytes(b"PK\x03\x04"), "is no model of metashard adapt"),
        (lambda: save_file({"a": torch.zeros(1)}, file), "is no model of metashard adapt"),
        (lambda: file.unlink(), "is no model of metashard adapt"),
    ]:
        file.write_bytes(whole)
        change()
        with pytest.raises(InputError, match=said):
            adapted.load(file)


def test_whoever_may_read_the_folder_may_read_the_model(file):
    assert file.stat().st_mode & 0o044


def test_what_is_not_finite_is_said(model):
    broken = Adapted(model.learner, model.support, model.calibration, origin={})
    with pytest.raises(InputError, match="not finite"):
        broken.scores(model.support.inputs * float("nan"))
