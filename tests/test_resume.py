"""Law 3 without Ray: a run that was cut off anywhere and goes on ends with the same bits."""

import json
import shutil

import pytest
import torch
from gloo import on_ranks, work_here
from safetensors.torch import load_file
from small import small_config

from pipeline import checkpoint
from pipeline.config import dump
from pipeline.errors import InputError
from pipeline.run_folder import new_run, resumed_run
from pipeline.schema.run import RunConfig
from pipeline.spool import history

DEVICE = torch.device("cpu")


def final(run) -> dict[str, torch.Tensor]:
    # Cloned: what load_file gives is mapped from the file, which a test may change.
    found = load_file(checkpoint.all_in(run / "checkpoints")[-1] / "learner.safetensors")
    return {name: tensor.clone() for name, tensor in found.items()}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def cut_off_after(run, step: int, copy) -> None:
    """A copy of the run as a kill after the checkpoint of `step` leaves it, with a half-written one beside it."""
    shutil.copytree(run, copy)
    for path in checkpoint.all_in(copy / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            (path / "COMPLETE").unlink()
            path.rename(path.with_name(f".{path.name}.partial"))


LEARNERS = {
    "maml": {"kind": "gradient", "rule": {"kind": "sgd", "lr": 0.1}, "steps": 1},
    "prototypes": {"kind": "prototype"},
}


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("step", [0, 4])
def test_one_worker_ends_with_the_same_bits(tmp_path, glyphs_root, name, step):
    config = small_config(glyphs_root, tmp_path, learner=LEARNERS[name], checkpoint={"every": 2, "keep": 9})
    work_here(dump(config), str(tmp_path / "unbroken"))
    cut_off_after(tmp_path / "unbroken", step, tmp_path / "broken")
    work_here(dump(config), str(tmp_path / "broken"))
    assert same_bits(final(tmp_path / "unbroken"), final(tmp_path / "broken"))
    series = history(tmp_path / "broken").series["train/loss"]
    assert series == history(tmp_path / "unbroken").series["train/loss"] and list(series) == [1, 2, 3, 4, 5, 6]


def test_what_is_drawn_inside_episodes_is_drawn_again(tmp_path, glyphs_root):
    model = {"kind": "resnet12", "width": 4, "drop": 0.2}
    config = small_config(
        glyphs_root, tmp_path, model=model, learner=LEARNERS["prototypes"], checkpoint={"every": 2, "keep": 9}
    )
    work_here(dump(config), str(tmp_path / "unbroken"))
    cut_off_after(tmp_path / "unbroken", 2, tmp_path / "broken")
    work_here(dump(config), str(tmp_path / "broken"))
    assert same_bits(final(tmp_path / "unbroken"), final(tmp_path / "broken"))


def test_three_workers_end_with_the_same_bits(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path, learner=LEARNERS["prototypes"], checkpoint={"every": 2, "keep": 9})
    on_ranks(3, work_here, dump(config), str(tmp_path / "unbroken"))
    cut_off_after(tmp_path / "unbroken", 2, tmp_path / "broken")
    on_ranks(3, work_here, dump(config), str(tmp_path / "broken"))
    assert same_bits(final(tmp_path / "unbroken"), final(tmp_path / "broken"))


def test_another_number_of_workers_sees_the_same_episodes(tmp_path, glyphs_root):
    """In float64, within 1e-8."""
    config = small_config(glyphs_root, tmp_path, meta={"precision": "float64"}, checkpoint={"every": 2, "keep": 9})
    work_here(dump(config), str(tmp_path / "one"))
    cut_off_after(tmp_path / "one", 2, tmp_path / "then-two")
    on_ranks(2, work_here, dump(config), str(tmp_path / "then-two"))
    one, two = final(tmp_path / "one"), final(tmp_path / "then-two")
    assert all(torch.allclose(one[name], two[name], rtol=1e-8, atol=1e-10) for name in one)


def test_what_was_measured_is_not_measured_again(tmp_path, glyphs_root, monkeypatch):
    config = small_config(glyphs_root, tmp_path, engine={"mode": "auto"}, checkpoint={"every": 2, "keep": 9})
    work_here(dump(config), str(tmp_path / "run"))
    cut_off_after(tmp_path / "run", 2, tmp_path / "broken")

    def never(*_):
        raise AssertionError("a resume must not measure")

    monkeypatch.setattr("pipeline.plans.measure", never)
    work_here(dump(config), str(tmp_path / "broken"))
    assert same_bits(final(tmp_path / "run"), final(tmp_path / "broken"))


@pytest.mark.drill("damaged newest checkpoint, resumed from the one before")
def test_a_damaged_newest_checkpoint_falls_back_to_the_last_good_one(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path, checkpoint={"every": 2, "keep": 9})
    run = tmp_path / "run"
    work_here(dump(config), str(run))
    unbroken = final(run)
    newest = checkpoint.all_in(run / "checkpoints")[-1] / "learner.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\xff")
    assert "sha256 differs" in checkpoint.faults(run / "checkpoints")[0]
    work_here(dump(config), str(run))
    assert same_bits(final(run), unbroken)


def test_resuming_with_another_config_shows_the_difference(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path)
    run = new_run(config)
    other = small_config(glyphs_root, tmp_path, meta={"batch": 6}, workers={"count": 2})
    with pytest.raises(InputError, match=r"meta\.batch: 4 -> 6") as caught:
        resumed_run(other, run)
    assert "workers" not in str(caught.value)
    resumed_run(small_config(glyphs_root, tmp_path, workers={"count": 2}), run)


def test_resuming_what_is_no_run_is_an_input_error(tmp_path, glyphs_root):
    with pytest.raises(InputError, match="not a run's folder"):
        resumed_run(small_config(glyphs_root, tmp_path), tmp_path / "nothing")


def test_old_checkpoints_go_and_the_best_stays(tmp_path, glyphs_root):
    config = small_config(
        glyphs_root, tmp_path, meta={"steps": 12}, checkpoint={"every": 2, "keep": 2}, validation={"every": 4}
    )
    work_here(dump(config), str(tmp_path / "run"))
    kept = [path.name for path in checkpoint.all_in(tmp_path / "run" / "checkpoints")]
    best = f"step-{checkpoint.latest(tmp_path / 'run' / 'checkpoints').state['best_step']:08d}"
    assert kept[-2:] == ["step-00000010", "step-00000012"] and set(kept) == {*kept[-2:], best}


def test_patience_ends_a_run(tmp_path, glyphs_root):
    """A rate too small to change any prediction: no validation after the first is better."""
    config: RunConfig = small_config(
        glyphs_root,
        tmp_path,
        meta={"steps": 50, "optimizer": {"kind": "adam", "lr": 1e-30}},
        validation={"every": 2, "patience": 2},
    )
    work_here(dump(config), str(tmp_path / "run"))
    newest = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert newest.step == 6 and newest.state["best_step"] == 2 and "2" in newest.state["stopped"]


def test_the_checkpoint_holds_the_resolved_config(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path)
    work_here(dump(config), str(tmp_path / "run"))
    newest = checkpoint.all_in(tmp_path / "run" / "checkpoints")[-1]
    assert json.loads((newest / "config.json").read_text()) == dump(config)
