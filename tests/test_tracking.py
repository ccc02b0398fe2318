"""MLflow gone, slow, locked or emptied: training does not notice, and afterwards every step is there exactly once (law 10)."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline import report, spool, tracking
from pipeline.errors import InputError
from pipeline.shipment import REFUSED_FILE, RUN_TAG, SENT_FILE, Shipment, Target, client_of
from pipeline.spool import Spool, history
from pipeline.tracking import Sender, sync

ROOT = Path(__file__).parents[1]
# MLflow asks SQLAlchemy 2.1 for a loading strategy that will go one day; that is between the two.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture(autouse=True)
def no_process_is_left():
    before = set(psutil.Process().children(recursive=True))
    yield
    assert not set(psutil.Process().children(recursive=True)) - before


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs whose database is made once: that takes seconds."""
    root = tmp_path_factory.mktemp("a folder") / "runs"
    root.mkdir()
    client_of(tracking.default_uri(root)).search_experiments()
    return root


@pytest.fixture
def run(runs, request) -> Path:
    folder = runs / request.node.name[:60]
    folder.mkdir()
    return folder


@pytest.fixture
def uri(runs) -> str:
    return tracking.default_uri(runs)


def tell(run: Path, steps: range) -> None:
    told = Spool(run)
    for step in steps:
        told.metrics(step, {"train/loss": 1 / (step + 1)})
    told.close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ours(client, run: Path) -> list:
    """All MLflow runs that carry the tag of a spool."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(experiments, f"tags.`{RUN_TAG}` = '{history(run).id}'")


def assert_complete(uri: str, run: Path, steps: range, key: str = "train/loss") -> None:
    """One run, and each step of the series once, with the value and the time of the spool."""
    client = client_of(uri)
    (found,) = ours(client, run)
    points = sorted(client.get_metric_history(found.info.run_id, key), key=lambda point: point.step)
    assert [point.step for point in points] == list(steps)
    assert [point.value for point in points] == list(history(run).series[key].values())
    times = {r["step"]: r["t"] for _, r in spool.records(run) if r["kind"] == "metrics" and key in r["values"]}
    assert {point.step: point.timestamp for point in points} == times


def test_sync_sends_all_there_is_and_again_changes_nothing(run, uri, tmp_path):
    told = Spool(run)
    params = {f"p.{number}": str(number) for number in range(250)} | {"long": "x" * 6500, "empty": "", "odd[key]": "1"}
    told.params(params)
    told.tags({f"t.{number}": "value" for number in range(120)} | {"long": "y" * 8100})
    for step in range(600):
        told.metrics(step, {"train/loss": 1 / (step + 1), "train/rate": 0.1})
    told.metrics(0, {"odd": math.nan, "odder": math.inf})
    (run / "pictures").mkdir()
    (run / "pictures" / "a.png").write_bytes(b"png")
    told.artifact(run / "pictures" / "a.png", "pictures")
    told.status("FINISHED")
    told.close()
    tracking.write_target(run, Target(uri, "bench", "a name"))
    client = client_of(uri)

    for forget in (False, False, True):
        if forget:
            # As after a crash between making the run and remembering it.
            (run / SENT_FILE).unlink()
        done = sync(run, uri=uri)
        assert done.complete and not done.error and not done.refused
        assert_complete(uri, run, range(600))
        found = client.get_run(tracking.run_id_of(run))
        assert (
            len(found.data.params) == 253 and found.data.params["empty"] == "" and found.data.params["odd_key_"] == "1"
        )
        assert len([tag for tag in found.data.tags if tag.startswith("t.")]) == 120
        assert found.info.status == "FINISHED" and found.info.run_name == "a name"
        assert math.isnan(client.get_metric_history(found.info.run_id, "odd")[0].value)
        assert client.get_experiment(found.info.experiment_id).name == "bench"
        read = {
            f"{where}/{name}": where
            for where, name in (("pictures", "a.png"), ("params", "long.txt"), ("tags", "long.txt"))
        }
        for path, where in read.items():
            got = client.download_artifacts(found.info.run_id, path, str(tmp_path))
            assert Path(got).read_bytes() == (run / where / Path(path).name).read_bytes()
    assert (run.parent / "mlartifacts").is_dir()
    assert tracking.run_url(run).endswith(f"/runs/{found.info.run_id}")


def test_what_mlflow_will_never_take_is_named_and_the_rest_arrives(run, uri):
    tell(run, range(3))
    sync(run, uri=uri)
    client_of(uri).log_param(tracking.run_id_of(run), "lr", "someone else's")
    told = Spool(run)
    told.params({"lr": "0.1", "steps": "5"})
    (run / "gone.png").write_bytes(b"")
    told.artifact(run / "gone.png")
    (run / "gone.png").unlink()
    told.close()
    with (run / spool.FILE).open("a") as file:
        file.write("not a record\n")
    tell(run, range(3, 6))
    done = sync(run, uri=uri)
    assert done.complete and len(done.refused) == 3
    assert any("lr" in reason for reason in done.refused) and any("gone.png" in reason for reason in done.refused)
    assert len((run / REFUSED_FILE).read_text().splitlines()) == 3
    assert client_of(uri).get_run(done.run_id).data.params == {"lr": "someone else's", "steps": "5"}
    assert_complete(uri, run, range(6))


def test_a_deleted_run_and_a_deleted_experiment_come_back(run, uri):
    tell(run, range(3))
    tracking.write_target(run, Target(uri, "thrown away", "x"))
    client = client_of(uri)
    first = sync(run, uri=uri).run_id
    client.delete_run(first)
    client.delete_experiment(client.get_experiment_by_name("thrown away").experiment_id)
    tell(run, range(3, 5))
    assert sync(run, uri=uri) == (first, 2, (), True, "")
    assert_complete(uri, run, range(5))


def test_a_run_that_the_store_does_not_know_gets_everything_anew(run, uri):
    tell(run, range(4))
    sync(run, uri=uri)
    sent = json.loads((run / SENT_FILE).read_text())
    (run / SENT_FILE).write_text(json.dumps({**sent, "run_id": "0" * 32}))
    assert sync(run, uri=uri).complete
    assert tracking.run_id_of(run) == sent["run_id"]
    assert_complete(uri, run, range(4))


def test_an_artifact_store_that_fails_holds_back_no_metric(run, uri, monkeypatch):
    told = Spool(run)
    (run / "a.png").write_bytes(b"")
    told.artifact(run / "a.png")
    told.close()
    tell(run, range(3))
    shipment = Shipment(run, Target(uri, "metashard", "x"))
    shipment.step()
    with monkeypatch.context() as broken:
        broken.setattr(type(shipment._client), "log_artifact", lambda *_: (_ for _ in ()).throw(OSError("no store")))
        with pytest.raises(OSError, match="no store"):
            shipment.step()
        tell(run, range(3, 6))
        assert shipment.step() == 3
    assert not shipment.is_complete()
    while shipment.step():
        pass
    assert shipment.is_complete()
    assert_complete(uri, run, range(6))


def test_a_dead_server_costs_training_nothing_and_the_sender_ends(run, uri):
    dead = f"http://user:secret@127.0.0.1:{closed_port()}"
    told = Spool(run)
    began = time.perf_counter()
    sender = Sender(run, uri=dead)
    sender.start()
    assert time.perf_counter() - began < 0.5
    took = []
    for step in range(500):
        began = time.perf_counter()
        told.metrics(step, {f"m{number}": 0.5 for number in range(9)} | {"train/loss": 1.0})
        took.append(time.perf_counter() - began)
        time.sleep(0.002)
    told.close()
    assert statistics.median(took) < 1e-3
    assert sender.stop(20) is False
    assert tracking.run_id_of(run) == "" and tracking.run_url(run) == ""
    assert "does not take it" in (run / tracking.LOG_FILE).read_text()
    assert all(b"secret" not in file.read_bytes() for file in run.iterdir())
    assert sync(run, uri=uri).complete
    assert_complete(uri, run, range(500))


@pytest.mark.slow
def test_a_sender_killed_in_the_middle_is_replaced(run, uri):
    told = Spool(run)
    sender = Sender(run, uri=uri, name="killed")
    sender.start()
    told.metrics(0, {"train/loss": 1.0})
    deadline = time.monotonic() + 60
    while not tracking.run_id_of(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sender._process is not None
    sender._process.send_signal(signal.SIGKILL)
    sender._process.wait()
    told.close()
    tell(run, range(1, 50))
    assert sender.stop(60) is True
    assert_complete(uri, run, range(50))
    assert (run / tracking.LOG_FILE).read_text() == ""


def test_only_one_sends_at_a_time(run, uri, monkeypatch):
    tell(run, range(2))
    monkeypatch.setattr(tracking, "SYNC_WAIT_S", 0.0)
    with tracking._only_sender(run, wait_s=0) as is_ours:
        assert is_ours
        done = sync(run, uri=uri)
    assert not done.complete and "another process" in done.error
    assert sync(run, uri=uri).complete


def test_sync_of_no_run_is_the_users_to_mend(tmp_path, uri):
    with pytest.raises(InputError, match="no run"):
        sync(tmp_path, uri=uri)


def test_sync_to_a_dead_server_says_so(run):
    tell(run, range(2))
    done = sync(run, uri=f"http://127.0.0.1:{closed_port()}")
    assert not done.complete and done.error and done.run_id == ""


def test_default_uri_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking.default_uri(Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    with pytest.raises(InputError, match="cannot hold"):
        tracking.default_uri(Path("50%"))


def test_system_metrics_are_finite_floats():
    found = tracking.system_metrics()
    assert {"cpu_utilization_percentage", "process_memory_usage_megabytes", "disk_usage_percentage"} <= set(found)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())


def test_gpus_are_told_of_where_torch_uses_them(monkeypatch):
    def refused(number: int) -> int:
        raise RuntimeError("not for a part of a GPU")

    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 2,
        mem_get_info=lambda number: (3e9, 4e9),
        utilization=lambda number: 70 if number else refused(number),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    found = tracking.system_metrics()
    assert found["gpu_0_memory_usage_megabytes"] == 1000.0 and found["gpu_1_memory_usage_percentage"] == 25.0
    assert found["gpu_1_utilization_percentage"] == 70.0 and "gpu_0_utilization_percentage" not in found


def test_no_mlflow_is_imported_by_those_who_train():
    code = "import sys, pipeline.tracking; print([m for m in ('mlflow', 'torch', 'sqlalchemy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.drill("MLflow's database locked")
def test_a_locked_database_delays_and_loses_nothing(run, uri):
    told = Spool(run)
    sender = Sender(run, uri=uri)
    lock = sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    sender.start()
    for step in range(100):
        told.metrics(step, {"train/loss": 1.0})
    time.sleep(8)
    assert tracking.run_id_of(run) == ""
    lock.execute("ROLLBACK")
    lock.close()
    told.close()
    assert sender.stop(60) is True
    assert_complete(uri, run, range(100))


@pytest.mark.slow
def test_a_server_that_never_answers_cannot_keep_the_sender(run):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        sender = Sender(run, uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        tell(run, range(3))
        sender.start()
        time.sleep(4)
        began = time.monotonic()
        assert sender.stop(1) is False
        assert time.monotonic() - began < 5


@pytest.mark.slow
def test_the_sender_of_a_killed_run_sends_the_rest_and_ends(run, uri):
    code = (
        "import sys, time; from pathlib import Path; from pipeline.spool import Spool; from pipeline.tracking import Sender\n"
        "run = Path(sys.argv[1]); told = Spool(run); sender = Sender(run, uri=sys.argv[2]); sender.start()\n"
        "for step in range(40): told.metrics(step, {'train/loss': 1.0})\n"
        "print(sender._process.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(run), uri]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        sender = psutil.Process(int(trainer.stdout.readline()))
        trainer.send_signal(signal.SIGKILL)
    # Whatever has adopted it may not have collected it yet.
    psutil.wait_procs([sender], timeout=45)
    assert not sender.is_running() or sender.status() == psutil.STATUS_ZOMBIE
    assert_complete(uri, run, range(40))


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.drill("MLflow killed in the middle of a run")
def test_a_server_killed_in_the_middle_of_a_run(tmp_path):
    """Training goes on, and after `sync` the series is complete, each step once, in one run."""
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    port, store = closed_port(), f"sqlite:///{tmp_path}/server.db"
    told, took = Spool(run), []
    told.params({"name": "drill"})

    def train(steps: range) -> None:
        for step in steps:
            began = time.perf_counter()
            told.metrics(step, {"train/loss": 1 / (step + 1), "train/accuracy": 0.5})
            took.append(time.perf_counter() - began)
            time.sleep(0.01)

    with report.serving(store, port, tmp_path / "server.log") as (address, server):
        sender = Sender(run, uri=address)
        sender.start()
        deadline = time.monotonic() + 30
        while not tracking.run_id_of(run) and time.monotonic() < deadline:
            time.sleep(0.1)
        first = tracking.run_id_of(run)
        train(range(100))
        os.killpg(server.pid, signal.SIGKILL)
    train(range(100, 300))
    told.artifact(run / tracking.TARGET_FILE)
    told.status("FINISHED")
    told.close()
    assert sender.stop(3) is False
    assert statistics.median(took) < 1e-3

    with report.serving(store, port, tmp_path / "server.log") as (address, _):
        done = sync(run, uri=address)
        assert done == (first, done.sent, (), True, "")
        assert_complete(address, run, range(300))
        found = client_of(address).get_run(first)
        assert found.info.status == "FINISHED" and found.data.params == {"name": "drill"}
        assert [file.path for file in client_of(address).list_artifacts(first)] == [tracking.TARGET_FILE]
        assert sync(run, uri=address).sent == 0
