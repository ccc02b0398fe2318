"""The process that keeps a local submission: starts its Ray nodes, runs its command, and ends all of them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil

from cluster import security, submission
from cluster.spec import LocalSpec, parse

STATE_FILE, LOG_FILE, TOKEN_FILE, PLACE_FILE = "state.json", "log", "token", "place"
_PLACE = "metashard-"
_PR_SET_PDEATHSIG = 1
_NODE_LEAVES_S = 8.0


class _Stopped(Exception):
    """A signal came before there was a command to pass it on to."""


def start(attempt: Path) -> None:
    """Have a process of its own keep the attempt; it outlives the caller, and leaves no child of it behind."""
    command = [sys.executable, "-m", "cluster.supervise", str(attempt)]
    with (attempt / LOG_FILE).open("ab") as log:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=True)


def write(attempt: Path, **values: object) -> None:
    """Say where the attempt is; a reader sees the old words or the new."""
    partial = attempt / f".{STATE_FILE}.{os.getpid()}"
    partial.write_text(json.dumps(values))
    partial.replace(attempt / STATE_FILE)


def binary(name: str) -> str:
    """A console script of this environment."""
    return str(Path(sys.executable).with_name(name))


def environment(token: Path, given: dict[str, str]) -> dict[str, str]:
    """This process's variables and the job's; the token is a file, whose path may be seen."""
    kept = {name: value for name, value in os.environ.items() if name not in (security.TOKEN_ENV, "RAY_ADDRESS")}
    ray = {security.MODE_ENV: "token", security.TOKEN_PATH_ENV: str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    return {**kept, "PYTHONUNBUFFERED": "1", **ray, **given}


def supervise(attempt: Path, begun: Callable[[], None]) -> None:
    """Run the submission that the attempt's folder lies in, and write down how it ended.

    `begun` is called as soon as signals are understood and the folder says whom to send them to.
    """
    asked: list[int] = []

    def before(number: int, _: object) -> None:
        asked.append(number)
        if len(asked) == 1:
            raise _Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, before)
    own = {"pid": os.getpid(), "created": psutil.Process().create_time()}
    write(attempt, name="running", **own)
    begun()
    code, message = 1, ""
    try:
        kept = submission.known(attempt.parent.name, attempt.parent.parent)
        spec = parse(kept.spec, str(attempt))
        assert isinstance(spec, LocalSpec)
        token = kept.folder / TOKEN_FILE
        security.write_token(token)
        variables = environment(token, kept.environment)
        with _nodes(spec, variables, attempt) as address:
            code = _run([binary("metashard"), *kept.command], {**variables, "RAY_ADDRESS": address}, spec, asked)
    except _Stopped:
        message = "stopped before its nodes were there"
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    name = "finished" if code == 0 else "stopped" if asked else "failed"
    if message:
        print(f"metashard: {message}", flush=True)
    write(attempt, name=name, code=code, message=message, **own)


def _run(command: Sequence[str], variables: dict[str, str], spec: LocalSpec, asked: list[int]) -> int:
    """The command's exit code. A first signal is passed on to it, and `grace_s` later it is killed; a second kills it at once."""
    process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)
    limit = float("inf")

    def stop(number: int, _: object) -> None:
        nonlocal limit
        limit = time.monotonic() + spec.grace_s if not asked else 0.0
        asked.append(number)
        process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while process.poll() is None:
        if time.monotonic() > limit:
            end([process], wait_s=0)
        time.sleep(0.1)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


@contextlib.contextmanager
def _nodes(spec: LocalSpec, variables: dict[str, str], logs: Path) -> Iterator[str]:
    """The Ray nodes; gives the address of the first one, which answers already. The others are on their way.

    Their sockets lie in a folder with a short name: the system allows 107 characters. Each node has a cache of its own.
    """
    _clear(logs.parent)
    place = Path(tempfile.mkdtemp(prefix=_PLACE, dir="/tmp"))
    (logs / PLACE_FILE).write_text(place.name)
    port = free_port()
    address = f"127.0.0.1:{port}"
    first = ["--head", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={free_port()}"]
    others = [f"--address={address}"]
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(spec.nodes):
            own = {"METASHARD_CACHE": str(place / f"cache-{number}"), **_devices(number, spec)}
            # A place of its own for each: nodes that start at the same moment would choose the same names.
            role = [*(first if number == 0 else others), f"--temp-dir={place}/{number}"]
            with (logs / f"node-{number}.log").open("wb") as log:
                nodes.append(_node(role, spec, {**variables, **own}, log))
            if number == 0:
                _await(port, nodes[0], spec.start_s, logs)
        yield address
    finally:
        end(list(reversed(nodes)), wait_s=_NODE_LEAVES_S)
        shutil.rmtree(place, ignore_errors=True)


def _clear(run: Path) -> None:
    """Remove what earlier attempts left in /tmp whose keeper was killed; the run's own lock says that none of them goes on."""
    for path in run.glob(f"attempt-*/{PLACE_FILE}"):
        name = path.read_text()
        if name.startswith(_PLACE) and "/" not in name:
            shutil.rmtree(Path("/tmp") / name, ignore_errors=True)


def _node(role: list[str], spec: LocalSpec, variables: dict[str, str], log: BinaryIO) -> subprocess.Popen[bytes]:
    size = [f"--num-cpus={spec.cpus}", f"--num-gpus={spec.gpus}", "--node-ip-address=127.0.0.1"]
    return subprocess.Popen(
        [binary("ray"), "start", "--block", "--disable-usage-stats", *role, *size],
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        preexec_fn=_end_with_parent,
    )


def _devices(number: int, spec: LocalSpec) -> dict[str, str]:
    """The GPUs that a node sees: no two nodes have one in common."""
    mine = range(spec.gpus * number, spec.gpus * (number + 1))
    return {"CUDA_VISIBLE_DEVICES": ",".join(str(device) for device in mine)}


def _await(port: int, node: subprocess.Popen[bytes], limit_s: float, logs: Path) -> None:
    """Wait until the first node's port answers."""
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit:
        if node.poll() is not None:
            raise RuntimeError(f"the first Ray node ended with code {node.returncode}; see {logs}/node-0.log")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"the first Ray node did not answer within start_s = {limit_s:g} s; see {logs}/node-0.log")


def end(processes: Sequence[subprocess.Popen[bytes]], *, wait_s: float) -> None:
    """Ask them to leave, then end what is left of them and of all that they started."""
    family: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(process.pid)
            family += [own, *own.children(recursive=True)]
        if wait_s:
            process.terminate()
    limit = time.monotonic() + wait_s
    while any(_lives(one) for one in family) and time.monotonic() < limit:
        time.sleep(0.1)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    for process in processes:
        process.wait()


def _lives(process: psutil.Process) -> bool:
    """Whether it still runs; one that ended and that nobody has asked about yet does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end_with_parent() -> None:
    """Have the system send this process SIGTERM when the one that started it dies, however it dies."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """A port of this machine that nobody listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """`python -m cluster.supervise ATTEMPT`: a child that nobody waits for does the work; leaves when it has begun."""
    listening, telling = os.pipe()
    if os.fork():
        os.close(telling)
        os.read(listening, 1)
        os._exit(0)
    os.setsid()
    supervise(Path(sys.argv[1]), lambda: os.close(telling))


if __name__ == "__main__":
    main()
