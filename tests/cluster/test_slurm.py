"""Submitting to Slurm, with Slurm's commands, Ray and metashard played by the short scripts of fake_slurm/."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import slurm
from cluster.errors import SubmitError
from cluster.slurm import Slurm, script
from cluster.spec import SlurmSpec, load, parse
from cluster.submission import Submission

FAKES = Path(__file__).parent / "fake_slurm"
GOLDEN = Path(__file__).parent / "golden" / "slurm.sh"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the fakes keep their state; what still runs at the end is ended."""
    place = tmp_path / "slurm"
    place.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(place))
    monkeypatch.setenv("FAKE_PYTHON", sys.executable)
    monkeypatch.setenv("PATH", f"{FAKES}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "POLL_S", 0.02)
    yield place
    pids = place / "pids"
    for pid in pids.read_text().split() if pids.exists() else []:
        try:
            os.killpg(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.fixture
def spec(tmp_path) -> SlurmSpec:
    return SlurmSpec(kind="slurm", nodes=2, working_dir=tmp_path, start_s=20, temp_dir="/tmp")


def submission(folder: Path, *command: str, spec: SlurmSpec | None = None) -> Submission:
    folder.mkdir(mode=0o700, exist_ok=True)
    return Submission("maml-1", list(command), spec.model_dump(mode="json") if spec else {}, folder)


def until(condition, within_s: float = 20.0):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.02)


def nothing_left(place: Path) -> bool:
    return not list(place.glob("joined.*"))


def run(spec, tmp_path, *command) -> tuple[Slurm, str, str]:
    target = Slurm(spec)
    job = target.submit(submission(tmp_path / "job", *command))
    return target, job, "\n".join(target.follow(job))


def test_the_script_is_the_golden_one():
    """`METASHARD_GOLDEN=write` writes it anew."""
    spec = SlurmSpec(
        kind="slurm", nodes=4, cpus=16, gpus=2, gpu_type="a100", memory="64G", time="1-12:00:00", partition="gpu",
        account="vision", options=("--constraint=ib",), setup=("module load cuda/12",), bin="/shared/env/bin",
        working_dir=Path("/shared/project"), interface="ib0", env={"NCCL_DEBUG": "WARN"}, mlflow="https://mlflow.lab",
    )  # fmt: skip
    made = script(
        Submission("maml-1", ["train", "a b.yaml", "name=$HOME; x"], spec.model_dump(), Path("/shared/jobs/maml-1")),
        spec,
    )
    if os.environ.get("METASHARD_GOLDEN") == "write":
        GOLDEN.write_text(made)
    assert made == GOLDEN.read_text()


def test_the_golden_script_is_one_that_bash_can_read():
    assert not subprocess.run(["bash", "-n", GOLDEN], capture_output=True, text=True).stderr


def test_every_word_arrives_as_it_is(spec, tmp_path, place):
    words = ["train", "a b.yaml", "x=$HOME", "y=`id`; rm -rf /", "it's", 'a"b', "*"]
    target, job, _ = run(spec, tmp_path, *words)
    assert target.state(job) == ("finished", 0, "")
    assert (place / "called").read_text().splitlines() == ["maml-1", *words]


def test_a_finished_job(spec, tmp_path, place):
    target, job, log = run(spec, tmp_path, "train")
    assert job == f"7@{tmp_path / 'job'}"
    assert log.splitlines() == ["running train"] == target.log(job).splitlines()
    assert (tmp_path / "job" / "token").stat().st_mode & 0o777 == 0o600
    assert len(list(place.glob("ended.*"))) == 2 and nothing_left(place)
    assert (tmp_path / "job" / "token").read_text() not in (tmp_path / "job" / "slurm.sh").read_text()


def test_a_failed_job_gives_its_code(spec, tmp_path, place):
    target, job, _ = run(spec, tmp_path, "fail")
    assert target.state(job) == ("failed", 3, "")
    assert nothing_left(place)


def test_a_drained_job_is_queued_again_and_goes_on(spec, tmp_path, place):
    target, job, log = run(spec, tmp_path, "drain")
    assert target.state(job) == ("finished", 0, "")
    assert (place / "requeues").read_text().splitlines() == ["requeued"]
    assert log.count("running drain") == 2 and "queued again" in log
    assert nothing_left(place)


@pytest.mark.parametrize(("refused", "requeues"), [("1", 100), ("", 0)])
def test_a_drained_job_that_is_not_queued_again_leaves_its_code(refused, requeues, spec, tmp_path, place, monkeypatch):
    monkeypatch.setenv("FAKE_NO_REQUEUE", refused)
    target, job, log = run(spec.model_copy(update={"requeues": requeues}), tmp_path, "drain")
    assert target.state(job) == ("failed", 75, "")
    assert "metashard resume maml-1" in log and log.count("running drain") == 1


def test_a_job_that_is_stopped_saves_and_is_not_queued_again(spec, tmp_path, place):
    target = Slurm(spec)
    job = target.submit(submission(tmp_path / "job", "wait"))
    until((place / "waits").exists)
    assert target.state(job).name == "running"
    target.stop(job, force=False)
    until(lambda: target.state(job).is_over)
    assert target.state(job) == ("stopped", 75, "")
    assert "saved" in target.log(job)
    assert not (place / "requeues").exists() and nothing_left(place)


def test_the_signal_before_the_time_limit_saves_and_queues_again(spec, tmp_path, place):
    target = Slurm(spec)
    job = target.submit(submission(tmp_path / "job", "wait"))
    until((place / "waits").exists)
    os.kill(int((place / "pid").read_text()), signal.SIGUSR1)
    until((place / "requeues").exists)
    until(lambda: "running wait" in target.log(job).partition("queued again")[2])
    target.stop(job, force=False)
    until(lambda: target.state(job).is_over)
    assert target.state(job).name == "stopped"


def test_a_job_that_is_stopped_while_ray_starts_leaves_at_once(spec, tmp_path, place, monkeypatch):
    monkeypatch.setenv("FAKE_NEVER_JOINS", "1")
    target = Slurm(spec)
    job = target.submit(submission(tmp_path / "job", "train"))
    until(lambda: list(place.glob("joined.*")))
    target.stop(job, force=False)
    until(lambda: target.state(job).is_over)
    assert target.state(job) == ("stopped", 75, "")
    assert not (place / "called").exists() and nothing_left(place)


def test_by_force_it_ends_now(spec, tmp_path, place):
    target = Slurm(spec)
    job = target.submit(submission(tmp_path / "job", "wait"))
    until((place / "waits").exists)
    target.stop(job, force=True)
    assert target.state(job).name == "stopped"
    assert "scancel 7" in (place / "calls").read_text()


def test_a_node_that_never_joins_ends_the_job_at_the_deadline(spec, tmp_path, place, monkeypatch):
    monkeypatch.setenv("FAKE_NEVER_JOINS", "1")
    target, job, log = run(spec.model_copy(update={"start_s": 2}), tmp_path, "train")
    assert target.state(job) == ("failed", 1, "")
    assert "1 of 2 nodes have joined" in log
    assert "ray: cannot join" in log
    assert not (place / "called").exists() and nothing_left(place)


def test_a_setup_line_that_fails_ends_the_job(spec, tmp_path, place):
    target, job, log = run(spec.model_copy(update={"setup": ("true # fine", "ls /nowhere")}), tmp_path, "train")
    assert target.state(job).code == 1
    assert "a line of setup failed" in log
    assert not (place / "called").exists()


def test_a_queued_job_is_cancelled(spec, tmp_path, place, monkeypatch):
    monkeypatch.setenv("FAKE_PENDING", "1")
    monkeypatch.setenv("FAKE_REASON", "Resources")
    target = Slurm(spec)
    job = target.submit(submission(tmp_path / "job", "train"))
    assert target.state(job) == ("queued", None, "PENDING (Resources)")
    target.stop(job, force=False)
    assert target.state(job).name == "stopped"
    assert list(target.follow(job)) == []


@pytest.mark.parametrize(
    ("told", "name", "code"),
    [("TIMEOUT", "failed", 1), ("OUT_OF_MEMORY", "failed", 1), ("NODE_FAIL", "failed", 1), ("COMPLETED", "finished", 0),
     ("CANCELLED", "stopped", None), ("COMPLETING", "running", None), ("REQUEUE_HOLD", "queued", None)],
)  # fmt: skip
def test_what_slurm_says_where_the_script_left_no_code(spec, tmp_path, place, told, name, code):
    (place / "state").write_text(told)
    assert Slurm(spec).state(f"7@{tmp_path}")[:2] == (name, code)


def test_a_job_that_slurm_forgot_is_lost(spec, tmp_path, place):
    assert Slurm(spec).state(f"7@{tmp_path}").name == "lost"


def test_a_refusal_is_passed_on_in_one_line(spec, tmp_path, place, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSAL", "Batch job submission failed: Invalid account or partition\n  combination")
    with pytest.raises(SubmitError, match="^sbatch refused: Batch job .* Invalid account or partition combination$"):
        Slurm(spec).submit(submission(tmp_path / "job", "train"))
    assert [check.is_failed for check in Slurm(spec).preflight()] == [False, True]


def test_without_slurm_it_says_where_to_go(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SubmitError, match="login node"):
        Slurm(spec).submit(submission(tmp_path / "job", "train"))


def test_preflight_asks_slurm_whether_it_could_run(spec, place):
    checks = Slurm(spec).preflight()
    assert not any(check.is_failed for check in checks)
    assert "n[1-2]" in checks[1].found
    missing = Slurm(spec.model_copy(update={"bin": "/nowhere"})).preflight()
    assert missing[-1].is_failed


@pytest.mark.parametrize(
    ("key", "value"),
    [("time", "tomorrow"), ("memory", "64 GB"), ("setup", ["a\nb"]), ("options", ["-p x"]), ("partition", "a\n#SBATCH"),
     ("temp_dir", "/a/very/long/path/for/sockets"), ("nodes", 0), ("env", {"AWS_SECRET_ACCESS_KEY": "x"})],
)  # fmt: skip
def test_wrong_values_are_refused(key, value):
    with pytest.raises(SubmitError, match=key):
        parse({"kind": "slurm", key: value}, "x.yaml")


def test_the_example_is_right():
    spec = load(ROOT / "configs" / "cluster" / "slurm.yaml")
    assert isinstance(spec, SlurmSpec)
    assert shlex.split(Slurm(spec).plan(Submission("x", ["train"], {}, Path("/x"))), comments=True)
