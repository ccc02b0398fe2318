"""A run's folder through an actor: what is told, kept and asked there is what a worker beside it would find."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from pipeline import checkpoint, failures
from pipeline.archive import STOP_FILE, Archive, Folder
from pipeline.checkpoint import Checkpoint
from pipeline.distant import beside_driver
from pipeline.errors import InputError
from pipeline.failures import Failure
from pipeline.spool import FILE, history

LIMIT_S = 60


def made(step: int) -> Checkpoint:
    state = {"step": torch.tensor(float(step)), "exp_avg": torch.full((3,), 0.1)}
    optimizer = {"state": {0: state}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return Checkpoint(step, {"w": torch.full((3,), float(step))}, optimizer, {"best_step": step}, {"name": "x"})


def used(archive: Archive, run: Path) -> None:
    """Everything that a worker does there."""
    archive.open()
    assert archive.newest() is None and archive.stubborn() == "" and archive.plan("p") == ""
    for step in range(1, 5):
        archive.metrics(step, {"train/loss": 1 / step})
        archive.save(made(step), (1,), keep=1)
        # A checkpoint that is there has its metrics with it.
        assert list(history(run).series["train/loss"])[-1] == step
    archive.tags({"note": "x"})
    archive.trace("trace-step-00000002.json", b"{}")
    assert archive.newest() == 4 and archive.load(1).learner["w"].tolist() == [1, 1, 1]
    assert (
        archive.load(4).optimizer["state"][0]["exp_avg"].tolist() == made(4).optimizer["state"][0]["exp_avg"].tolist()
    )
    assert checkpoint.decoded(archive.files(4), run).step == 4
    with pytest.raises(InputError, match="not a complete checkpoint"):
        archive.load(3)
    for _ in range(2):
        archive.note(Failure(3, 1, "ValueError: x"))
    assert "meta-step 4 failed 2 times" in archive.stubborn()
    archive.say(1, "7 computing\nstacks")
    assert archive.heard(3) == ["", "7 computing", ""]
    archive.say(1, "")
    assert archive.heard(3) == ["", "", ""]
    archive.keep_plan("p", "[1]")
    assert archive.plan("p") == "[1]"
    assert not archive.stop_asked()
    (run / STOP_FILE).touch()
    limit = time.monotonic() + LIMIT_S
    while not archive.stop_asked():
        assert time.monotonic() < limit
    assert not (run / "checkpoints" / "step-00000002").exists()


def test_a_folder_of_this_machine(tmp_path):
    (tmp_path / "run").mkdir()
    with Folder(tmp_path / "run") as archive:
        used(archive, tmp_path / "run")
    assert history(tmp_path / "run").tags["note"] == "x"


@pytest.mark.ray
def test_a_folder_of_the_drivers_machine(cluster, tmp_path):
    (tmp_path / "run").mkdir()
    with beside_driver(tmp_path / "run") as archive:
        used(archive, tmp_path / "run")
    assert history(tmp_path / "run").tags["note"] == "x"
    psutil.wait_procs(keepers(), timeout=LIMIT_S)
    assert not keepers()


@pytest.mark.ray
@pytest.mark.drill("SIGKILL of the process that keeps the run's folder for the workers")
def test_what_keeps_the_folder_dies(cluster, tmp_path):
    """It comes back, goes on with the same spool, and nothing that was told is lost or there twice."""
    with beside_driver(tmp_path) as archive:
        archive.open()
        for step in range(1, 41):
            archive.metrics(step, {"train/loss": 1.0})
            if step == 20:
                (keeper,) = keepers()
                os.kill(keeper.pid, signal.SIGKILL)
        archive.save(made(40), (), keep=1)
        assert archive.newest() == 40
    assert list(history(tmp_path).series["train/loss"]) == list(range(1, 41))
    assert (tmp_path / FILE).read_text().count('"kind":"run"') == 1


@pytest.mark.ray
def test_its_errors_are_those_of_the_folder(cluster, tmp_path):
    (tmp_path / "checkpoints").touch()
    with beside_driver(tmp_path) as archive:
        with pytest.raises(OSError, match="step-00000001 cannot be written: .*; make room, then resume"):
            archive.save(made(1), (), keep=1)
        (tmp_path / failures.FILE).mkdir()
        with pytest.raises(IsADirectoryError):
            archive.note(Failure(1, 0, "x"))


def keepers() -> list[psutil.Process]:
    """The processes that keep a folder for others."""
    return [p for p in psutil.process_iter(["cmdline"]) if "ray::Keeper" in " ".join(p.info["cmdline"] or [])]
