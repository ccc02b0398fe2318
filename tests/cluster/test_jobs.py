"""The target `ray` before a cluster that says what the test wants, and before a real head with a token."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from cluster import security, supervise
from cluster.errors import SubmitError
from cluster.jobs import RayJobs
from cluster.spec import RaySpec
from cluster.submission import Submission

NODE = {"state": "ALIVE", "resources_total": {"CPU": 4.0, "GPU": 1.0}}
ROOT = Path(__file__).parents[2]
LIMIT_S = 180


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers with what `said` has for the path, as (status, JSON)."""

    said: dict[str, tuple[int, object]]

    def do_GET(self) -> None:
        status, body = self.said.get(self.path.partition("?")[0], (404, "nothing here"))
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def cluster_that_says() -> Iterator:
    """Makes a target whose cluster gives scripted answers."""
    servers = []

    def make(needs=None, **changed: tuple[int, object]) -> RayJobs:
        good = {
            "/api/version": (200, {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}),
            "/api/v0/nodes": (200, {"result": True, "data": {"result": {"result": [NODE, {**NODE, "state": "DEAD"}]}}}),
        }  # fmt: skip
        named = {path: answer for path, answer in changed.items()}
        handler = type("Handler", (Scripted,), {"said": {**good, **named}})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        address = f"http://127.0.0.1:{server.server_address[1]}"
        return RayJobs(RaySpec(kind="ray", address=address, needs=needs or {}))

    yield make
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_cluster_that_is_well(cluster_that_says):
    assert not [check for check in cluster_that_says(needs={"cpus": 4, "gpus": 1}).preflight() if check.is_failed]


