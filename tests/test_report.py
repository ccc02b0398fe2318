"""The verbs `runs`, `sync` and `ui`: what they tell, and what they refuse."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline import report, tracking
from pipeline.errors import InputError
from pipeline.spool import FILE, KIND, Spool

ROOT = Path(__file__).parents[1]


def make_run(root: Path, name: str, *, status: str, silent_s: float = 0) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    told = Spool(folder)
    told.params({"name": "omniglot", "meta.steps": "40"})
    for step in range(1, 31):
        told.metrics(step, {"train/loss": 1.0})
        if step % 10 == 0:
            told.metrics(step, {"validation/score": 0.9 - abs(step - 20) / 100})
    told.status(status)
    told.close()
    then = (folder / FILE).stat().st_mtime - silent_s
    os.utime(folder / FILE, (then, then))
    return folder


def test_runs_are_read_from_their_folders(tmp_path, capsys):
    done = make_run(tmp_path, "a", status="FINISHED")
    score = {"accuracy": {"mean": 0.8125, "interval": 0.01, "episodes": 600}}
    result = {"test": {"inductive": score, "metric": "accuracy"}, "mode": "inductive"}
    (done / "result.json").write_text(json.dumps(result))
    make_run(tmp_path, "b", status="RUNNING")
    make_run(tmp_path, "c", status="RUNNING", silent_s=10_000)
    rows = {row.id: row for row in report.runs(tmp_path)}
    assert {name: row.status for name, row in rows.items()} == {"a": "FINISHED", "b": "RUNNING", "c": "INTERRUPTED"}
    assert rows["a"][5:] == (30, "40", 0.9, 0.8125, 0.01) and rows["a"][1:3] == ("omniglot", "training")
    report.print_runs(report.runs(tmp_path))
    lines = capsys.readouterr().out
    assert "81.25 ± 1.00 %" in lines and "30/40" in lines and "interrupted" in lines


@pytest.mark.parametrize(("kind", "what"), [("compare", "comparison of 2 runs"), ("seeds", "summary of 2 seeds")])
def test_what_several_runs_say_together_is_told_from_a_training(tmp_path, capsys, kind, what):
    (tmp_path / "x").mkdir()
    told = Spool(tmp_path / "x")
    told.params({"name": kind, "run.0": "a", "run.1": "b", "run.1.mlflow": "no run of its own"})
    told.tags({KIND: kind})
    told.status("FINISHED")
    told.close()
    (row,) = report.runs(tmp_path)
    assert row.what == what
    report.print_runs([row])
    lines = capsys.readouterr().out
    assert what in lines and "0/" not in lines


def test_a_silent_run_whose_driver_lives_is_running(tmp_path):
    folder = make_run(tmp_path, "a", status="RUNNING", silent_s=10_000)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert report.runs(tmp_path)[0].status == "RUNNING"
    assert report.runs(tmp_path)[0].status == "INTERRUPTED"


def test_no_runs_and_no_folder(tmp_path, capsys):
    report.print_runs(report.runs(tmp_path))
    assert "no runs yet" in capsys.readouterr().out
    with pytest.raises(InputError, match="no such folder"):
        report.runs(tmp_path / "missing")


def test_a_table_of_scores(capsys):
    found = {"mean": 0.5, "interval": 0.01, "episodes": 600}
    result = {"split": "test", "ways": 5, "shots": 1, "queries": 15, "step": 7}
    pooled = {"worst_decile": {"mean": 0.125, "episodes": 600}}
    scores = {"inductive": {"accuracy": found, "loss": found}, "transductive": {"accuracy": found, **pooled}}
    report.print_scores({"step-00000007": {**result, **scores}})
    lines = capsys.readouterr().out
    assert (
        "12.50 %" in lines
        and lines.count("50.00 ± 1.00 %") == 2
        and "0.50 ± 0.01" in lines
        and "600 of test 5-way 1-shot" in lines
    )


def test_sync_of_runs_names_those_that_are_not_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "GIVE_UP_AFTER", 1)
    make_run(tmp_path, "a", status="FINISHED")
    make_run(tmp_path, "b", status="FINISHED")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"http://me:secret@127.0.0.1:{probe.getsockname()[1]}"
        lines = []
        with pytest.raises(InputError, match="2 of 2 runs"):
            for line in report.sync(tmp_path, None, dead):
                lines.append(line)
        assert len(lines) == 2 and all("NOT complete" in line and "secret" not in line for line in lines)
        with pytest.raises(InputError, match="1 of 1 runs"):
            list(report.sync(tmp_path, Path("a"), dead))
    with pytest.raises(InputError, match="no run"):
        list(report.sync(tmp_path, Path("missing"), dead))


def test_ui_refuses_a_taken_port_and_a_missing_store(tmp_path, capsys):
    with pytest.raises(InputError, match="no MLflow store"):
        report.ui(tmp_path, "", 0)
    (tmp_path / "mlflow.db").write_bytes(b"")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot be had"):
            report.ui(tmp_path, "", taken.getsockname()[1])
    with pytest.raises(InputError, match="ports go from"):
        report.ui(tmp_path, "", 70000)
    report.ui(tmp_path, "http://me:secret@example.org:5000", 0)
    assert capsys.readouterr().out == "MLflow is at http://example.org:5000\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ui_serves_until_it_is_interrupted_and_leaves_nothing(tmp_path, number):
    run = make_run(tmp_path, "a", status="FINISHED")
    tracking.Sender(run, uri=tracking.default_uri(tmp_path)).stop(60)
    # Whoever runs the tests in the background has told this process, and all that it starts, to be deaf to SIGINT.
    hear = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{hear}; import sys; from pathlib import Path; from pipeline import report; report.ui(Path(sys.argv[1]), '', 0)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as shown:
        assert shown.stdout is not None
        assert "MLflow is at http://127.0.0.1:" in shown.stdout.readline()
        servers = psutil.Process(shown.pid).children(recursive=True)
        assert servers
        shown.send_signal(number)
        try:
            assert shown.wait(20) == 0
        finally:
            shown.kill()
    gone, alive = psutil.wait_procs(servers, timeout=5)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
