"""The real verb: it serves on Ray, loses nothing when it is killed, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from rooms import images, lesson, model_of, picture

from pipeline.teaching import adapted
from pipeline.teaching.answers import answers, opened

ROOT = Path(__file__).parents[2]
START_S, END_S = 240, 90
pytestmark = [pytest.mark.ray]


@contextmanager
def serving(model: Path, *more: str) -> Iterator[tuple[psutil.Process, str]]:
    """The verb, from its first answer on, and its URL."""
    command = [sys.executable, "-m", "pipeline.cli", "serve", str(model), "--port", "0", *more]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            url = next(line.split()[-1] for line in process.stdout if line.startswith("serving"))
            yield psutil.Process(process.pid), url
        finally:
            if process.poll() is None:
                process.kill()


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end by themselves, soon."""
    return not psutil.wait_procs(processes, timeout=END_S)[1]


def is_replica(process: psutil.Process) -> bool:
    try:
        return "ServeReplica" in "".join(process.cmdline())
    except psutil.Error:
        return False


def test_what_is_taught_outlives_every_process_of_the_server(glyphs_root, tmp_path):
    model = model_of(glyphs_root, tmp_path)
    with serving(model) as (process, url):
        with httpx.Client(base_url=url, timeout=60) as client:
            assert client.post("/classes", **lesson("classification", "c", (0, 1))).status_code == 201
            (tmp_path / "taught").write_bytes(client.get("/model").content)
            # The replica alone dies: Serve starts another one.
            (replica,) = [each for each in process.children(recursive=True) if is_replica(each)]
            replica.kill()
            assert classes_of(client) == ["a", "b", "c"]
        children = process.children(recursive=True)
        process.kill()
        assert gone([process, *children])
    with serving(model) as (process, url):
        with httpx.Client(base_url=url, timeout=60) as client:
            assert classes_of(client) == ["a", "b", "c"]
            said = client.post("/predict", files=images(7)).json()["predictions"][0]
            own = adapted.load(tmp_path / "taught")
            (expected,) = answers(own, [opened(own, picture(7), "7.png")])
            assert said["label"] == expected.label
            assert said["probabilities"] == pytest.approx(expected.probabilities, rel=1e-4)
        children = process.children(recursive=True)
        # As a terminal does: to all processes of the group.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(END_S) == 0
        assert gone(children)


def classes_of(client: httpx.Client) -> list[str]:
    """What is taught, once the server answers."""
    limit = time.monotonic() + START_S
    while True:
        try:
            answer = client.get("/classes")
            if answer.status_code == 200:
                return [each["name"] for each in answer.json()["classes"]]
        except httpx.HTTPError:
            pass
        assert time.monotonic() < limit
        time.sleep(0.5)
