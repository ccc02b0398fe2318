"""A learner built without its data says what it says beside them, whatever it is; and what it is asked wrongly is told."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from small import small_config
from tars import npy
from teachable import DETECTION, SEGMENTATION
from test_combinations import kinds
from test_embed import trained

from pipeline import build, register, servable
from pipeline.data.images import decode_mask, encode_png
from pipeline.data.index import Index
from pipeline.data.outline import Outline, outline, outlined
from pipeline.embed import embed
from pipeline.errors import InputError
from pipeline.learners.learner import Learner, Mode
from pipeline.schema.learner import LearnerConfig
from pipeline.schema.run import RunConfig
from pipeline.servable import Servable
from pipeline.start import started
from pipeline.tasks.detection import detections
from pipeline.teaching import source

MAPS = {"conv4": {"kind": "conv4", "width": 4, "features": "map"}}


def laid_out(place: Path, config: RunConfig, index: Index, learner: Learner) -> Servable:
    """The learner out of files, as they come into MLflow."""
    weights = save({name: value.contiguous() for name, value in learner.state_dict().items()})
    about = source.about(config, outline(index, config.data.train), weights, step=0)
    (place / "about.json").write_text(json.dumps(about))
    (place / "weights").write_bytes(weights)
    return servable.opened(place / "about.json", place / "weights")


def assert_alike(place: Path, config: RunConfig, *, exactly: bool = True) -> None:
    """Served and beside its data the learner says the same of test episodes, in both modes."""
    index = Index.open(config.data.root)
    learner = started(config, index, build.learner)
    found = laid_out(place, config, index, learner)
    # The data are not looked for.
    assert found.learner.config.data.root == config.data.root
    reader, bring = build.reader(config, index), build.place(config, torch.device("cpu"))
    for number in range(2):
        episode = bring(reader.episode(build.sampler(config, index, config.data.test).draw(0, number)))
        for mode in Mode:
            said = found.answer(register.example(config, index, number=number, queries=99), mode=mode)
            with torch.no_grad():
                own = learner.adapt(episode.support, episode.ways, mode=mode)(episode.query.inputs)
            assert torch.equal(torch.tensor(said.scores, dtype=own.dtype), own) or not exactly
            torch.testing.assert_close(torch.tensor(said.scores, dtype=own.dtype), own)
            assert said.labels == [said.classes[way] for way in own.argmax(-1)]
            assert len(said.classes) == episode.ways


@pytest.mark.parametrize("kind", kinds(LearnerConfig))
def test_every_learner(tmp_path, glyphs_root, kind):
    model = {"model": MAPS["conv4"]} if kind == "relation" else {}
    assert_alike(tmp_path, small_config(glyphs_root, tmp_path, learner={"kind": kind}, **model))


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"size": 20, "invert": True}},
        {"data": {"rotations": True}},
        {"data": {"normalise": "measured"}, "learner": {"kind": "ridge"}},
        {"meta": {"precision": "float64"}},
        {"task": {"kind": "verification"}, "learner": {"kind": "cosine"}},
        {"model": {"kind": "vit", "width": 8, "depth": 1, "heads": 2, "patch": 4}},
    ],
    ids=lambda sections: "-".join(sections),
)
def test_every_way_of_reading(tmp_path, glyphs_root, sections):
    assert_alike(tmp_path, small_config(glyphs_root, tmp_path, **sections))


@pytest.mark.parametrize("data", [{}, {"missing": "mask"}])
def test_several_modalities(tmp_path, depth_root, data):
    config = small_config(depth_root, tmp_path, data={"size": 16, "modalities": ["image", "depth"], **data})
    assert_alike(tmp_path, config)
    index = Index.open(depth_root)
    found = laid_out(tmp_path, config, index, build.learner(config, index))
    asked = register.example(config, index)
    alone = {**asked, "queries": [[image, ""] for image, _ in asked["queries"]]}
    if data:
        assert len(found.answer(alone).labels) == len(alone["queries"])
    else:
        with pytest.raises(InputError, match=r"queries\[0\]: a file is empty"):
            found.answer(alone)
    with pytest.raises(InputError, match="takes image, depth"):
        found.answer({**asked, "queries": [asked["queries"][0][0]]})


def test_features_of_a_frozen_encoder(tmp_path, glyphs_root):
    index = embed(trained(tmp_path, glyphs_root, learner={"kind": "prototype"}), tmp_path / "features")
    config = small_config(tmp_path / "features", tmp_path, model={"kind": "features"}, learner={"kind": "ridge"})
    assert_alike(tmp_path, config)
    found = laid_out(tmp_path, config, index, build.learner(config, index))
    asked = register.example(config, index)
    with pytest.raises(InputError, match="takes features of"):
        found.answer({**asked, "queries": [encoded(npy(np.zeros((2, 2, index.shape(0)[2]), np.float32)))]})


def test_masks_are_those_of_the_learner_beside_its_data(tmp_path, scenes_root):
    config, index = small_config(scenes_root, tmp_path, **SEGMENTATION), Index.open(scenes_root)
    learner = started(config, index, build.learner)
    found = laid_out(tmp_path, config, index, learner)
    episode = build.reader(config, index).episode(build.sampler(config, index, config.data.test).draw(0, 0))
    for mode in Mode:
        said = found.answer(register.example(config, index, queries=99), mode=mode)
        with torch.no_grad():
            own = learner.adapt(episode.support, episode.ways, mode=mode)(episode.query.inputs).argmax(1)
        masks = [decode_mask(base64.b64decode(text), "mask") for text in said.masks]
        assert torch.equal(torch.from_numpy(np.stack(masks)).long(), own) and len(said.classes) == episode.ways


def test_boxes_are_those_of_the_learner_beside_its_data(tmp_path, scenes_root):
    config, index = small_config(scenes_root, tmp_path, **DETECTION), Index.open(scenes_root)
    learner = started(config, index, build.learner)
    said = laid_out(tmp_path, config, index, learner).answer(register.example(config, index, queries=99))
    episode = build.reader(config, index).episode(build.sampler(config, index, config.data.test).draw(0, 0))
    with torch.no_grad():
        own = detections(learner.adapt(episode.support, episode.ways, mode=Mode.INDUCTIVE)(episode.query.inputs))
    height, width, _ = index.shape(0)
    for boxes, wanted in zip(said.boxes, own.double(), strict=True):
        kept = wanted[wanted[:, 4] > 0]
        kept = torch.cat([kept[:, :4] * torch.tensor([width, height, width, height]), kept[:, 4:5], 1 + kept[:, 5:]], 1)
        torch.testing.assert_close(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 6), kept, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("masks", lambda own: own[:-1], "support has 2 images and masks 1; give one for each image"),
        ("masks", lambda own: [own[0], encoded(encode_png(np.zeros((5, 5), np.uint8)))], r"masks\[1\]: is \(5, 5\)"),
        ("masks", lambda own: [own[0], encoded(encode_png(np.full((48, 48), 9, np.uint8)))], "value 9 means nothing"),
        ("masks", lambda own: [own[0], "?"], r"masks\[1\]: is no base64"),
        ("masks", lambda own: [own[0], own[0]], "not every one of .* is in masks"),
        ("masks", lambda own: None, "masks: is not given"),
    ],
)
def test_masks_that_cannot_be_are_told(tmp_path, scenes_root, column, change, said):
    config, index = small_config(scenes_root, tmp_path, **SEGMENTATION), Index.open(scenes_root)
    found = laid_out(tmp_path, config, index, build.learner(config, index))
    request = register.example(config, index)
    with pytest.raises(InputError, match=said):
        found.answer({**request, column: change(request[column])})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda own: [[[0, 0, 99, 9, 1]], own[1]], "leaves its image"),
        (lambda own: [[[0, 0, 9, 9, 3]], own[1]], "is of class 3, and it names 2"),
        (lambda own: [["x"], own[1]], r"boxes\[0\]"),
    ],
)
def test_boxes_that_cannot_be_are_told(tmp_path, scenes_root, change, said):
    config, index = small_config(scenes_root, tmp_path, **DETECTION), Index.open(scenes_root)
    found = laid_out(tmp_path, config, index, build.learner(config, index))
    request = register.example(config, index)
    with pytest.raises(InputError, match=said):
        found.answer({**request, "boxes": change(request["boxes"])})


@pytest.fixture(scope="module")
def asked(glyphs_root, tmp_path_factory) -> tuple[Servable, dict[str, list[Any]]]:
    place = tmp_path_factory.mktemp("model")
    config, index = small_config(glyphs_root, place), Index.open(glyphs_root)
    return laid_out(place, config, index, build.learner(config, index)), register.example(config, index)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_images_come_in_any_size_and_colour(asked):
    found, request = asked
    large = np.full((40, 40, 3), 200, np.uint8)
    forms = [large, large[..., :1], large[:16, :16, :1]]
    same = found.answer({**request, "queries": [encoded(encode_png(form)) for form in forms]})
    for other in same.scores[1:]:
        assert other == pytest.approx(same.scores[0], abs=1e-6)
    shares = found.answer({**request, "queries": [encoded(npy(np.full((16, 16, 1), 200 / 255, np.float32)))]})
    assert shares.scores[0] == pytest.approx(same.scores[2], abs=1e-6)


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("labels", lambda own: own[:-1], "one class for each image"),
        ("support", lambda own: [], "support has 0 images"),
        ("queries", lambda own: [], "queries 0"),
        ("queries", lambda own: ["not base64!"], r"queries\[0\]: is no base64"),
        ("queries", lambda own: [encoded(b"GIF89a")], r"queries\[0\]: not a whole image"),
        (
            "queries",
            lambda own: [own[0], encoded(npy(np.zeros((4, 4, 2), np.float32)))],
            r"queries\[1\]: has 2 channels",
        ),
        ("queries", lambda own: [encoded(npy(np.full((4, 4, 1), np.nan)))], "not finite"),
        ("queries", lambda own: [encoded(b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}")], "no npy array"),
        ("queries", lambda own: [[own[0], own[0]]], "has 2 files, and this learner takes image"),
    ],
)
def test_what_is_asked_wrongly_is_told(asked, column, change, said):
    found, request = asked
    with pytest.raises(InputError, match=said):
        found.answer({**request, column: change(request[column])})


def test_a_head_has_so_many_outputs_and_no_more(asked):
    found, request = asked
    fewer = found.answer({**request, "support": request["support"][:2], "labels": ["a", "b"]})
    assert fewer.classes == ["a", "b"] and all(len(own) == 2 for own in fewer.scores)
    more = {"support": request["support"] * 2, "labels": [str(n) for n in range(6)]}
    with pytest.raises(InputError, match="6 classes, and this learner tells at most 3 apart"):
        found.answer({**request, **more})


def test_a_head_that_starts_from_the_support_takes_any_number_of_classes(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path, learner={"kind": "prototype"})
    index = Index.open(glyphs_root)
    found = laid_out(tmp_path, config, index, build.learner(config, index))
    request = register.example(config, index)
    two = found.answer({**request, "support": request["support"][:2], "labels": ["b", "a"]})
    assert two.classes == ["b", "a"] and len(two.scores[0]) == 2


def test_damaged_files_are_told(tmp_path, glyphs_root):
    config, index = small_config(glyphs_root, tmp_path), Index.open(glyphs_root)
    laid_out(tmp_path, config, index, build.learner(config, index))
    about, weights = tmp_path / "about.json", tmp_path / "weights"
    told, whole = json.loads(about.read_text()), weights.read_bytes()
    assert "tracking" not in told["config"] and "mirror" not in told["config"]
    for change, said in (
        ({"format": 99}, "format 99"),
        ({"sha256": "0"}, "sha256 differs"),
        ({"data": {"images": [16]}}, "no model's description"),
        ({"data": {**told["data"], "images": [16]}}, "no outline"),
        ({"data": {**told["data"], "images": [16, 16, 3]}}, "holds no weights"),
    ):
        about.write_text(json.dumps({**told, **change}))
        with pytest.raises(InputError, match=said):
            servable.opened(about, weights)
    about.write_text("{")
    with pytest.raises(InputError, match="no model's description"):
        servable.opened(about, weights)
    about.write_text(json.dumps(told))
    weights.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="sha256 differs"):
        servable.opened(about, weights)


def test_an_outline_comes_back_from_json(depth_root):
    index = Index.open(depth_root)
    told = outline(index, "train")
    again = outlined(Outline(**json.loads(json.dumps(told._asdict()))), index.root, "train")
    assert outline(again, "train")._replace(images=tuple(told.images)) == told
    assert again.modalities == index.modalities and again.channels("depth") == index.channels("depth")
