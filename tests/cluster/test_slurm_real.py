"""The same submissions in a real Slurm of four nodes on this machine; Ray and metashard are the short scripts of fake_slurm/."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import real_slurm
from drills.drilled import check_whole, config_for
from gloo import on_ranks, work_here

from cluster import slurm
from cluster.errors import SubmitError
from cluster.slurm import Slurm
from cluster.spec import SlurmSpec
from cluster.submission import Submission
from pipeline.config import dump

STEPS = 300
FAKES = Path(__file__).parent / "fake_slurm"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not real_slurm.is_installed(), reason="no Slurm here; on Debian: apt-get install slurm-wlm"),
]


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    with real_slurm.started(tmp_path_factory.mktemp("slurm")) as conf:
        yield conf


@pytest.fixture
def place(tmp_path, conf, monkeypatch):
    (tmp_path / "bin").mkdir()
    for name in ("ray", "python", "metashard"):
        (tmp_path / "bin" / name).symlink_to(FAKES / name)
    (tmp_path / "place").mkdir()
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "place"))
    monkeypatch.setenv("FAKE_PYTHON", sys.executable)
    monkeypatch.setattr(slurm, "POLL_S", 0.1)
    return tmp_path / "place"


@pytest.fixture
def target(tmp_path) -> Slurm:
    return Slurm(
        SlurmSpec(
            kind="slurm",
            nodes=2,
            cpus=1,
            time="5",
            bin=str(tmp_path / "bin"),
            working_dir=tmp_path,
            start_s=30,
            grace_s=5,
        )
    )


def submit(target: Slurm, tmp_path: Path, *command: str) -> str:
    folder = tmp_path / "a job"
    folder.mkdir(mode=0o700)
    return target.submit(Submission("maml-1", list(command), {}, folder))


def until(condition, within_s: float = 60.0):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.1)


def all_ended(place: Path, count: int = 2) -> bool:
    return len(list(place.glob("ended.*"))) == count and not list(place.glob("joined.*"))


def test_a_job_over_two_nodes(target, tmp_path, place):
    job = submit(target, tmp_path, "train", "a b.yaml")
    assert list(target.follow(job)) == ["running train a b.yaml"]
    assert target.state(job) == ("finished", 0, "")
    assert (place / "called").read_text().splitlines() == ["maml-1", "train", "a b.yaml"]
    assert all_ended(place)


def test_a_failure(target, tmp_path, place):
    job = submit(target, tmp_path, "fail")
    list(target.follow(job))
    assert target.state(job) == ("failed", 3, "")
    assert all_ended(place)


@pytest.mark.smoke
@pytest.mark.drill("Slurm: drained, queued again, goes on")
def test_a_drained_job_is_queued_again_and_goes_on(target, tmp_path, place):
    job = submit(target, tmp_path, "drain")
    log = "\n".join(target.follow(job))
    assert target.state(job) == ("finished", 0, "")
    assert log.count("running drain") == 2
    assert all_ended(place, 4)


@pytest.mark.drill("Slurm: stopped, saved, not queued again")
def test_stop_saves_and_does_not_queue_again(target, tmp_path, place):
    job = submit(target, tmp_path, "wait")
    until((place / "waits").exists)
    target.stop(job, force=False)
    assert "saved" in "\n".join(target.follow(job))
    assert target.state(job) == ("stopped", 75, "")
    assert all_ended(place)


def test_by_force_it_ends_now(target, tmp_path, place):
    job = submit(target, tmp_path, "wait")
    until((place / "waits").exists)
    target.stop(job, force=True)
    until(lambda: target.state(job).is_over)
    assert target.state(job).name == "stopped"
    until(lambda: all_ended(place))


def test_the_time_limit_drains_and_queues_again(target, tmp_path, place):
    """Slurm's clock has minutes only, so the signal is asked for as long before the limit as the job is allowed in all."""
    short = Slurm(target.spec.model_copy(update={"time": "1", "grace_s": 50}))
    job = submit(short, tmp_path, "wait")
    until(lambda: "queued again" in short.log(job), within_s=100)
    assert "running wait\nsaved\n" in short.log(job)
    assert short.state(job).name in ("queued", "running")
    short.stop(job, force=False)
    until(lambda: short.state(job).is_over)
    assert short.state(job).name == "stopped"


