"""Sends a run's spool to MLflow: beside the training in a process of its own, or later by `sync` (law 10)."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from pipeline import spool
from pipeline.errors import InputError
from pipeline.shipment import SENT_FILE, Shipment, Target, first_line, plain_uri, read_json, write_json

TARGET_FILE = "mlflow.json"
LOCK_FILE = "spool.lock"
TRIALS = "trials"
"""The folder, in that of a sweep, of its trials."""
LOG_FILE = "spool.log"
URI_VARIABLE = "METASHARD_TRACKING_URI"
EXPERIMENT = "metashard"
LOOK_EVERY_S = 1.0
LONGEST_PAUSE_S = 30.0
ORPHAN_S = 20.0
GIVE_UP_AFTER = 3
SYNC_WAIT_S = 10.0
NICENESS = 5


class SyncReport(NamedTuple):
    """What `sync` did: records sent, what MLflow will never take, and why it is not complete if it is not."""

    run_id: str
    sent: int
    refused: tuple[str, ...]
    complete: bool
    error: str


class Sender:
    """Ships the spool while the run goes on.

    It is a process and not a thread: importing MLflow and making its database is five seconds of Python, in which a
    thread would let a training loop do a quarter of its steps (docs/decisions.md). It ends when told to, and by itself
    soon after the process that started it, however that died.
    """

    def __init__(self, run_dir: Path, *, uri: str, experiment: str = EXPERIMENT, name: str = ""):
        self.run_dir, self.uri = run_dir.absolute(), uri
        self._process: subprocess.Popen[bytes] | None = None
        write_target(self.run_dir, Target(uri, experiment, name or self.run_dir.name))

    def start(self) -> None:
        """Launch it; returns at once."""
        package = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
        with (self.run_dir / LOG_FILE).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.tracking", str(self.run_dir), str(os.getpid())],
                env={**os.environ, "PYTHONPATH": path, URI_VARIABLE: self.uri},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the training, which then ends this in good order.
                start_new_session=True,
            )

    def stop(self, timeout_s: float) -> bool:
        """Give it so long to send what is left, then end it; True if MLflow has everything."""
        if self._process is None or self._process.poll() is not None:
            self._release()
            self.start()
        assert self._process is not None
        try:
            self._process.communicate(f"{timeout_s}".encode(), timeout=timeout_s + 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        return self._process.returncode == 0

    def _release(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def parts(run_dir: Path) -> list[Path]:
    """The folders of the runs that are parts of this one: the trials of a sweep."""
    return sorted(file.parent for file in run_dir.glob(f"{TRIALS}/*/{TARGET_FILE}"))


def sync(run_dir: Path, *, uri: str) -> SyncReport:
    """Send what MLflow has not yet of a run and of its parts, in this process; doing it again changes nothing.

    Raises:
        InputError: the folder holds no spool, or one of another format.
    """
    if not spool.history(run_dir).id:
        raise InputError(f"{run_dir} has no {spool.FILE}, so it is no run; `metashard runs` lists the runs")
    parent = read_json(run_dir / TARGET_FILE).get("parent", "")
    with _only_sender(run_dir / parent, wait_s=SYNC_WAIT_S) as is_ours:
        if not is_ours:
            return SyncReport(
                run_id_of(run_dir), 0, (), False, "another process is sending this run; it is left to that one"
            )
        told = [_sync(folder, uri) for folder in (run_dir, *parts(run_dir))]
    return SyncReport(
        told[0].run_id,
        sum(report.sent for report in told),
        tuple(refused for report in told for refused in report.refused),
        all(report.complete for report in told),
        next((report.error for report in told if report.error), ""),
    )


def _sync(run_dir: Path, uri: str) -> SyncReport:
    """As `sync`, of one run, by the process that may send it."""
    target = _target(run_dir, uri)
    write_target(run_dir, target)
    shipment = Shipment(run_dir, target)
    sent = failures = 0
    error = ""
    while failures < GIVE_UP_AFTER:
        try:
            if not (step := shipment.step()):
                break
            sent, failures, error = sent + step, 0, ""
        # Law 7: whatever the server does, the report says what is missing; nothing is lost from the spool.
        except Exception as fault:
            failures, error = failures + 1, first_line(fault)
            time.sleep(0.5 if failures < GIVE_UP_AFTER else 0)
    return SyncReport(shipment.sent.run_id, sent, tuple(shipment.refused), shipment.is_complete(), error)


def _target(run_dir: Path, uri: str) -> Target:
    """Where the run goes as noted beside its spool, on this server."""
    known = read_json(run_dir / TARGET_FILE)
    name = known.get("name", run_dir.name)
    return Target(uri, known.get("experiment", EXPERIMENT), name, known.get("parent", ""))


def default_uri(runs: Path) -> str:
    """The sqlite store of a folder of runs, absolute, since workers run in other directories.

    Raises:
        InputError: the path has a character that a database URI cannot hold.
    """
    path = (runs / "mlflow.db").absolute()
    if "?" in str(path) or "#" in str(path) or "%" in str(path):
        raise InputError(f"runs = {runs}: a path with ?, # or % cannot hold MLflow's database; choose another folder")
    return f"sqlite:///{path}"


def write_target(run_dir: Path, target: Target) -> None:
    """Note beside the spool where it goes, without passwords."""
    write_json(run_dir / TARGET_FILE, {**target._asdict(), "uri": plain_uri(target.uri)})


def target_uri(run_dir: Path) -> str:
    """The store that the run goes to, without passwords; empty if none is noted."""
    return read_json(run_dir / TARGET_FILE).get("uri", "")


def run_id_of(run_dir: Path) -> str:
    """The MLflow run id; empty while MLflow has not been reached."""
    return read_json(run_dir / SENT_FILE).get("run_id", "")


def run_url(run_dir: Path, *, server: str = "http://127.0.0.1:5000") -> str:
    """The run's page on its own server, or on one started by `metashard ui`; empty while MLflow has not been reached."""
    sent = read_json(run_dir / SENT_FILE)
    if not sent.get("run_id"):
        return ""
    base = sent["uri"] if sent["uri"].startswith("http") else server
    return f"{base.rstrip('/')}/#/experiments/{sent['experiment_id']}/runs/{sent['run_id']}"