@pytest.mark.parametrize(
    ("needs", "changed", "said"),
    [
        ({"cpus": 5}, {}, "add nodes, or lower needs.cpus"),
        ({"gpus": 2}, {}, "add nodes, or lower needs.gpus"),
        ({}, {"/api/version": (200, {"version": "4", "ray_version": "2.10.0"})}, "install ray==2.10.0 here"),
        ({}, {"/api/version": (401, "Unauthorized")}, "the cluster refuses this token"),
        ({}, {"/api/version": (403, "Forbidden")}, "the cluster refuses this token"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_said_with_the_remedy(cluster_that_says, needs, changed, said):
    failed = [check for check in cluster_that_says(needs, **changed).preflight() if check.is_failed]
    assert len(failed) == 1 and said in failed[0].remedy and "\n" not in failed[0].remedy


def test_nobody_answers():
    (check,) = RayJobs(RaySpec(kind="ray", address="http://127.0.0.1:9")).preflight()
    assert check.is_failed and "http://127.0.0.1:9" in check.remedy


@pytest.mark.parametrize(
    ("status", "message", "said"),
    [(500, "no room: quota exceeded", "quota exceeded"), (403, "Forbidden", "the cluster refuses this token")],
)
def test_a_refused_submission_is_one_line(cluster_that_says, tmp_path, status, message, said):
    target = cluster_that_says(**{"/api/jobs/": (status, message)})
    target.spec = target.spec.model_copy(update={"working_dir": tmp_path})
    with pytest.raises(SubmitError, match=said) as caught:
        target.submit(submission_of("train", "x.yaml", folder=tmp_path))
    assert "\n" not in str(caught.value)


def test_what_is_sent_has_the_run_id_and_no_token(monkeypatch, tmp_path):
    monkeypatch.setenv(security.TOKEN_ENV, "very-secret")
    target = RayJobs(RaySpec(kind="ray", grace_s=7))
    sent = target.plan(submission_of("train", "my run.yaml", "name=a; b", folder=tmp_path))
    told = json.loads(sent)
    assert told["entrypoint"] == "metashard train 'my run.yaml' 'name=a; b'"
    assert told["runtime_env"]["env_vars"] == {"METASHARD_RUN": "r", "RAY_JOB_STOP_WAIT_TIME_S": "7"}
    assert "very-secret" not in sent


def test_a_ray_job_cannot_be_forced():
    with pytest.raises(SubmitError, match="killed after grace_s = 120 s"):
        RayJobs(RaySpec(kind="ray")).stop("r", force=True)


def submission_of(*command: str, folder: Path, run: str = "r") -> Submission:
    return Submission(run, list(command), {"env": {}, "mlflow": ""}, folder)


PROGRAM = f"""#!{sys.executable}
import os, signal, sys, time
print("run", os.environ["METASHARD_RUN"], sys.argv[1:], flush=True)
if sys.argv[1] == "exit":
    sys.exit(int(sys.argv[2]))
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(75)))
time.sleep({LIMIT_S})
"""


@pytest.fixture
def head(tmp_path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Calls the command line against a real Ray head of one CPU that wants a token; `metashard` there is a stub."""
    for folder in ("bin", "work", "here"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin" / "metashard").write_text(PROGRAM)
    (tmp_path / "bin" / "metashard").chmod(0o755)
    security.write_token(tmp_path / "token")
    path = f"{tmp_path / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    known = {security.MODE_ENV: "token", security.TOKEN_PATH_ENV: str(tmp_path / "token")}
    port = supervise.free_port()
    command = [supervise.binary("ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=1"]
    command += [f"--port={supervise.free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    made = {"kind": "ray", "address": f"http://127.0.0.1:{port}", "working_dir": str(tmp_path / "work"), "grace_s": 30}
    (tmp_path / "here" / "ray.yaml").write_text(json.dumps(made))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **known, "PATH": path})

    def call(*words: str, **changed: str) -> subprocess.CompletedProcess[str]:
        verb = [sys.executable, "-m", "pipeline.cli", *words]
        variables = {**os.environ, **known, "PYTHONPATH": str(ROOT), **changed}
        return subprocess.run(
            verb, cwd=tmp_path / "here", env=variables, capture_output=True, text=True, timeout=LIMIT_S
        )

    try:
        limit = time.monotonic() + LIMIT_S
        while "Ray runtime started" not in (tmp_path / "log").read_text():
            assert process.poll() is None and time.monotonic() < limit, (tmp_path / "log").read_text()
            time.sleep(0.1)
        yield call
    finally:
        supervise.end([process], wait_s=30)


@pytest.mark.ray
def test_a_real_head_with_a_token(head, tmp_path):
    """Submit, log, exit code, resume, stop with time to save; a client with another token is refused."""
    sent = ("submit", "--cluster", "ray.yaml", "--run")
    done = head(*sent, "ok", "--", "exit", "0")
    assert done.returncode == 0 and "run ok ['exit', '0']" in done.stdout, done.stderr
    bad = head(*sent, "bad", "--", "exit", "3")
    assert bad.returncode == 3 and "bad: failed (exit code 3)" in bad.stderr
    again = head("resume", "bad")
    assert again.returncode == 3 and "attempt 2" in again.stdout

    assert head(*sent, "long", "--detach", "--", "sleep").returncode == 0
    limit = time.monotonic() + LIMIT_S
    while "run long" not in head("logs", "long").stdout:
        assert time.monotonic() < limit
    stopped = head("stop", "long")
    assert stopped.returncode == 0 and "long: stopped" in stopped.stdout, stopped.stderr
    assert "saved" in head("logs", "long").stdout
    listed = head("list").stdout
    assert all(word in listed for word in ("ok", "finished", "failed (exit code 3)", "stopped"))

    security.write_token(tmp_path / "other")
    refused = head(*sent, "new", "--", "exit", "0", **{security.TOKEN_PATH_ENV: str(tmp_path / "other")})
    assert refused.returncode == 2 and "refuses this token" in refused.stderr
    secret = (tmp_path / "token").read_text()
    assert not [path for path in (tmp_path / "here").rglob("*") if path.is_file() and secret in path.read_text()]
