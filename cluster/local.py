"""The target `local`: this machine, several Ray nodes as processes, kept by a process of their own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster import supervise
from cluster.errors import SubmitError
from cluster.spec import LocalSpec
from cluster.submission import Submission
from cluster.target import Check, State

_LOOK_S = 0.2
_LEAST_FREE_GIB = 1


class Local:
    """A job is the folder of its attempt: its log and its state."""

    def __init__(self, spec: LocalSpec, folder: Path):
        self.spec, self.folder = spec, folder

    def plan(self, submission: Submission) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in submission.environment.items()]
        size = f"{self.spec.nodes} Ray nodes of {self.spec.cpus} CPUs and {self.spec.gpus} GPUs on this machine"
        return "\n".join([f"# {size}", *variables, shlex.join(["metashard", *submission.command])])

    def preflight(self) -> list[Check]:
        have = len(os.sched_getaffinity(0))
        asked = self.spec.nodes * self.spec.cpus
        cpus = Check("CPUs", f"{asked} asked for, {have} there")
        if asked > have:
            cpus = cpus._replace(remedy="nodes share them, and are as much slower", is_warning=True)
        free = shutil.disk_usage(self.folder).free / 2**30
        disk = Check("disk", f"{free:.1f} GiB free")
        if free < _LEAST_FREE_GIB:
            disk = disk._replace(remedy=f"make room: {_LEAST_FREE_GIB} GiB at least")
        missing = [name for name in ("ray", "metashard") if not Path(supervise.binary(name)).exists()]
        programs = Check("programs", "ray, metashard")
        if missing:
            programs = Check("programs", f"no {', '.join(missing)}", "install the project into this environment")
        return [cpus, disk, programs]

    def submit(self, submission: Submission) -> str:
        attempt = submission.folder / f"attempt-{submission.attempt}"
        attempt.mkdir(exist_ok=True)
        supervise.write(attempt, name="queued")
        try:
            supervise.start(attempt)
        except (OSError, subprocess.SubprocessError) as error:
            raise SubmitError(f"{attempt}: the process that keeps it did not start ({error}); see its log") from error
        return str(attempt)

    def state(self, job: str) -> State:
        try:
            said = json.loads((Path(job) / supervise.STATE_FILE).read_text())
        except (OSError, ValueError) as error:
            return State("lost", message=f"{job}: {error}")
        if said["name"] == "running" and _keeper(said) is None:
            # It may have written its end since.
            again = json.loads((Path(job) / supervise.STATE_FILE).read_text())
            if again["name"] == "running":
                return State("lost", message="the process that kept it was killed")
            said = again
        return State(said["name"], said.get("code"), said.get("message", ""))

    def log(self, job: str) -> str:
        try:
            return (Path(job) / supervise.LOG_FILE).read_text(errors="replace")
        except OSError as error:
            raise SubmitError(f"{job}: no log ({error.strerror})") from error

    def follow(self, job: str) -> Iterator[str]:
        with (Path(job) / supervise.LOG_FILE).open(errors="replace") as file:
            rest = ""
            while True:
                is_over = self.state(job).is_over  # asked before reading, so that the last lines are read after it
                rest += file.read()
                *lines, rest = rest.split("\n")
                yield from lines
                if is_over:
                    break
                time.sleep(_LOOK_S)
            if rest:
                yield rest

    def stop(self, job: str, *, force: bool) -> None:
        keeper = _keeper(json.loads((Path(job) / supervise.STATE_FILE).read_text()))
        if keeper is None:
            return
        keeper.send_signal(signal.SIGTERM)
        if force:
            time.sleep(2 * _LOOK_S)
            keeper.send_signal(signal.SIGTERM)


def _keeper(said: dict) -> psutil.Process | None:
    """The process that keeps the attempt, if it lives; another one may have its number by now."""
    try:
        process = psutil.Process(said["pid"])
        lives = process.create_time() == said["created"] and process.status() != psutil.STATUS_ZOMBIE
        return process if lives else None
    except (KeyError, psutil.NoSuchProcess):
        return None
