"""A run's copy in a store: whole whenever it is looked at, and enough for another machine to go on to the same bits."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import s3 as s3_kit
from gloo import work_here
from small import small_config
from teachable import class_folders

from pipeline import adapt, checkpoint, lease, mirror, preflight, report, train
from pipeline.archive import CONFIG_FILE, Folder
from pipeline.cli import app
from pipeline.config import dump
from pipeline.data import remote
from pipeline.data.root import Url
from pipeline.data.store import OtherStore
from pipeline.errors import InputError
from pipeline.spool import history

LIMIT_S = 60
EVERY = {"every": 2, "keep": 9}


@pytest.fixture(scope="session")
def bucket(s3_server) -> str:
    s3_kit.put(s3_server, "/runs")
    return "s3://runs"


@pytest.fixture
def copies(s3, bucket, request) -> Url:
    """A folder of the store for one test."""
    return Url(f"{bucket}/{request.node.name.partition('[')[0]}-{time.monotonic_ns()}")


@pytest.fixture
def untracked(monkeypatch) -> None:
    """MLflow's part takes seconds and is not looked at."""
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, glyphs_root) -> Path:
    place = tmp_path_factory.mktemp("unbroken")
    work_here(dump(small_config(glyphs_root, place, checkpoint=EVERY)), str(place / "run"))
    return place / "run"


def names(copy: Url) -> set[str]:
    return {str(url).removeprefix(f"{copy}/") for url in remote.listed(copy)}


def same_run(run: Path, unbroken: Path) -> bool:
    one, two = (checkpoint.latest(each / "checkpoints").learner for each in (run, unbroken))
    losses, planned = (history(each).series["train/loss"] for each in (run, unbroken))
    return losses == planned and one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def short_of(run: Path, step: int, copy: Path) -> Path:
    """The run as it was after the checkpoint of `step`."""
    shutil.copytree(run, copy)
    for path in checkpoint.all_in(copy / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    (copy / CONFIG_FILE).write_text(json.dumps(checkpoint.latest(copy / "checkpoints").config))
    return copy


def test_a_run_is_in_the_store_and_comes_back_whole(copies, untracked, glyphs_root, tmp_path, unbroken):
    config = small_config(glyphs_root, tmp_path / "one", mirror=str(copies), checkpoint=EVERY)
    run = train.fit(config, name="r").folder
    assert same_run(run, unbroken)
    kept = names(copies / "r")
    assert {"config.yaml", "spool.jsonl", "result.json", "lease.json", "pictures/episode-best.png"} <= kept
    assert not {"lock", "mirror.json", "spool.sent.json", "stop"} & kept
    assert {path.name for path in checkpoint.all_in(run / "checkpoints")} == {
        name.split("/")[1] for name in kept if name.endswith("/COMPLETE")
    }
    other = mirror.fetch(copies / "r", tmp_path / "two")
    assert other == tmp_path / "two" / "r" and same_run(other, unbroken)
    assert (other / "result.json").read_bytes() == (run / "result.json").read_bytes()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and s3_kit.SECRET.encode() in path.read_bytes()]


def test_a_learner_is_taught_from_the_store(copies, untracked, glyphs_root, tmp_path):
    train.fit(small_config(glyphs_root, tmp_path / "one", mirror=str(copies)), name="r")
    shown = class_folders(tmp_path / "images")
    made = adapt.adapt(str(copies / "r"), shown, tmp_path / "m", runs=tmp_path / "two")
    own = adapt.adapt("r", shown, tmp_path / "n", runs=tmp_path / "one")
    assert made.model.origin["sha256"] == own.model.origin["sha256"]
    assert made.model.calibration == own.model.calibration


