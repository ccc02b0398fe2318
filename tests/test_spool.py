"""The spool: whole after a kill at any byte, each step once after a resume, nothing cut off unseen."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import spool
from pipeline.errors import InputError
from pipeline.spool import Spool, history, records

ROOT = Path(__file__).parents[1]


def filled(run: Path, steps: range) -> None:
    told = Spool(run)
    for step in steps:
        told.metrics(step, {"train/loss": 1 / (step + 1), "train/accuracy": 0.5})
    told.close()


def test_a_file_cut_at_any_byte_of_its_last_line_loses_that_line_alone(tmp_path):
    filled(tmp_path, range(3))
    whole = (tmp_path / spool.FILE).read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for end in range(last, len(whole)):
        (tmp_path / spool.FILE).write_bytes(whole[:end])
        filled(tmp_path, range(2, 4))
        assert list(history(tmp_path).series["train/loss"]) == [0, 1, 2, 3]
        assert all(record["kind"] != "damaged" for _, record in records(tmp_path))


def test_a_torn_line_longer_than_the_block_it_is_sought_in(tmp_path):
    filled(tmp_path, range(2))
    with (tmp_path / spool.FILE).open("ab") as file:
        file.write(b'{"kind":"params","values":{"a":"' + b"x" * 200_000)
    filled(tmp_path, range(2, 3))
    assert list(history(tmp_path).series["train/loss"]) == [0, 1, 2]


def test_a_killed_writer_loses_no_metric_that_it_was_told(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pipeline.spool import Spool\n"
        "told = Spool(Path(sys.argv[1]))\n"
        "for step in range(10**9): told.metrics(step, {'loss': 0.5}); print(step, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(200)]
        assert spool.is_open(tmp_path)
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout if line.endswith(b"\n")]
    assert not spool.is_open(tmp_path)
    Spool(tmp_path).close()
    kept = list(history(tmp_path).series["loss"])
    assert kept == list(range(len(kept)))
    assert set(told) <= set(kept)


def test_a_resumed_run_tells_steps_again_and_the_series_has_each_once(tmp_path):
    filled(tmp_path, range(0, 25))
    told = Spool(tmp_path)
    for step in range(20, 30):
        told.metrics(step, {"train/loss": 99.0})
        told.metrics(step, {"validation/score": 0.5})
    told.close()
    series = history(tmp_path).series
    assert list(series["train/loss"]) == list(range(30))
    assert [step for step, value in series["train/loss"].items() if value == 99.0] == list(range(25, 30))
    assert list(series["validation/score"]) == list(range(20, 30))
    steps = [r["step"] for _, r in records(tmp_path) if r["kind"] == "metrics" and "train/loss" in r["values"]]
    assert steps == list(range(30))


def test_values_that_are_not_finite_come_back(tmp_path):
    told = Spool(tmp_path)
    for step, value in enumerate([math.nan, math.inf, -math.inf, np.float32(0.25), 3]):
        told.metrics(step, {"loss": value})
    told.close()
    values = list(history(tmp_path).series["loss"].values())
    assert math.isnan(values[0]) and values[1:] == [math.inf, -math.inf, 0.25, 3.0]
    for line in (tmp_path / spool.FILE).read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_changed_param_keeps_its_first_value_and_tells_the_other(tmp_path):
    for workers in ("2", "2", "3"):
        told = Spool(tmp_path)
        told.params({"workers": workers, "name": "x"})
        told.close()
    past = history(tmp_path)
    assert past.params == {"workers": "2", "name": "x"}
    assert past.tags == {"changed.workers": "3"}
    assert sum(record["kind"] == "params" for _, record in records(tmp_path)) == 1


def test_a_value_too_long_for_mlflow_is_kept_whole_in_a_file(tmp_path):
    first, second = "a" * 7000, "a" * 6999 + "b"
    for value in (first, first, second):
        told = Spool(tmp_path)
        told.params({"long/one": value})
        told.close()
    past = history(tmp_path)
    assert len(past.params["long/one"]) == 6000 and "params/long_one.txt" in past.params["long/one"]
    assert (tmp_path / "params/long_one.txt").read_text() == first
    assert past.tags["changed.long/one"] == second
    assert [record["path"] for _, record in records(tmp_path) if record["kind"] == "artifact"] == [
        "params/long_one.txt"
    ]


def test_status_and_tags_are_told_when_they_change(tmp_path):
    for status in ("RUNNING", "FAILED", "RUNNING", "FINISHED"):
        told = Spool(tmp_path)
        told.tags({"host": "a"})
        told.status(status)
        told.close()
    kinds = [record["kind"] for _, record in records(tmp_path)]
    assert kinds.count("tags") == 1 and kinds.count("status") == 3
    assert history(tmp_path).status == "FINISHED"


def test_a_full_disk_stops_nothing_and_loses_nothing_once_there_is_room(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from pipeline.spool import Spool\n"
        "told = Spool(Path(sys.argv[1])); soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))\n"
        "for step in range(100): told.metrics(step, {'loss': 0.5})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))\n"
        "told.metrics(100, {'loss': 0.5}); told.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("wait in memory") == 1
    assert list(history(tmp_path).series["loss"]) == list(range(101))
    assert all(record["kind"] != "damaged" for _, record in records(tmp_path))


def test_a_damaged_line_is_named_and_costs_no_other(tmp_path):
    filled(tmp_path, range(3))
    lines = (tmp_path / spool.FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / spool.FILE).write_bytes(b"".join([*lines[:2], b"\x00\xff]\n", b"7\n", *lines[2:]]))
    assert [record["kind"] for _, record in records(tmp_path)].count("damaged") == 2
    assert list(history(tmp_path).series["train/loss"]) == [0, 1, 2]


def test_another_format_and_an_unwritable_place_are_the_users_to_mend(tmp_path):
    (tmp_path / spool.FILE).write_text('{"t":1,"kind":"run","format":99,"id":"a"}\n')
    with pytest.raises(InputError, match="format 99"):
        Spool(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        Spool(tmp_path / "missing")


@pytest.mark.parametrize(
    ("key", "plain"),
    [("train/loss", "train/loss"), ("a[0] é=%", "a_0_ é__"), ("../x//y", "_/x/_/y"), ("k" * 300, "k" * 250), ("", "_")],
)
def test_keys_become_what_mlflow_takes(key, plain):
    assert spool.plain_key(key) == plain
