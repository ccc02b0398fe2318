"""A run on several Ray nodes of this machine as a user submits it, and what a drill does to its processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from safetensors.torch import load_file
from small import small_config

from pipeline import checkpoint
from pipeline.config import dump
from pipeline.schema.run import RunConfig
from pipeline.spool import history

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 60, 10
LIMIT_S = 240


def config_for(root: Path, runs: Path, **sections) -> RunConfig:
    """Two workers of one thread, a checkpoint every tenth meta-step."""
    tree = {
        "meta": {"steps": STEPS},
        "workers": {"count": 2, "threads": 1},
        "validation": {"every": 50},
        "checkpoint": {"every": EVERY, "keep": 99},
        "evaluate": {"episodes": 4},
    }
    return small_config(root, runs, **{**tree, **sections})


def until(found: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> float:
    """Wait for something true; the seconds it took."""
    began = time.monotonic()
    while not found():
        assert time.monotonic() - began < limit_s, f"waited {limit_s} s for {what}"
        time.sleep(0.02)
    return time.monotonic() - began


class Submitted:
    """A run on so many nodes of one CPU, under the id "drill"."""

    def __init__(self, place: Path, config: RunConfig, *, nodes: int = 3, grace_s: int = 60):
        self.place, self.run = place, config.runs / "drill"
        (place / "run.yaml").write_text(json.dumps(dump(config)))
        (place / "local.yaml").write_text(json.dumps({"kind": "local", "nodes": nodes, "cpus": 1, "grace_s": grace_s}))

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A verb of the command line."""
        variables = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pipeline.cli", *words]
        return subprocess.run(
            command, cwd=self.place, env=variables, capture_output=True, text=True, timeout=2 * LIMIT_S
        )

    def submit(self, *options: str) -> subprocess.CompletedProcess[str]:
        train = ["train", str(self.place / "run.yaml")]
        return self.call("submit", "--cluster", "local.yaml", "--run", "drill", *options, "--", *train)

    def state(self) -> dict:
        attempts = sorted(self.place.glob(".metashard/drill/attempt-*/state.json"))
        return json.loads(attempts[-1].read_text()) if attempts else {}

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.place.glob(".metashard/drill/attempt-*/log")))

    def keeper(self) -> psutil.Process:
        return psutil.Process(self.state()["pid"])

    def family(self, *words: str) -> list[psutil.Process]:
        """The processes of the newest attempt whose command line has all these words."""
        found = []
        for process in self.keeper().children(recursive=True):
            try:
                if all(word in " ".join(process.cmdline()) for word in words):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        return self.family("RayTrainWorker")

    def reached(self, step: int) -> bool:
        """Whether the checkpoint of this step is there."""
        return (self.run / "checkpoints" / f"step-{step:08d}").exists()

    def told(self) -> int:
        """How many lines the spool has."""
        path = self.run / "spool.jsonl"
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    def recovery_s(self) -> float:
        """From now until other workers than those of now tell of a meta-step."""
        before, began = {worker.pid for worker in self.workers()}, time.monotonic()
        until(lambda: self._are_new(before), "new workers")
        told = self.told()
        until(lambda: self.told() > told or self.state()["name"] != "running", "the next meta-step")
        assert self.told() > told, self.log()
        return time.monotonic() - began

    def _are_new(self, before: set[int]) -> bool:
        if self.state()["name"] != "running":
            raise AssertionError(self.log())
        now = {worker.pid for worker in self.workers()}
        return bool(now) and not now & before

    def until_over(self) -> str:
        """How the attempt ended."""
        until(lambda: self.state().get("name") not in ("queued", "running"), "the end")
        return self.state()["name"]

    def end(self) -> list[str]:
        """End what is left of the newest attempt; what was left of it although it was over."""
        left = []
        if self.state().get("pid") and psutil.pid_exists(self.state()["pid"]):
            family = self.keeper().children(recursive=True)
            self.keeper().kill()
            for process in family:
                if process.is_running():
                    process.kill()
        for process in psutil.process_iter(["cmdline"]):
            words = " ".join(process.info["cmdline"] or [])
            if str(self.place) in words or "metashard-" in words and "ray" in words:
                left.append(words[:200])
        return left


def check_whole(run: Path, unbroken: Path, steps: int = STEPS) -> None:
    """Every episode as planned, the same bits, no meta-step told twice or never, the last status."""
    one, two = (
        load_file(each / "checkpoints" / f"step-{steps:08d}" / "learner.safetensors") for each in (run, unbroken)
    )
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)
    losses, planned = history(run).series["train/loss"], history(unbroken).series["train/loss"]
    assert losses == planned and list(losses) == list(range(1, steps + 1))
    assert history(run).status == "FINISHED" and (run / "result.json").exists()
    assert not checkpoint.faults(run / "checkpoints")