def test_another_machine_goes_on_and_the_first_one_follows(copies, untracked, glyphs_root, tmp_path, unbroken, capsys):
    """As after a machine was lost: its folder is older than the store, whatever it holds."""
    one, two = (
        small_config(glyphs_root, tmp_path / place, mirror=str(copies), checkpoint=EVERY) for place in ("one", "two")
    )
    first = short_of(unbroken, 2, tmp_path / "one" / "r")
    with lease.Lease(first, lost=print, board=mirror.StoreBoard(copies / "r"), host="one") as held:
        mirror.held(first, copies / "r", held.nonce)
        assert mirror.catch_up(first)
    second = train.fit(two, name="r").folder
    assert same_run(second, unbroken)
    with pytest.raises(
        InputError, match=f"another machine has gone on with it; bring that: metashard fetch {copies}/r"
    ):
        mirror.catch_up(first)
    with pytest.raises(InputError, match="1 of 1 runs have no complete copy"):
        list(report.sync(tmp_path / "one", None, f"sqlite:///{tmp_path}/mlflow.db"))
    assert checkpoint.latest(first / "checkpoints").step == 2
    train.fit(one, name="r", resume=first)
    assert same_run(first, unbroken) and (first / "result.json").exists()


def test_a_folder_that_is_ahead_of_its_copy_is_gone_on_with(copies, untracked, glyphs_root, tmp_path, unbroken):
    config = small_config(glyphs_root, tmp_path, mirror=str(copies), checkpoint=EVERY)
    run = short_of(unbroken, 2, tmp_path / "r")
    with lease.Lease(run, lost=print, board=mirror.StoreBoard(copies / "r"), host="x") as held:
        mirror.held(run, copies / "r", held.nonce)
        mirror.catch_up(run)
    shutil.copytree(unbroken / "checkpoints" / "step-00000004", run / "checkpoints" / "step-00000004")
    mirror.bring(run, copies / "r", before=held.nonce)
    assert checkpoint.latest(run / "checkpoints").step == 4
    mirror.bring(run, copies / "r", before="another")
    assert checkpoint.latest(run / "checkpoints").step == 2
    train.fit(config, name="r", resume=run)
    assert same_run(run, unbroken)


def test_a_run_that_gets_a_mirror_later_keeps_what_it_has(copies, untracked, glyphs_root, tmp_path, unbroken):
    """The store knows nothing of it: nothing is brought, everything is sent."""
    config = small_config(glyphs_root, tmp_path, mirror=str(copies), checkpoint=EVERY)
    run = short_of(unbroken, 2, tmp_path / "r")
    kept = [path.stat().st_ino for path in checkpoint.all_in(run / "checkpoints")]
    train.fit(config, name="r", resume=run)
    assert same_run(run, unbroken)
    assert [path.stat().st_ino for path in checkpoint.all_in(run / "checkpoints")[:2]] == kept, "they were made anew"
    assert {"checkpoints/step-00000000/COMPLETE", "checkpoints/step-00000002/COMPLETE"} <= names(copies / "r")


def test_another_run_of_the_same_id_is_neither_overwritten_nor_gone_on_with(
    copies, untracked, glyphs_root, tmp_path, unbroken
):
    mirror.Mirror(short_of(unbroken, 6, tmp_path / "theirs"), copies / "r").send()
    work_here(dump(small_config(glyphs_root, tmp_path, checkpoint=EVERY)), str(tmp_path / "r"))
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(InputError, match=f"{copies}/r: is another run than {tmp_path}/r; choose another --run"):
        mirror.fetch(copies / "r", tmp_path)
    (tmp_path / "r" / CONFIG_FILE).write_text(json.dumps(dump(small_config(glyphs_root, tmp_path))))
    with pytest.raises(InputError, match="is another run than"):
        train.fit(small_config(glyphs_root, tmp_path, mirror=str(copies), checkpoint=EVERY), resume=tmp_path / "r")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_driver_that_was_taken_over_sends_nothing_more(copies, tmp_path, unbroken):
    run, board = short_of(unbroken, 2, tmp_path / "r"), mirror.StoreBoard(copies / "r")
    with lease.Lease(run, lost=print, board=board, host="one") as held:
        mirror.held(run, copies / "r", held.nonce)
        sender = mirror.Mirror(run, copies / "r")
        sender.send()
        board.write({"host": "two", "pid": 1, "nonce": "x", "beat": 0})
        (run / "spool.jsonl").write_text("stale")
        with pytest.raises(InputError, match="another machine has gone on"):
            sender.send()
    assert remote.content(copies / "r" / "spool.jsonl") != b"stale"


