"""A sweep whose driver is killed goes on: nothing twice, and the same winner as a sweep that nobody killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from drills.drilled import ROOT, until
from test_sweep import tree_of

from pipeline.ledger import FILE
from pipeline.shipment import client_of, read_json

pytestmark = [pytest.mark.slow, pytest.mark.ray]
TRIALS, KILLED_AFTER = 12, 5


def started(file: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline.cli", "sweep", str(file), *options]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def ended(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    return said


def events(runs: Path, kind: str) -> list[dict]:
    path = runs / "small" / FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for line in lines if line.endswith("}") and (event := json.loads(line))["event"] == kind]


def killed(process: subprocess.Popen[str]) -> None:
    """The driver and all that it started, as when its machine is gone."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.drill("SIGKILL of a sweep's driver after five of twelve trials")
def test_a_killed_sweep_goes_on_with_nothing_twice_and_the_same_winner(glyphs_root, tmp_path):
    files = {}
    for name in ("whole", "broken"):
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(tree_of(glyphs_root, tmp_path / name, {"trials": TRIALS, "seed": 1})))
    ended(started(files["whole"]))
    process = started(files["broken"])
    until(
        lambda: len(events(tmp_path / "broken", "ended")) >= KILLED_AFTER or process.poll() is not None, "five trials"
    )
    assert process.poll() is None, process.communicate()[0]
    killed(process)
    before = events(tmp_path / "broken", "ended")
    said = ended(started(files["broken"], "--resume", "small"))
    whole, broken = (read_json(tmp_path / name / "small" / "result.json") for name in ("whole", "broken"))
    known = ("number", "state", "point", "score", "steps")
    assert [[row[k] for k in known] for row in broken["trials"]] == [[row[k] for k in known] for row in whole["trials"]]
    assert broken["best"] == whole["best"] and len(before) < TRIALS
    # What had ended was not begun again, and every trial ended once.
    ends = [event["trial"] for event in events(tmp_path / "broken", "ended")]
    assert sorted(ends) == list(range(TRIALS)) and said.count("finished: ") == TRIALS - len(before)
    begun = [event["trial"] for event in events(tmp_path / "broken", "begun")]
    assert all(begun.count(event["trial"]) == 1 for event in before)
    client = client_of(f"sqlite:///{tmp_path / 'broken' / 'mlflow.db'}")
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "metashard"]
    runs = client.search_runs([experiment], max_results=100)
    names = sorted(run.info.run_name for run in runs if "mlflow.parentRunId" in run.data.tags)
    assert names == [f"small-{number:04d}" for number in range(TRIALS)] and len(runs) == TRIALS + 1


@pytest.mark.drill("Ctrl-C in a sweep")
def test_a_sweep_that_somebody_stops_saves_its_trials_and_goes_on(glyphs_root, tmp_path):
    file = tmp_path / "s.yaml"
    tree = tree_of(glyphs_root, tmp_path / "runs", {"trials": 2, "concurrent": 1}, meta={"steps": 400})
    tree["validation"]["every"] = tree["checkpoint"]["every"] = 100
    file.write_text(yaml.safe_dump(tree))
    process = started(file)
    until(lambda: events(tmp_path / "runs", "value") or process.poll() is not None, "the first value")
    process.send_signal(signal.SIGINT)
    said = ended(process)
    assert "stopping all trials" in said and "go on with: metashard sweep CONFIG --resume" in said
    assert not events(tmp_path / "runs", "ended")
    newest = max((tmp_path / "runs" / "small" / "trials" / "0000" / "checkpoints").iterdir()).name
    assert int(newest.removeprefix("step-")) >= 100
    # In the middle of a hundred: what was done is saved where it was, not at the last checkpoint before.
    said = ended(started(file, "--resume", "small"))
    assert said.count("finished: ") == 2