def system_metrics() -> dict[str, float]:
    """How busy and how full this machine is, under MLflow's own names; GPUs where torch uses them."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.getcwd())
    metrics = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
        "process_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
        "disk_usage_percentage": disk.percent,
        "disk_available_megabytes": disk.free / 1e6,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            metrics[f"gpu_{number}_memory_usage_megabytes"] = (total - free) / 1e6
            metrics[f"gpu_{number}_memory_usage_percentage"] = 100 * (total - free) / total
            try:
                metrics[f"gpu_{number}_utilization_percentage"] = float(torch.cuda.utilization(number))
            # NVIDIA's management library may be missing, or refuse with errors of its own, as for a part of a GPU.
            except Exception:
                continue
    return metrics


@contextmanager
def _only_sender(run_dir: Path, *, wait_s: float) -> Iterator[bool]:
    """Whether this process is the one that sends; the system lets go of the lock when its holder dies."""
    deadline = time.monotonic() + wait_s
    with (run_dir / LOCK_FILE).open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.2)
            else:
                yield True
                return


class _Stopping(threading.Event):
    """Set when the sender shall end, with the time it may still take."""

    deadline = float("inf")


def _watch(parent: int, stopping: _Stopping) -> None:
    """Wait for the word to stop, or for the parent's death, and see to it that this process does end."""
    text = b""
    while os.getppid() == parent:
        if select.select([0], [], [], LOOK_EVERY_S)[0]:
            part = os.read(0, 64)
            text += part
            if not part:
                break
    left_s = float(text or ORPHAN_S)
    stopping.deadline = time.monotonic() + left_s
    stopping.set()
    # A call to a server that hangs cannot be interrupted; what it carried is not marked as sent.
    time.sleep(left_s + 1)
    os._exit(1)


class _Fleet:
    """The shipments of a run and of its parts, which may still be coming."""

    def __init__(self, run_dir: Path, uri: str):
        self._run_dir, self._uri = run_dir, uri
        self._shipments: dict[Path, Shipment] = {}
        self._seen: dict[Path, int] = {}
        """Sizes of spools of which everything was sent."""

    def step(self) -> int:
        """Send the next piece of each, the whole before its parts; raises, after all were tried, what MLflow raised first."""
        sent, failed = 0, None
        for folder in (self._run_dir, *parts(self._run_dir)):
            size = (folder / spool.FILE).stat().st_size if (folder / spool.FILE).exists() else 0
            if not size or self._seen.get(folder) == size:
                continue
            try:
                if folder not in self._shipments:
                    self._shipments[folder] = Shipment(folder, _target(folder, self._uri))
                step = self._shipments[folder].step()
            except Exception as error:
                failed = failed or error
                continue
            sent += step
            if not step:
                self._seen[folder] = size
        if failed is not None:
            raise failed
        return sent

    def is_complete(self) -> bool:
        """Whether MLflow has everything."""
        folders = [self._run_dir, *parts(self._run_dir)]
        return all(f in self._shipments and self._shipments[f].is_complete() for f in folders)


def _send(run_dir: Path, stopping: _Stopping) -> bool:
    """Send until told to stop, then what is left; True if that was all."""
    shipment = _Fleet(run_dir, os.environ[URI_VARIABLE])
    failures = 0
    while True:
        # Asked before sending: what is spooled before the word to stop is then surely seen.
        was_asked = stopping.is_set()
        try:
            sent = shipment.step()
            failures = 0
        # Law 10: whatever MLflow does, training does not hear of it.
        except Exception as error:
            sent, failures = 0, failures + 1
            print(time.strftime("%F %T"), f"MLflow does not take it ({failures}): {first_line(error)}", flush=True)
        if was_asked:
            if not sent and not failures:
                return shipment.is_complete()
            if failures >= GIVE_UP_AFTER or time.monotonic() > stopping.deadline:
                return False
            time.sleep(0.5 if failures else 0)
        elif not sent:
            stopping.wait(min(LONGEST_PAUSE_S, 2.0**failures) if failures else LOOK_EVERY_S)
            failures = 0 if stopping.is_set() else failures


def main(run_dir: Path, parent: int) -> int:
    """The sender's process: 0 if everything was sent when it was told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Training's threads come first; at 19 they would leave it nothing on a full machine.
    os.nice(NICENESS)
    stopping = _Stopping()
    threading.Thread(target=_watch, args=(parent, stopping), daemon=True).start()
    while not spool.history(run_dir).id:
        if stopping.wait(LOOK_EVERY_S):
            return 1
    # The sender of a killed predecessor may still be sending what that one left; `_watch` bounds the wait.
    with _only_sender(run_dir, wait_s=float("inf")):
        return 0 if _send(run_dir, stopping) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
