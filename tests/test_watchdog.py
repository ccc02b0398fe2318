"""A worker in which nothing moves ends with words; the same failure twice ends the run."""

import json
import threading
import time

import pytest
from gloo import work_here
from small import small_config

from pipeline import checkpoint, failures, train, worker
from pipeline.archive import Folder
from pipeline.config import dump
from pipeline.errors import RunFailed
from pipeline.failures import Failure
from pipeline.watchdog import STUCK, Watchdog

LIMIT_S = 20


def watchdog(run, ended: list[int], *, rank: int = 0, world: int = 1, limit_s: float = 0.1) -> Watchdog:
    return Watchdog(Folder(run), rank=rank, world=world, limit_s=limit_s, hearing_s=0.2, end=ended.append)


def until(found) -> None:
    limit = time.monotonic() + LIMIT_S
    while not found():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_what_does_not_move_ends_after_its_stacks_were_written(tmp_path):
    ended: list[int] = []
    with watchdog(tmp_path, ended) as dog:
        dog.moved(41, "computing")
        until(lambda: ended)
    assert ended == [STUCK]
    stacks = (tmp_path / "stacks" / "rank-0.txt").read_text()
    assert stacks.startswith("41 computing\n") and "in until" in stacks and "in _watch" in stacks
    (failure,) = failures.since_start(tmp_path)
    assert failure.step == 41 and "nothing moved for 0.1 s: rank 0: computing in meta-step 42" in failure.said


def test_what_moves_is_left_alone(tmp_path):
    ended: list[int] = []
    with watchdog(tmp_path, ended, limit_s=0.3) as dog:
        for step in range(40):
            dog.moved(step, "computing")
            time.sleep(0.02)
    assert not ended and not (tmp_path / "stacks").exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]


def test_what_moves_while_the_ranks_are_heard_goes_on(tmp_path):
    ended: list[int] = []
    with watchdog(tmp_path, ended) as dog:
        until(lambda: (tmp_path / "stacks" / "rank-0.txt").exists())
        dog.moved(1, "computing")
        until(lambda: not (tmp_path / "stacks" / "rank-0.txt").exists())
        assert not ended and not failures.since_start(tmp_path)
        until(lambda: ended)  # it is watched on
    assert ended == [STUCK]


@pytest.mark.drill("a rank skips a barrier: named")
def test_the_rank_that_skipped_a_barrier_and_the_one_that_is_frozen_are_named(tmp_path):
    ended: list[int] = []
    with watchdog(tmp_path, ended, rank=0, world=3) as first, watchdog(tmp_path, ended, rank=1, world=3) as second:
        first.moved(42, "waiting for the other ranks")
        second.moved(41, "saving")
        until(lambda: len(ended) == 2)
    (failure,) = failures.since_start(tmp_path)
    assert "rank 0: waiting for the other ranks in meta-step 43" in failure.said
    assert "rank 1: saving in meta-step 42" in failure.said
    assert "rank 2: says nothing, as one that is frozen" in failure.said


def test_the_same_failure_of_a_rank_twice_is_stubborn(tmp_path):
    same = Failure(7, 1, "ValueError: x")
    assert failures.stubborn(tmp_path) == ""
    failures.note(tmp_path, same)
    failures.note(tmp_path, same._replace(rank=0))
    assert failures.stubborn(tmp_path) == ""
    failures.note(tmp_path, same)
    assert "meta-step 8 failed 2 times in the same way, and would again: ValueError: x" in failures.stubborn(tmp_path)


@pytest.mark.parametrize("other", [Failure(8, 1, "ValueError: x"), Failure(7, 1, "ValueError: y")])
def test_another_failure_or_another_step_is_not(tmp_path, other):
    failures.note(tmp_path, Failure(7, 1, "ValueError: x"))
    failures.note(tmp_path, other)
    assert failures.stubborn(tmp_path) == "" and len(failures.since_start(tmp_path)) == 2


def test_a_new_driver_and_half_a_line_count_for_nothing(tmp_path):
    for _ in range(2):
        failures.note(tmp_path, Failure(7, 1, "x"))
    with (tmp_path / failures.FILE).open("a") as file:
        file.write('{"step": 7, "ra')
    assert failures.stubborn(tmp_path)
    failures.begin(tmp_path)
    assert json.loads((tmp_path / failures.FILE).read_text().splitlines()[-1])["start"]
    assert not failures.stubborn(tmp_path)


@pytest.mark.drill("a bug fails twice at one meta-step: the run ends")
def test_a_worker_notes_its_error_and_does_not_try_a_third_time(tmp_path, glyphs_root, monkeypatch):
    """As under Ray, which starts the workers anew after each failure."""
    config = small_config(glyphs_root, tmp_path)
    real, run = worker.build_outer.rate, tmp_path / "run"

    def rate(config, step):
        if step == 3:
            raise ZeroDivisionError("a bug\nof many lines")
        return real(config, step)

    monkeypatch.setattr(worker.build_outer, "rate", rate)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            work_here(dump(config), str(run))
    work_here(dump(config), str(run))
    assert failures.since_start(run) == [Failure(3, 0, "ZeroDivisionError: a bug")] * 2
    assert checkpoint.latest(run / "checkpoints").step == 3


def test_a_run_that_fails_stubbornly_says_so_and_may_be_tried_by_a_new_driver(tmp_path, glyphs_root, monkeypatch):
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)
    real, bugs = worker.work, [True]

    def twice(job, **given):
        for _ in range(2 if bugs.pop() else 0):
            job.archive.note(Failure(3, 0, "ValueError: x"))
        real(job, **given)
        bugs.append(False)

    monkeypatch.setattr(train, "work", twice)
    config = small_config(glyphs_root, tmp_path)
    with pytest.raises(RunFailed, match=r"meta-step 4 failed 2 times .* ValueError: x"):
        train.fit(config, name="r")
    assert train.fit(config, name="r", resume=tmp_path / "r").result