@pytest.mark.drill("the machine is lost between two files of a copy to a store")
def test_a_copy_that_was_cut_off_anywhere_is_one_to_go_on_from(copies, glyphs_root, tmp_path, unbroken, monkeypatch):
    """After every single request; what was pruned meanwhile and what was made again belong to it."""
    run = short_of(unbroken, 2, tmp_path / "run")
    shutil.rmtree(checkpoint.path_of(run / "checkpoints", 0))
    sender = mirror.Mirror(run, copies / "r")
    sender.send()
    shutil.copytree(unbroken / "checkpoints" / "step-00000004", run / "checkpoints" / "step-00000004")
    changed = checkpoint.latest(run / "checkpoints")
    checkpoint.save(run / "checkpoints", changed._replace(state={**changed.state, "again": 1}))
    with Folder(run) as archive:
        archive.metrics(40, {"train/loss": 1.0})
    checkpoint.prune(run / "checkpoints", keep=1, needed=())
    real, left = (remote.put, remote.remove), [0]

    def some(do):
        def once(*given):
            left[0] -= 1
            if left[0] < 0:
                raise InputError("cut off")
            do(*given)

        return once

    monkeypatch.setattr(remote, "put", some(real[0]))
    monkeypatch.setattr(remote, "remove", some(real[1]))
    seen = set()
    for number in range(40):
        left[0] = 1
        try:
            sender.send()
        except InputError:
            pass
        other = mirror.fetch(copies / "r", tmp_path / f"{number}")
        newest = checkpoint.latest(other / "checkpoints")
        assert not checkpoint.faults(other / "checkpoints") and history(other).id
        seen.add(newest.step)
        if newest.step == 4:
            assert 40 in history(other).series["train/loss"], "a checkpoint is there before its metrics"
    assert seen == {2, 4} and sender.send() == 0
    assert [path.name for path in checkpoint.all_in(other / "checkpoints")] == ["step-00000004"]


@pytest.mark.drill("a store that does not answer while a run is copied to it")
def test_a_store_that_is_away_holds_up_nothing(copies, untracked, glyphs_root, tmp_path, unbroken, monkeypatch, capsys):
    real = remote.put

    def put(url, content):
        if url.name == "learner.safetensors":
            raise InputError(f"{url}: cannot be written, tried 6 times in 1 s (HTTP 503); is the store up?")
        real(url, content)

    monkeypatch.setattr(remote, "put", put)
    config = small_config(glyphs_root, tmp_path, mirror=str(copies), checkpoint=EVERY)
    run = train.fit(config, name="r").folder
    said = capsys.readouterr().err
    assert same_run(run, unbroken) and "has not got everything" in said and "metashard sync r" in said
    assert not [name for name in names(copies / "r") if name.endswith("COMPLETE")]
    monkeypatch.setattr(remote, "put", real)
    told = "\n".join(report.sync(tmp_path, Path("r"), f"sqlite:///{tmp_path}/mlflow.db"))
    assert "files sent to its copy; complete" in told
    assert same_run(mirror.fetch(copies / "r", tmp_path / "two"), unbroken)


@pytest.mark.drill("two drivers of one run with a copy in a store, on two machines")
def test_two_drivers_on_two_machines(copies, tmp_path):
    board = mirror.StoreBoard(copies / "r")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    fast = {"beat_s": 0.05, "silence_s": 0.5, "board": board, "lost": lambda: None}
    with lease.Lease(tmp_path / "one", host="one", **fast):
        with pytest.raises(InputError, match="is being trained by process"), lease.Lease(tmp_path / "two", **fast):
            pass
    with lease.Lease(tmp_path / "two", host="two", **fast) as second:
        assert second.before


