"""What is exported says what the model says, or is not written; a learner in MLflow's form needs neither us nor its data."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import small_config
from taught import DETECTION, PROTOTYPE, SEGMENTATION, TASKS, taught
from test_cli import error_of, here  # noqa: F401  the fixture
from test_combinations import kinds
from test_embed import trained

from pipeline import export, export_mlflow, register
from pipeline.data.index import Index
from pipeline.errors import InputError, RunFailed
from pipeline.schema.learner import LearnerConfig
from pipeline.teaching import adapted, portable
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.portable import difference, run_torch, save_torch, traced

MAPS = {"relation": {"model": {"kind": "conv4", "width": 4, "features": "map"}}}
NO_ONNX = {"wccn": "linalg_solve_triangular"}
"""Learners that ONNX has no operation for, and which it is."""
# The exporters use what torch and numpy will do otherwise one day.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def saved(model: Adapted, folder: Path) -> Path:
    adapted.save(model, folder / "m.safetensors")
    return folder / "m.safetensors"


def assert_exported(model: Adapted, folder: Path, *, reason: str = "") -> None:
    """Both forms, or that one of the two cannot be had and nothing of it is left."""
    place, onnx, program = saved(model, folder), folder / "out" / "m.onnx", folder / "out" / "m.pt2"
    export.export(place, program=program)
    if reason:
        with pytest.raises(RunFailed, match=reason):
            export.export(place, onnx=onnx)
        assert list(onnx.parent.iterdir()) == [program]
        return
    (found,) = export.export(place, onnx=onnx)
    assert found.difference < 1e-4 and sorted(onnx.parent.iterdir()) == [onnx, program]


@pytest.fixture(scope="module")
def model(glyphs_root, tmp_path_factory) -> Adapted:
    return taught(glyphs_root, tmp_path_factory.mktemp("model"), **PROTOTYPE)


def test_onnx_says_what_the_model_says_and_what_it_is(model, tmp_path, here):  # noqa: F811
    import onnxruntime

    done = here("export", saved(model, tmp_path), "--onnx", "a/m.onnx", "--torch", "a/m.pt2")
    assert done.returncode == 0 and "differs by" in done.stdout, done.stderr
    session = onnxruntime.InferenceSession(str(tmp_path / "a" / "m.onnx"), providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map[portable.KEY])
    assert told["classes"] == ["a", "b", "c"] and told["size"] == [16, 16, 1] and told["format"] == adapted.FORMAT
    assert told["threshold"] == model.calibration.threshold and told["temperature"] == model.calibration.temperature
    images = torch.rand(7, 1, 16, 16)
    scores, probabilities, likeness = session.run(None, {"images": images.numpy()})
    own = model.labels(images)
    assert torch.from_numpy(probabilities).argmax(1).tolist() == [
        max(range(3), key=list(each.probabilities.values()).__getitem__) for each in own
    ]
    assert likeness.tolist() == pytest.approx([each.likeness for each in own], abs=1e-5)
    assert scores.shape == (7, 3)


def test_a_program_runs_without_us(model, tmp_path):
    """Another process that knows torch alone gives the same scores."""
    (found,) = export.export(saved(model, tmp_path), program=tmp_path / "m.pt2")
    assert found.difference < 1e-4
    code = (
        "import sys, json, torch\nextra = {'metashard': ''}\nprogram = torch.export.load('m.pt2', extra_files=extra)\n"
        "scores, *_ = program.module()(torch.full((4, 1, 16, 16), 0.5))\n"
        "assert not [name for name in sys.modules if name.startswith('pipeline')]\n"
        "print(json.dumps([json.loads(extra['metashard'])['classes'], scores.tolist()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    classes, scores = json.loads(done.stdout)
    assert classes == ["a", "b", "c"]
    torch.testing.assert_close(torch.tensor(scores), model.scores(torch.full((4, 1, 16, 16), 0.5)).float())


@pytest.mark.parametrize("sections", [SEGMENTATION, DETECTION], ids=["segmentation", "detection"])
def test_other_tasks_are_traced(scenes_root, tmp_path, sections):
    model = taught(scenes_root, tmp_path, **sections)
    save_torch(traced(model), model, tmp_path / "m.pt2")
    assert difference(model, run_torch(tmp_path / "m.pt2")) < 1e-4


def test_an_exported_detector_tells_boxes(scenes_root, tmp_path):
    model = taught(scenes_root, tmp_path, **DETECTION)
    (found,) = export.export(saved(model, tmp_path), program=tmp_path / "m.pt2")
    assert found.difference < 1e-4
    scores, boxes = run_torch(tmp_path / "m.pt2")(model.support.inputs)
    assert scores.shape[0] == boxes.shape[0] and boxes.shape[1:] == (100, 6)
    least = torch.tensor(portable.about(model)["score_thresholds"])
    for told, own in zip(boxes, model.boxes(model.support.inputs), strict=True):
        kept = told[told[:, 4] >= least[told[:, 5].long()]]
        assert len(kept) == len(own)
        for row, box in zip(kept.tolist(), own, strict=True):
            assert row[:5] == pytest.approx([*box.box, box.score], abs=1e-4)
            assert model.support.classes[int(row[5])] == box.label


def test_boxes_may_come_in_another_order_and_not_be_others(scenes_root, tmp_path):
    steps = {"learner": {"kind": "gradient", "rule": {"kind": "sgd", "lr": 1.0}, "steps": 2}}
    model = taught(scenes_root, tmp_path, **{**DETECTION, **steps})
    ask = portable.Portable(model)

    def turned(images: torch.Tensor) -> list[torch.Tensor]:
        scores, boxes = ask(images)
        return [scores, boxes.flip(1)]

    assert difference(model, turned) < 1e-4
    assert difference(model, lambda images: [turned(images)[0], turned(images)[1] + 0.1]) > 0.05
    assert difference(model, lambda images: [turned(images)[0], turned(images)[1][:, :1].repeat(1, 100, 1)]) > 0.05


def test_images_are_inverted_as_the_learner_has_them(glyphs_root, tmp_path):
    model = taught(glyphs_root, tmp_path, data={"invert": True}, **PROTOTYPE)
    (found,) = export.export(saved(model, tmp_path), program=tmp_path / "m.pt2")
    assert found.difference < 1e-4


def test_what_would_say_something_else_is_not_written(model, tmp_path, monkeypatch):
    place, before = saved(model, tmp_path), tmp_path / "m.pt2"
    before.write_bytes(b"what was there")
    run = portable.run_torch

    def wrong(path: Path) -> portable.Run:
        asked = run(path)
        return lambda images: [value + 0.1 for value in asked(images)]

    monkeypatch.setattr(portable, "run_torch", wrong)
    with pytest.raises(RunFailed, match="would differ from the model by"):
        export.export(place, program=before)
    assert before.read_bytes() == b"what was there" and len(list(tmp_path.iterdir())) == 2


def test_a_difference_is_seen_whatever_it_is(model):
    def lacking(images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.full((len(images), 3), torch.nan)] * 2 + [torch.zeros(len(images))]

    assert difference(model, lacking) == torch.inf


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "nothing is to be written"),
        (["--onnx", "m.safetensors"], "two files would be one"),
        (["--torch", "."], "is a folder"),
        (["--onnx", "a", "--mlflow", "b"], "call it for each"),
    ],
)
def test_what_is_asked_wrongly_is_told(model, tmp_path, here, arguments, reason):  # noqa: F811
    assert reason in error_of(here("export", saved(model, tmp_path), *arguments))


def test_what_must_be_installed_is_told(model, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(InputError, match=r"--onnx takes onnxruntime; pip install 'metashard\[export\]'"):
        export.export(saved(model, tmp_path), onnx=tmp_path / "m.onnx")


def test_several_modalities_are_not_one_image(depth_root, tmp_path):
    data = {"size": 16, "modalities": ["image", "depth"]}
    with pytest.raises(InputError, match="takes image, depth of every sample"):
        traced(taught(depth_root, tmp_path, data=data, **PROTOTYPE))


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds(LearnerConfig))
def test_every_learner(glyphs_root, tmp_path, kind):
    model = taught(glyphs_root, tmp_path, learner={"kind": kind}, **MAPS.get(kind, {}))
    assert_exported(model, tmp_path, reason=NO_ONNX.get(kind, ""))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_task(glyphs_root, scenes_root, tmp_path, name):
    root = scenes_root if name in ("segmentation", "detection") else glyphs_root
    assert_exported(taught(root, tmp_path, **TASKS[name]), tmp_path)


MODELS = {
    "vit": {"kind": "vit", "width": 8, "depth": 1, "heads": 2, "patch": 4},
    "resnet12": {"kind": "resnet12", "width": 4},
    "conv4-pool": {"kind": "conv4", "width": 6, "downsample": "max_pool"},
    "rnn": {"kind": "rnn", "width": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model(glyphs_root, tmp_path, name):
    assert_exported(taught(glyphs_root, tmp_path, model=MODELS[name], **PROTOTYPE), tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:mlflow.*")
@pytest.mark.parametrize("is_gone", [False, True], ids=["with its data", "without"])
def test_a_learner_is_a_model_of_mlflow(glyphs_root, tmp_path, monkeypatch, here, is_gone):  # noqa: F811
    from mlflow import pyfunc

    monkeypatch.setattr(sys, "path", list(sys.path))
    root = tmp_path / "data"
    shutil.copytree(glyphs_root, root)
    path = trained(tmp_path / "runs", root, learner={"kind": "prototype"})
    asked = register.example(small_config(root, tmp_path), Index.open(root), number=1)
    if is_gone:
        shutil.rmtree(root)
    done = here("export", path, "--mlflow", "learner")
    assert done.returncode == 0 and "mlflow models serve -m learner" in done.stdout, done.stderr
    loaded = pyfunc.load_model(str(tmp_path / "learner"))
    found = loaded.predict(asked)
    assert found["classes"][0] == asked["labels"] and len(found["labels"][0]) == len(asked["queries"])
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]
    assert "is there already" in error_of(here("export", path, "--mlflow", "learner"))


@pytest.mark.parametrize("name", TASKS)
def test_an_example_can_be_made_up_for_every_task(glyphs_root, scenes_root, tmp_path, name):
    from pipeline import servable
    from pipeline.teaching.source import Source

    root = scenes_root if name in ("segmentation", "detection") else glyphs_root
    learner = taught(root, tmp_path, **TASKS[name]).learner
    found = Source(learner.config, learner.told, learner.learner.state_dict(), {"from": "", "step": 0})
    answer = servable.Servable(learner).answer(export_mlflow.made_up(found))
    assert list(answer.classes) == ["a", "b"]
