"""The sceptic's rows from end to end: supervised runs that resume, runs of no steps, fine-tuning, RFS, Baseline++."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from gloo import on_ranks, work_here
from safetensors.torch import load_file
from small import small_config

from pipeline import build, checkpoint, conclude, evaluate, report, restore
from pipeline.config import dump
from pipeline.data.index import Index
from pipeline.errors import InputError
from pipeline.judging import score
from pipeline.learners.learner import Mode
from pipeline.spool import history
from pipeline.train import check

SUPERVISED = {"kind": "supervised", "samples": 12, "window": 50}
MODEL = {"width": 16, "downsample": "max_pool"}


def final(run: Path) -> dict[str, torch.Tensor]:
    found = load_file(checkpoint.all_in(run / "checkpoints")[-1] / "learner.safetensors")
    return {name: tensor.clone() for name, tensor in found.items()}


def cut_off_after(run: Path, step: int, copy: Path) -> Path:
    shutil.copytree(run, copy)
    for path in checkpoint.all_in(copy / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return copy


@pytest.fixture(scope="module")
def trained(tmp_path_factory, glyphs_root) -> Path:
    """A supervised run that is long enough to be worth something."""
    place = tmp_path_factory.mktemp("supervised")
    config = small_config(
        glyphs_root,
        place,
        learner={"kind": "supervised", "samples": 32, "head": {"kind": "cosine"}},
        model=MODEL,
        meta={"steps": 80, "batch": 2, "optimizer": {"kind": "adam", "lr": 0.01}},
        validation={"every": 80, "episodes": 4},
        checkpoint={"every": 80},
    )
    work_here(dump(config), str(place / "run"))
    return place / "run"


def accuracy(run: Path, *, is_trained: bool = True, episodes: int = 60) -> float:
    subject = restore.subject_of(checkpoint.best(run))
    subject = subject if is_trained else subject._replace(checkpoint="")
    _, rows = evaluate.measure(subject, split="test", episodes=episodes, workers=1, modes=(Mode.INDUCTIVE,))
    return score([row[Mode.INDUCTIVE].metrics["accuracy"] for row in rows]).mean


@pytest.mark.parametrize(("rotations", "step"), [(False, 0), (True, 4)])
def test_a_supervised_run_resumes_to_the_same_bits(tmp_path, glyphs_root, rotations, step):
    config = small_config(
        glyphs_root, tmp_path, learner=SUPERVISED, data={"rotations": rotations}, checkpoint={"every": 2, "keep": 9}
    )
    work_here(dump(config), str(tmp_path / "unbroken"))
    broken = cut_off_after(tmp_path / "unbroken", step, tmp_path / "broken")
    work_here(dump(config), str(broken))
    one, two = final(tmp_path / "unbroken"), final(broken)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["head.weight"].shape == (36 * (4 if rotations else 1), 6)
    assert history(broken).series["train/loss"] == history(tmp_path / "unbroken").series["train/loss"]


def test_any_number_of_workers_streams_the_same_run(tmp_path, glyphs_root):
    """In float64, within 1e-8: three workers share four parts unevenly."""
    config = dump(small_config(glyphs_root, tmp_path, learner=SUPERVISED, meta={"precision": "float64"}))
    work_here(config, str(tmp_path / "one"))
    on_ranks(3, work_here, config, str(tmp_path / "three"))
    one, three = final(tmp_path / "one"), final(tmp_path / "three")
    assert all(torch.allclose(one[name], three[name], rtol=1e-8, atol=1e-10) for name in one)


def test_supervised_training_learns_base_classes_and_helps_on_new_ones(trained):
    series = history(trained).series
    losses, hits = list(series["train/loss"].values()), list(series["train/accuracy"].values())
    assert losses[-1] < losses[0] / 2 and hits[-1] > 0.5 > hits[0]
    assert accuracy(trained) > accuracy(trained, is_trained=False) + 0.1


BASELINES = {
    "centroids": {"kind": "prototype"},
    "rfs": {"kind": "logistic", "normalise": True},
    "ridge": {"kind": "ridge", "normalise": True},
    "fine-tune": {
        "kind": "gradient",
        "initial": {"kind": "fresh"},
        "adapts": r"head\..*",
        "steps": 8,
        "rule": {"kind": "sgd", "lr": 0.1},
        "statistics": "start",
    },
    "fine-tune-all": {"kind": "gradient", "initial": {"kind": "fresh"}, "steps": 5, "statistics": "start"},
    "baseline++": {
        "kind": "gradient",
        "head": {"kind": "cosine"},
        "initial": {"kind": "fresh"},
        "adapts": r"head\.weight",
        "steps": 4,
        "statistics": "start",
    },
}


@pytest.mark.parametrize("name", BASELINES)
def test_a_run_of_no_steps_evaluates_what_it_starts_from(tmp_path, glyphs_root, trained, name):
    """In 4 ways, though the gradient learners were built for 3."""
    config = small_config(
        glyphs_root,
        tmp_path,
        learner=BASELINES[name],
        model=MODEL,
        meta={"steps": 0},
        start=str(trained),
        evaluate={"ways": 4},
    )
    check(config)
    run = tmp_path / "run"
    work_here(dump(config), str(run))
    (only,) = checkpoint.all_in(run / "checkpoints")
    saved = checkpoint.load(only)
    assert only.name == "step-00000000" and saved.step == 0
    encoder = [n for n in saved.learner if n.startswith("model.encoder.")]
    assert encoder and all(torch.equal(saved.learner[n], final(trained)[n]) for n in encoder)
    assert accuracy(run, episodes=30) > 0.25 + 0.15


def test_no_pre_training_is_a_run_of_no_steps_from_random_values(tmp_path, glyphs_root):
    """All of its results are there; nothing of losses is drawn or told."""
    config = small_config(glyphs_root, tmp_path, meta={"steps": 0}, engine={"mode": "auto"})
    run = tmp_path / "run"
    work_here(dump(config), str(run))
    assert not (tmp_path / "plans").exists()
    result = conclude.conclude(run, config, Index.open(glyphs_root), build.learner)
    assert result["test"]["step"] == 0 and result["checkpoint"] == "step-00000000"
    assert {k: v for k, v in result["test"].items() if k != "step"} == {
        k: v for k, v in result["untrained"].items() if k != "step"
    }
    names = {"episode-best", "episode-median", "episode-worst", "adaptation", "confusion"}
    assert {path.stem for path in (run / "pictures").glob("*.png")} == names
    assert "test/inductive/accuracy" in history(run).series and "train/loss" not in history(run).series
    assert json.loads((run / "result.json").read_text()) == result
    (row,) = report.runs(tmp_path)
    assert (row.steps, row.test) == (0, result["test"]["inductive"]["accuracy"]["mean"])


def test_a_run_of_no_steps_stays_finished(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path, meta={"steps": 0})
    for _ in range(2):
        work_here(dump(config), str(tmp_path / "run"))
    assert len(checkpoint.all_in(tmp_path / "run" / "checkpoints")) == 1


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"data": {"train": "nope"}}, "has no split 'nope'; it has test, train, val"),
        ({"data": {"lanes": 3}}, "data.lanes = 3 is more than the 1 shards"),
        ({"workers": {"count": 9}}, "meta.batch = 4 is smaller than workers.count = 9"),
        ({"model": {"features": "map"}}, "gives no vectors for learner.kind = supervised"),
    ],
)
def test_a_supervised_run_that_cannot_be_is_refused_before_it_starts(tmp_path, glyphs_root, sections, told):
    with pytest.raises(InputError, match=told):
        check(small_config(glyphs_root, tmp_path, learner=SUPERVISED, **sections))


def test_training_episodes_need_not_fit_a_supervised_run(tmp_path, glyphs_root):
    """The classes of the training split have 12 images each; a validation episode takes what evaluate says."""
    config = small_config(glyphs_root, tmp_path, learner=SUPERVISED, data={"shots": 50}, evaluate={"shots": 1})
    assert check(config).root == glyphs_root
