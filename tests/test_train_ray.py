"""Runs under Ray Train: what Ray is for (workers that die) and what it must not change (the bits)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from small import small_config
from web import web

from pipeline import checkpoint
from pipeline.config import dump
from pipeline.data.remote import CHUNK
from pipeline.errors import InputError
from pipeline.spool import history
from pipeline.train import fit

pytestmark = pytest.mark.ray

STEPS = 60
LIMIT_S = 180


def config_for(root: Path, runs: Path, **sections):
    tree = {
        "meta": {"steps": STEPS},
        "workers": {"count": 2, "threads": 1},
        "validation": {"every": 50},
        "checkpoint": {"every": 10, "keep": 99},
        "evaluate": {"episodes": 4},
    }
    return small_config(root, runs, **{**tree, **sections})


def final(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{STEPS:08d}" / "learner.safetensors")


def same_bits(a: Path, b: Path) -> bool:
    one, two = final(a), final(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def unbroken(cluster, tmp_path_factory, glyphs_root) -> Path:
    return fit(config_for(glyphs_root, tmp_path_factory.mktemp("unbroken"))).folder


def one_worker_process() -> psutil.Process:
    """A training worker that is in its loop."""
    for process in psutil.process_iter(["cmdline"]):
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or []):
            return process
    raise AssertionError("no worker found")


def test_a_run_under_ray_is_whole(unbroken):
    series, tags = history(unbroken).series, history(unbroken).tags
    assert tags["ray.job"] and all(node.count(":") == 1 for node in tags["ray.nodes"].split(" "))
    assert list(series["train/loss"]) == list(range(1, STEPS + 1))
    assert {"test/inductive/accuracy", "test/transductive/accuracy", "time/data_wait_share"} <= set(series)
    assert history(unbroken).status == "FINISHED"
    result = json.loads((unbroken / "result.json").read_text())
    assert result["test"]["inductive"]["accuracy"]["episodes"] == 4
    names = {"episode-best", "episode-median", "episode-worst", "losses", "adaptation", "confusion"}
    assert {path.stem for path in (unbroken / "pictures").glob("*.png")} == names


def test_one_worker_whose_episodes_are_fed_has_the_gradients_of_two(unbroken, tmp_path, glyphs_root):
    """The confirmation under Ray of what tests/test_loop.py shows over plain processes."""
    fed = {"count": 1, "threads": 1, "feeders": 1}
    alone = fit(config_for(glyphs_root, tmp_path, workers=fed, meta={"steps": 2, "batch": 4}))
    losses = history(alone.folder).series["train/loss"]
    assert losses[1] == pytest.approx(history(unbroken).series["train/loss"][1], rel=1e-5)


def test_workers_of_a_node_read_a_store_together(unbroken, tmp_path, glyphs_root):
    """The same bits as from the disk, and no byte is fetched twice; validated aside, which changes nothing either."""
    with web(glyphs_root) as served:
        run = fit(config_for(served.url, tmp_path, validation={"every": 20, "aside": True})).folder
    assert same_bits(unbroken, run)
    assert list(history(run).series["validation/score"]) == [20, 40, 60]
    chunks = [(name, at) for name, start, stop in served.ranges for at in range(start // CHUNK, -(-stop // CHUNK))]
    assert chunks and len(chunks) == len(set(chunks))


@pytest.mark.drill("SIGKILL of a worker, on a cluster that stays")
def test_a_killed_worker_does_not_change_the_outcome(unbroken, tmp_path, glyphs_root):
    """SIGKILL of a worker in mid-run: the run goes on by itself and ends with the same bits."""
    import threading

    config = config_for(glyphs_root, tmp_path)
    killed = []

    def kill() -> None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if any(p.name >= "step-00000020" for p in tmp_path.glob("*/checkpoints/step-*")):
                victim = one_worker_process()
                victim.kill()
                killed.append(victim.pid)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    finished = fit(config)
    killer.join()
    assert killed and same_bits(finished.folder, unbroken)
    assert list(history(finished.folder).series["train/loss"]) == list(range(1, STEPS + 1))


@pytest.mark.drill("SIGKILL of a driver with its own Ray")
def test_a_killed_driver_is_resumed_to_the_same_bits(unbroken, tmp_path, glyphs_root):
    """SIGKILL of the driver, in a session of its own, then `--resume`."""
    config = config_for(glyphs_root, tmp_path)
    (tmp_path / "run.yaml").write_text(json.dumps(dump(config)))
    command = [sys.executable, "-m", "pipeline.cli", "train", str(tmp_path / "run.yaml")]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + LIMIT_S
        while not list(tmp_path.glob("*/checkpoints/step-00000020")):
            assert driver.poll() is None and time.monotonic() < deadline
            children = psutil.Process(driver.pid).children(recursive=True)
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    finally:
        if driver.poll() is None:
            driver.kill()
            driver.wait()
        # The raylet notices its driver's death by itself; what is left after that is ours to end.
        _, alive = psutil.wait_procs(children, timeout=40)
        for process in alive:
            process.kill()
    (run,) = [path for path in tmp_path.iterdir() if (path / "checkpoints").is_dir()]
    assert checkpoint.latest(run / "checkpoints").step < STEPS
    finished = fit(config, resume=run)
    assert finished.folder == run and same_bits(run, unbroken)
    assert list(history(run).series["train/loss"]) == list(range(1, STEPS + 1))


def test_more_workers_than_cpus_are_refused_at_once(cluster, tmp_path, glyphs_root):
    began = time.monotonic()
    with pytest.raises(InputError, match=r"4 workers were asked for, but the cluster has \d+ CPUs"):
        fit(config_for(glyphs_root, tmp_path, workers={"count": 4}))
    with pytest.raises(InputError, match=r"2 workers of 1 GPUs each were asked for, but the cluster has 0 GPUs"):
        fit(config_for(glyphs_root, tmp_path, workers={"count": 2, "gpus": 1, "wait_s": 0}))
    assert time.monotonic() - began < 10


def test_ctrl_c_saves_and_says_how_to_go_on(cluster, tmp_path, glyphs_root):
    """In this process, as the terminal would send it: the run ends after its step with a checkpoint of that step."""
    import threading

    def interrupt() -> None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and not list(tmp_path.glob("*/checkpoints/step-00000010")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=interrupt)
    user.start()
    stopped = fit(config_for(glyphs_root, tmp_path, meta={"steps": 100_000}))
    user.join()
    reached = checkpoint.latest(stopped.folder / "checkpoints").step
    assert 10 <= reached < 100_000
    assert f"stopped after meta-step {reached}" in stopped.text and "--resume" in stopped.text
    assert history(stopped.folder).status == "KILLED"
