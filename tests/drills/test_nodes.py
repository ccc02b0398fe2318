"""Drills on several Ray nodes: processes are killed and frozen, and the run ends as if nothing had been."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from drills.drilled import EVERY, LIMIT_S, ROOT, STEPS, Submitted, check_whole, config_for, until
from gloo import on_ranks, work_here

from cluster.supervise import binary, end, free_port
from pipeline import checkpoint, failures
from pipeline.config import dump
from pipeline.spool import history

pytestmark = pytest.mark.ray
MANY = 600
LONG = 2 * MANY
"""Meta-steps that are not over before a notice has come, on a fast machine too."""


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory, glyphs_root) -> Path:
    """The same run by two plain processes."""
    runs = tmp_path_factory.mktemp("unbroken")
    on_ranks(2, work_here, dump(config_for(glyphs_root, runs)), str(runs / "run"))
    return runs / "run"


@pytest.fixture(scope="session")
def long_unbroken(tmp_path_factory, glyphs_root) -> Path:
    """As `unbroken`, for drills that take longer than those few meta-steps."""
    runs = tmp_path_factory.mktemp("unbroken")
    on_ranks(2, work_here, dump(config_for(glyphs_root, runs, meta={"steps": LONG})), str(runs / "run"))
    return runs / "run"


@pytest.fixture
def submitted(tmp_path, glyphs_root):
    """Makes a submission, and afterwards sees that nothing of it is left."""
    made = []

    def make(*, nodes: int = 3, **sections) -> Submitted:
        made.append(Submitted(tmp_path, config_for(glyphs_root, tmp_path / "runs", **sections), nodes=nodes))
        return made[-1]

    yield make
    for one in made:
        family = one.family() if psutil.pid_exists(one.state().get("pid", 0)) else []
        one.end()
        psutil.wait_procs(family, timeout=10)


def started(drill: Submitted, step: int = 2 * EVERY) -> Submitted:
    """Submitted, and in the middle of training."""
    assert drill.submit("--detach").returncode == 0
    until(lambda: drill.reached(step) or drill.state()["name"] != "running", f"meta-step {step}")
    assert drill.reached(step), drill.log()
    return drill


def lost_steps(drill: Submitted, reached: int) -> int:
    """Meta-steps that were done again."""
    return reached - checkpoint.latest(drill.run / "checkpoints").step


@pytest.mark.slow
@pytest.mark.drill("SIGTERM: saved, left with 75, resumed")
def test_a_stopped_run_saves_and_goes_on(submitted, unbroken):
    drill = started(submitted(nodes=2))
    stopped = drill.call("stop", "drill")
    assert "stopped (exit code 75: saved, can go on)" in stopped.stdout, stopped.stderr + drill.log()
    done = drill.call("resume", "drill")
    assert done.returncode == 0, done.stderr + drill.log()
    check_drill(drill, unbroken)


@pytest.mark.drill("SIGKILL of the raylet of a node with a worker")
def test_a_node_dies(submitted, unbroken, record_property):
    drill = started(submitted())
    (raylet,) = [p for p in drill.family("raylet/raylet") if _has_worker(p) and "--head" not in p.cmdline()][:1]
    raylet.kill()  # its workers with it
    record_property("recovery_s", drill.recovery_s())
    assert drill.until_over() == "finished", drill.log()
    check_drill(drill, unbroken)


@pytest.mark.slow
@pytest.mark.drill("SIGSTOP of a worker: the others end the group")
def test_a_worker_is_frozen(submitted, unbroken, record_property):
    drill = started(submitted(nodes=2, workers={"count": 2, "threads": 1, "step_timeout_s": 10}))
    frozen = drill.workers()[0]
    frozen.send_signal(signal.SIGSTOP)
    record_property("recovery_s", drill.recovery_s())
    assert drill.until_over() == "finished", drill.log()
    (said,) = {failure.said for failure in failures.since_start(drill.run)}
    assert "nothing moved for 10 s" in said and "says nothing, as one that is frozen" in said
    check_drill(drill, unbroken)


@pytest.mark.slow
@pytest.mark.drill("SIGKILL of a worker")
def test_a_worker_dies(submitted, unbroken, record_property):
    drill = started(submitted(nodes=2))
    drill.workers()[0].kill()
    record_property("recovery_s", drill.recovery_s())
    assert drill.until_over() == "finished", drill.log()
    check_drill(drill, unbroken)


@pytest.mark.slow
@pytest.mark.drill("SIGKILL, resumed")
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("bin/metashard", "train"), id="the driver"),
        pytest.param(("gcs_server",), id="the head: a new cluster, the same storage"),
    ],
)
def test_what_there_is_once_dies(words, submitted, unbroken):
    drill = started(submitted(nodes=2))
    (process,) = drill.family(*words)
    process.kill()
    assert drill.until_over() == "failed", drill.log()
    assert drill.call("resume", "drill").returncode == 0, drill.log()
    check_drill(drill, unbroken)


@pytest.mark.slow
@pytest.mark.drill("SIGKILL of the process that keeps a local submission: nothing is left, resumed")
def test_the_keeper_dies(submitted, unbroken):
    drill = started(submitted(nodes=2))
    family = drill.family()
    drill.keeper().kill()
    _, left = psutil.wait_procs(family, timeout=LIMIT_S)
    assert not left, [process.cmdline() for process in left]
    assert "lost" in drill.call("status", "drill").stdout
    place = Path("/tmp", (drill.place / ".metashard/drill/attempt-1/place").read_text())
    assert place.exists()
    assert drill.call("resume", "drill").returncode == 0, drill.log()
    assert not place.exists()
    check_drill(drill, unbroken)


@pytest.mark.slow
@pytest.mark.drill("SIGKILL of one worker too many, resumed")
def test_workers_die_until_ray_gives_up(submitted, unbroken):
    drill = started(submitted(nodes=2, workers={"count": 2, "threads": 1, "max_failures": 1}))
    drill.workers()[0].kill()
    drill.recovery_s()
    drill.workers()[0].kill()
    assert drill.until_over() == "failed", drill.log()
    assert drill.call("resume", "drill").returncode == 0, drill.log()
    check_drill(drill, unbroken)


@pytest.mark.slow
def test_a_second_driver_is_refused(submitted, unbroken):
    drill = started(submitted(nodes=2))
    second = drill.call("train", str(drill.place / "run.yaml"), "--run", "drill", "workers.ray=auto", "workers.count=1")
    assert second.returncode == 2 and "is being trained by another process" in second.stderr
    assert drill.until_over() == "finished", drill.log()
    check_drill(drill, unbroken)


@pytest.mark.slow
@pytest.mark.drill("a node joins late")
def test_a_node_joins_late(submitted, unbroken):
    drill = submitted(nodes=1)
    assert drill.submit("--detach").returncode == 0
    until(lambda: drill.family("bin/metashard", "train"), "the driver")
    time.sleep(5)
    joined = _join(drill)
    try:
        assert drill.until_over() == "finished", drill.log()
    finally:
        joined.terminate()
        joined.wait()
    check_drill(drill, unbroken)


@pytest.mark.slow
@pytest.mark.drill("a node is taken away with notice: saved at once, goes on elsewhere")
def test_a_node_is_drained(submitted, long_unbroken):
    drill = submitted(nodes=3, meta={"steps": LONG}, checkpoint={"every": LONG, "keep": 99}, validation={"every": LONG})
    assert drill.submit("--detach").returncode == 0
    until(lambda: drill.told() > 2 * EVERY, "the middle of training")
    (raylet,) = [p for p in drill.family("raylet/raylet") if _has_worker(p) and "--head" not in p.cmdline()][:1]
    _drain(drill, raylet)
    until(lambda: len(checkpoint.all_in(drill.run / "checkpoints")) > 1, "the checkpoint before it goes")
    assert 0 < checkpoint.latest(drill.run / "checkpoints").step < LONG
    assert drill.until_over() == "finished", drill.log()
    assert history(drill.run).series["time/nodes_leaving"]
    check_drill(drill, long_unbroken, LONG)


@pytest.mark.slow
@pytest.mark.drill("elastic: a node dies, training goes on with fewer workers; one joins, with more")
def test_the_number_of_workers_follows_the_nodes(submitted, unbroken, record_property):
    elastic = {"min": 1, "max": 2, "threads": 1, "resize_s": 2}
    drill = started(submitted(nodes=2, meta={"steps": 3 * MANY}, workers=elastic))
    # It begins with one if the second node is late.
    until(lambda: len(drill.workers()) == 2, "both workers")
    told = drill.told()
    until(lambda: drill.told() > told + EVERY, "some steps of both")
    (raylet,) = [process for process in drill.family("raylet/raylet") if "--head" not in process.cmdline()]
    raylet.kill()
    record_property("recovery_s", drill.recovery_s())
    assert len(drill.workers()) == 1
    joined = _join(drill)
    try:
        drill.recovery_s()
        assert len([p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in str(p.info["cmdline"])]) == 2
        assert drill.until_over() == "finished", drill.log()
    finally:
        joined.terminate()
        joined.wait()
    losses, planned = history(drill.run).series["train/loss"], history(unbroken).series["train/loss"]
    assert list(losses) == list(range(1, 3 * MANY + 1))
    assert [losses[step] for step in range(1, 4)] == pytest.approx([planned[step] for step in range(1, 4)], rel=1e-4)


@pytest.mark.slow
@pytest.mark.drill("nodes that cannot see the run's folder")
def test_nodes_share_no_folder_with_the_driver(tmp_path, glyphs_root, unbroken):
    """All workers are on a node that sees an empty folder in its place, by a mount of its own."""
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    config = config_for(glyphs_root, tmp_path / "runs", validation={"every": 20, "aside": True})
    (tmp_path / "run.yaml").write_text(json.dumps(dump(config)))
    (tmp_path / "runs").mkdir()
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs hidden "$0" && exec "$@"', str(tmp_path / "runs")]
    port = free_port()
    address = f"127.0.0.1:{port}"
    place = Path(tempfile.mkdtemp(prefix="ms-", dir="/tmp"))
    own = [f"--port={port}", "--head", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={place}/0"]
    nodes = [_node([], own)]
    try:
        until(lambda: nodes[0].poll() is not None or _answers(port), "the head")
        nodes.append(_node(hide, [f"--address={address}", "--num-cpus=2", f"--temp-dir={place}/1"]))
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": address}
        train = [sys.executable, "-m", "pipeline.cli", "train", str(tmp_path / "run.yaml"), "--run", "r"]
        done = subprocess.run(train, env=variables, capture_output=True, text=True, timeout=LIMIT_S)
    finally:
        end(nodes, wait_s=8)
        shutil.rmtree(place)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path / "runs" / "r", unbroken)
    assert list(history(tmp_path / "runs" / "r").series["validation/score"]) == [20, 40, 60]


def _node(before: list[str], role: list[str]) -> subprocess.Popen[bytes]:
    command = [
        *before,
        binary("ray"),
        "start",
        "--block",
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        *role,
    ]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.drill("a cluster too small: refused after a deadline")
def test_a_cluster_too_small(submitted):
    drill = submitted(nodes=1, workers={"count": 2, "threads": 1, "wait_s": 3})
    assert drill.submit().returncode == 2
    assert "2 workers were asked for, but the cluster has 1 CPUs after 3 s" in drill.log()
    assert not drill.run.exists()


@pytest.mark.slow
@pytest.mark.drill("SIGKILL of a node for which there is no other: a deadline, resumed on a new cluster")
def test_a_lost_node_is_not_waited_for_without_end(submitted, unbroken):
    # Told as min and max Ray waits ten seconds for room before it tries anew, not sixty.
    drill = started(submitted(nodes=2, workers={"min": 2, "max": 2, "threads": 1, "replace_s": 1}))
    (raylet,) = [process for process in drill.family("raylet/raylet") if "--head" not in process.cmdline()]
    raylet.kill()
    assert drill.until_over() == "failed", drill.log()
    assert "the workers did not start again" in drill.log() and "Traceback" not in drill.log()
    assert drill.call("resume", "drill").returncode == 0, drill.log()
    check_drill(drill, unbroken)


def check_drill(drill: Submitted, unbroken: Path, steps: int = STEPS) -> None:
    check_whole(drill.run, unbroken, steps)
    until(lambda: not psutil.pid_exists(drill.state()["pid"]), "the keeper's end", 30)


def _has_worker(raylet: psutil.Process) -> bool:
    return any("RayTrainWorker" in " ".join(child.cmdline()) for child in raylet.children(recursive=True))


def _drain(drill: Submitted, raylet: psutil.Process) -> None:
    """What a cloud's agent does when it learns that its node will be taken away."""
    (driver,) = drill.family("bin/metashard", "train")
    node = next(word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--node_id="))
    words = ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command = [binary("ray"), "drain-node", *words, "--deadline-remaining-seconds", "5"]
    done = subprocess.run(command, env=driver.environ(), capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr


def _join(drill: Submitted) -> psutil.Popen:
    """A second node for a cluster that waits for it, with the cluster's token."""
    (driver,) = drill.family("bin/metashard", "train")
    known = driver.environ()
    command = [binary("ray"), "start", "--block", f"--address={known['RAY_ADDRESS']}", "--num-cpus=1"]
    return psutil.Popen([*command, "--node-ip-address=127.0.0.1", "--disable-usage-stats"], env=known)