@pytest.mark.slow
@pytest.mark.drill("SIGKILL of a driver whose machine is lost, resumed from the store")
def test_a_lost_machine(copies, untracked, s3_server, glyphs_root, tmp_path, unbroken):
    """Only the store is left of it; the one after it waits until the dead one has been silent for long enough."""
    sections = {"meta": {"steps": 400}, "checkpoint": {"every": 20, "keep": 2}, "validation": {"every": 200}}
    whole = small_config(glyphs_root, tmp_path / "whole", **sections)
    work_here(dump(whole), str(tmp_path / "whole" / "r"))
    config = small_config(glyphs_root, tmp_path / "one", mirror=str(copies), **sections)
    (tmp_path / "run.yaml").write_text(json.dumps(dump(config)))
    command = [sys.executable, "-m", "pipeline.cli", "train", str(tmp_path / "run.yaml"), "--run", "r"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + LIMIT_S
        while not any("step-00000" in name and name.endswith("COMPLETE") for name in _later(copies)):
            assert driver.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
    finally:
        driver.kill()
        driver.wait()
    shutil.rmtree(tmp_path / "one")
    other = small_config(glyphs_root, tmp_path / "two", mirror=str(copies), **sections)
    began = time.monotonic()
    run = train.fit(other, name="r").folder
    assert time.monotonic() - began > lease.SILENCE_S
    assert same_run(run, tmp_path / "whole" / "r")


def _later(copies: Url) -> list[str]:
    return [name for name in names(copies / "r") if "step-00000000" not in name]


def test_what_cannot_be_a_mirror(s3, bucket, glyphs_root, tmp_path, untracked):
    with pytest.raises(
        InputError, match=r"mirror: 'runs/x' is no URL, as s3://bucket/runs; a shared folder can be `runs`"
    ):
        small_config(glyphs_root, tmp_path, mirror="runs/x")
    with pytest.raises(InputError, match="a URL holds no user, password"):
        small_config(glyphs_root, tmp_path, mirror="s3://me:secret@bucket/runs")
    with pytest.raises(InputError, match="http can only be read from; write to s3:// or gs://"):
        mirror.check(Url("http://127.0.0.1:9/runs"))
    absent = small_config(glyphs_root, tmp_path, mirror="s3://no-such-bucket/runs")
    with pytest.raises(InputError, match="s3://no-such-bucket/runs"):
        train.fit(absent)
    assert not list(tmp_path.glob("*/config.yaml"))
    lines = {line.what: line for line in preflight.storage(absent)}
    assert not lines["storage"].remedy and "s3://no-such-bucket/runs" in lines["mirror"].remedy
    lines = preflight.storage(small_config(glyphs_root, tmp_path, mirror=bucket))
    assert not any(line.remedy for line in lines) and len(lines) == 2


def test_a_run_that_is_not_there_is_named_with_those_that_are(copies, tmp_path, unbroken, capsys):
    mirror.Mirror(short_of(unbroken, 6, tmp_path / "run"), copies / "mine").send()
    with pytest.raises(InputError, match="no run there; what is there: mine"):
        mirror.fetch(copies, tmp_path)
    with pytest.raises(InputError, match=f"{copies}/other: no run there; what is there: nothing"):
        mirror.fetch(copies / "other", tmp_path)
    with pytest.raises(SystemExit) as left:
        app(["fetch", f"{copies}/mine", "--runs", str(tmp_path)])
    assert left.value.code == 0 and capsys.readouterr().out.strip() == str(tmp_path / "mine")


def test_resuming_an_unknown_run_leaves_nothing(copies, glyphs_root, tmp_path):
    config = small_config(glyphs_root, tmp_path / "runs", mirror=str(copies))
    with pytest.raises(InputError, match="not a run's folder"):
        train.fit(config, resume=tmp_path / "runs" / "unknown")
    assert not (tmp_path / "runs").exists() and not names(copies)


def test_a_run_that_is_trained_here_is_not_fetched_over(copies, tmp_path, unbroken):
    mirror.Mirror(short_of(unbroken, 6, tmp_path / "run"), copies / "r").send()
    (tmp_path / "r").mkdir()
    with lease.locked(tmp_path / "r"), pytest.raises(InputError, match="is being trained by another process"):
        mirror.fetch(copies / "r", tmp_path)


def test_other_stores_are_written_as_they_are_read():
    url, kind = Url("memory://bucket/folder"), OtherStore("memory")
    for name in ("a", "b/c"):
        kind.put(url / name, name.encode(), timeout_s=9)
    assert {str(found) for found in kind.listed(url, timeout_s=9)} == {f"{url}/a", f"{url}/b/c"}
    kind.remove(url / "a", timeout_s=9)
    kind.remove(url / "a", timeout_s=9)
    assert list(kind.listed(url, timeout_s=9)) == [url / "b/c"]
    kind.remove(url / "b/c", timeout_s=9)