def test_a_job_that_waits_for_nodes_leaves_the_queue(target, tmp_path, place):
    (tmp_path / "first").mkdir()
    wide = Slurm(target.spec.model_copy(update={"nodes": 4, "cpus": 2}))
    first = submit(wide, tmp_path / "first", "wait")
    second = submit(wide, tmp_path, "train")
    until((place / "waits").exists)
    assert wide.state(second).name == "queued"
    wide.stop(second, force=False)
    until(lambda: wide.state(second).is_over)
    assert wide.state(second).name == "stopped"
    wide.stop(first, force=True)
    until(lambda: wide.state(first).is_over)


def test_preflight_and_a_refusal(target, tmp_path, place):
    checks = target.preflight()
    assert not any(check.is_failed for check in checks), checks
    wrong = Slurm(target.spec.model_copy(update={"partition": "nowhere"}))
    assert wrong.preflight()[-2].is_failed or wrong.preflight()[-1].is_failed
    with pytest.raises(SubmitError, match="^sbatch refused: .*partition[^\n]*$"):
        submit(wrong, tmp_path, "train")


def test_a_batch_script_that_is_killed_leaves_a_failed_job(target, tmp_path, place):
    job = submit(target, tmp_path, "wait")
    until((place / "waits").exists)
    found = subprocess.run(["pgrep", "-f", "slurm_script"], capture_output=True, text=True).stdout.split()
    own = [pid for pid in found if f"FAKE_SLURM={place}".encode() in Path(f"/proc/{pid}/environ").read_bytes()]
    for pid in own:
        os.kill(int(pid), signal.SIGKILL)
    until(lambda: target.state(job).is_over)
    assert target.state(job).name == "failed"
    until(lambda: not list(place.glob("joined.*")))


@pytest.fixture
def real(target, tmp_path, place, monkeypatch) -> Slurm:
    """The programs are the real ones."""
    for name in ("ray", "python", "metashard"):
        (tmp_path / "bin" / name).unlink()
        (tmp_path / "bin" / name).write_text(f'#!/bin/bash\nexec {Path(sys.executable).parent}/{name} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return Slurm(target.spec.model_copy(update={"start_s": 240, "grace_s": 60}))


@pytest.mark.ray
def test_real_ray_over_two_nodes(real, tmp_path):
    """The command joins a Ray of both nodes with the job's token, and nothing of it is left; both nodes are this machine."""
    told = (
        "import ray; ray.init(); print(sum(node['Alive'] for node in ray.nodes()), int(ray.cluster_resources()['CPU']))"
    )
    (tmp_path / "bin" / "metashard").write_text(f'#!/bin/bash\nexec {sys.executable} -c "{told}"\n')
    job = submit(real, tmp_path, "train")
    log = list(real.follow(job))
    assert real.state(job) == ("finished", 0, ""), "\n".join(log)
    assert "2 2" in log
    started = f"ms-{job.partition('@')[0]}-0"
    until(lambda: not subprocess.run(["pgrep", "-f", started], capture_output=True).stdout)
    assert not Path("/tmp", started).exists()


@pytest.mark.ray
@pytest.mark.drill("Slurm: training is told to go (USR1), saved, queued again, goes on")
def test_training_goes_on_where_its_time_was_over(real, tmp_path, glyphs_root):
    config = config_for(glyphs_root, tmp_path / "runs", meta={"steps": STEPS})
    on_ranks(2, work_here, dump(config), str(tmp_path / "unbroken"))
    (tmp_path / "run.yaml").write_text(json.dumps(dump(config)))
    job = submit(real, tmp_path, "train", str(tmp_path / "run.yaml"))
    run = tmp_path / "runs" / "maml-1"
    until((run / "checkpoints" / "step-00000020").exists, within_s=240)
    slurm.slurm("scancel", "--signal=USR1", "--batch", job.partition("@")[0])
    log = "\n".join(real.follow(job))
    assert real.state(job) == ("finished", 0, ""), log
    assert "saved and left; queued again" in log
    check_whole(run, tmp_path / "unbroken", STEPS)
