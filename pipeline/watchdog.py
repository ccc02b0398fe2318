"""Ends a worker in which nothing moves, after its stacks and where all ranks are were written down."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import NamedTuple

from pipeline.archive import STACKS, Archive
from pipeline.failures import Failure

STUCK = 86
"""The exit code of a worker that ended itself."""
HEARING_S = 5.0
"""How long the ranks wait for one another's words before they end."""


class Place(NamedTuple):
    """Where a rank is: meta-steps done, what it does, and since when (seconds of the monotonic clock)."""

    step: int
    doing: str
    since_s: float


class Watchdog:
    """Watches one worker from a thread while the block runs; `moved` tells it that something did.

    When nothing moved for `limit_s`, the stacks of all threads go to RUN/stacks/rank-N.txt, the lowest rank that still
    can writes down in RUN/failures.jsonl where every rank is, and the process ends, so that Ray starts the group anew. A
    rank that is frozen cannot say anything, and is named for that. A hang inside compiled code that keeps Python's lock
    is noticed by the other ranks only.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        rank: int,
        world: int,
        limit_s: float,
        hearing_s: float = HEARING_S,
        end: Callable[[int], None] = os._exit,
    ):
        self.archive, self.rank, self.world, self.limit_s, self.hearing_s = archive, rank, world, limit_s, hearing_s
        self.place = Place(0, "starting", time.monotonic())
        self._end = end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.archive.say(self.rank, "")
        self.moved(0, "starting")
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def moved(self, step: int, doing: str) -> None:
        """After `step` meta-steps this is begun."""
        self.place = Place(step, doing, time.monotonic())

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.limit_s / 4)):
            if time.monotonic() - self.place.since_s > self.limit_s and self._bark(self.place):
                return

    def _bark(self, place: Place) -> bool:
        """Whether it has ended the process: not if something moved meanwhile."""
        # Whatever cannot be said, as on a full disk, the process is to end.
        with suppress(OSError):
            self.archive.say(self.rank, f"{place.step} {place.doing}\n{_stacks()}")
        # All ranks wait for the slowest, so that they bark together; one that moves after all ends nothing.
        if self._over.wait(self.hearing_s) or self.place != place:
            with suppress(OSError):
                self.archive.say(self.rank, "")
            return False
        with suppress(OSError):
            heard = self.archive.heard(self.world)
            if not any(heard[: self.rank]):
                self.archive.note(Failure(place.step, self.rank, self._told(heard)))
        self._end(STUCK)
        return True

    def _told(self, heard: Sequence[str]) -> str:
        places = "; ".join(f"rank {rank}: {_spoken(said)}" for rank, said in enumerate(heard))
        return f"nothing moved for {self.limit_s:g} s: {places}; see {STACKS}/ in the run's folder"


def _stacks() -> str:
    """Those of all threads, the newest call of each first."""
    with TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def _spoken(said: str) -> str:
    if not said:
        return "says nothing, as one that is frozen"
    step, doing = said.split(" ", 1)
    return f"{doing} in meta-step {int(step) + 1}"
