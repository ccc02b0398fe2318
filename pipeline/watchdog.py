"""Ends a worker in which nothing moves, after its stacks and where all ranks are were written down."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipeline import failures
from pipeline.failures import Failure

FOLDER = "stacks"
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
    rank that is frozen cannot write, and is named for its silence. A hang inside compiled code that keeps Python's lock
    is noticed by the other ranks only.
    """

    def __init__(
        self,
        run: Path,
        *,
        rank: int,
        world: int,
        limit_s: float,
        hearing_s: float = HEARING_S,
        end: Callable[[int], None] = os._exit,
    ):
        self.run, self.rank, self.world, self.limit_s, self.hearing_s = run, rank, world, limit_s, hearing_s
        self.place = Place(0, "starting", time.monotonic())
        self._end = end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._path(self.rank).unlink(missing_ok=True)
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
        self._path(self.rank).parent.mkdir(exist_ok=True)
        with self._path(self.rank).open("w") as file:
            file.write(f"{place.step} {place.doing}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        # All ranks wait for the slowest, so that they bark together; one that moves after all ends nothing.
        if self._over.wait(self.hearing_s) or self.place != place:
            self._path(self.rank).unlink()
            return False
        heard = {rank: self._heard(rank) for rank in range(self.world)}
        if self.rank == min(rank for rank, said in heard.items() if said):
            failures.note(self.run, Failure(place.step, self.rank, self._told(heard)))
        self._end(STUCK)
        return True

    def _heard(self, rank: int) -> str:
        try:
            return self._path(rank).read_text().partition("\n")[0]
        except FileNotFoundError:
            return ""

    def _told(self, heard: dict[int, str]) -> str:
        places = "; ".join(f"rank {rank}: {_spoken(said)}" for rank, said in heard.items())
        return f"nothing moved for {self.limit_s:g} s: {places}; stacks in {self.run / FOLDER}"

    def _path(self, rank: int) -> Path:
        return self.run / FOLDER / f"rank-{rank}.txt"


def _spoken(said: str) -> str:
    if not said:
        return "says nothing, as one that is frozen"
    step, doing = said.split(" ", 1)
    return f"{doing} in meta-step {int(step) + 1}"
