"""What a run keeps: its folder as whoever trains reaches it, on this machine or (`distant.py`) on the driver's."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from pipeline import checkpoint, failures, spool
from pipeline.checkpoint import Checkpoint, Files
from pipeline.failures import Failure
from pipeline.spool import Spool

CONFIG_FILE = "config.yaml"
STOP_FILE = "stop"
STACKS = "stacks"
PLANS = "plans"
TAKEN_OVER = "taken_over"

Word = tuple[int | None, dict[str, Any]]
"""Metrics of a meta-step, or without one tags."""


class Archive(ABC):
    """A run's folder. Whatever cannot be read or written there raises OSError."""

    @abstractmethod
    def open(self) -> None:
        """Have it ready to be told of; `InputError` if it cannot be."""

    @abstractmethod
    def tags(self, values: Mapping[str, str]) -> None:
        """Notes on the run, as `Spool.tags`."""

    @abstractmethod
    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values at a meta-step, as `Spool.metrics`. What is told before a checkpoint is handed over is kept before it is."""

    @abstractmethod
    def settle(self) -> None:
        """Wait until all that was told is kept."""

    @abstractmethod
    def trace(self, name: str, content: bytes) -> None:
        """A profiler's trace, kept under this name and shown with the run."""

    @abstractmethod
    def newest(self) -> int | None:
        """The meta-step of the newest whole checkpoint, None where there is none; `InputError` if all are damaged."""

    @abstractmethod
    def load(self, step: int) -> Checkpoint:
        """A checkpoint; `InputError` if it is not whole."""

    @abstractmethod
    def files(self, step: int) -> Files:
        """A checkpoint as its files."""

    @abstractmethod
    def save(self, saved: Checkpoint, needed: Collection[int], *, keep: int) -> None:
        """Keep a checkpoint, and of the older ones so many and those of the meta-steps `needed`."""

    @abstractmethod
    def stop_asked(self) -> bool:
        """Whether the driver wishes the run to stop, as far as is known now."""

    @abstractmethod
    def stubborn(self) -> str:
        """What failed again and again, as `failures.stubborn`."""

    @abstractmethod
    def note(self, failure: Failure) -> None:
        """Keep a failure."""

    @abstractmethod
    def say(self, rank: int, stacks: str) -> None:
        """Where a rank is in which nothing moves, in the first line, and the stacks of its threads; empty: it moves again."""

    @abstractmethod
    def heard(self, world: int) -> list[str]:
        """The first lines that the ranks said, empty of those that said nothing."""

    @abstractmethod
    def plan(self, name: str) -> str:
        """What an earlier run beside this one has measured under this name; empty if nothing."""

    @abstractmethod
    def keep_plan(self, name: str, text: str) -> None:
        """Keep what was measured for later runs."""


@final
class Folder(Archive):
    """It lies on this machine. One thread tells of the run and looks things up; another may save meanwhile."""

    def __init__(self, run: Path):
        self.run = run
        self._spool: Spool | None = None
        self._series: dict[str, tuple[dict[int, float], int]] = {}

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Let go of its files."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def open(self) -> None:
        if self._spool is None:
            self._spool = Spool(self.run)

    def tags(self, values: Mapping[str, str]) -> None:
        self._opened().tags(values)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._opened().metrics(step, values)

    def settle(self) -> None:
        """Nothing to wait for: what is told is written before `tags` and `metrics` return."""

    def tell(self, words: Sequence[Word]) -> None:
        """Keep some of these, in their order; again changes nothing."""
        for step, values in words:
            if step is None:
                self.tags(values)
            else:
                self.metrics(step, values)

    def trace(self, name: str, content: bytes) -> None:
        (self.run / name).write_bytes(content)
        self._opened().artifact(self.run / name, "profile")

    def newest(self) -> int | None:
        return checkpoint.latest(self._checkpoints).step if checkpoint.all_in(self._checkpoints) else None

    def load(self, step: int) -> Checkpoint:
        return checkpoint.load(checkpoint.path_of(self._checkpoints, step))

    def files(self, step: int) -> Files:
        return checkpoint.files_of(checkpoint.path_of(self._checkpoints, step))

    def save(self, saved: Checkpoint, needed: Collection[int], *, keep: int) -> None:
        self.put(saved.step, checkpoint.encoded(saved), keep, needed)

    def put(self, step: int, files: Files, keep: int, needed: Collection[int]) -> None:
        """As `save`, by its files."""
        checkpoint.put(self._checkpoints, step, files)
        checkpoint.prune(self._checkpoints, keep=keep, needed=needed)

    def stop_asked(self) -> bool:
        return (self.run / STOP_FILE).exists()

    def best(self) -> Files:
        """The best checkpoint by validation; `InputError` if none is whole."""
        return checkpoint.files_of(checkpoint.best(self.run))

    def ask_to_stop(self, asked: bool) -> None:
        """Have the run stop after the meta-step it is in, or no longer."""
        if asked:
            (self.run / STOP_FILE).touch()
        else:
            (self.run / STOP_FILE).unlink(missing_ok=True)

    def series(self, name: str, after: int) -> dict[int, float]:
        """The values of a metric that were told of meta-steps after this one."""
        found, seen = self._series.setdefault(name, ({}, 0))
        for end, record in spool.records(self.run, seen):
            seen = end
            if record["kind"] == "metrics" and name in record["values"]:
                found[record["step"]] = float(record["values"][name])
        self._series[name] = (found, seen)
        return {step: value for step, value in found.items() if step > after}

    def adopt(self, step: int, files: Files, exchange: str) -> None:
        """Go on from another run's checkpoint, and no longer from its own; of what is best nothing is known yet.

        `exchange` is a name for this, which `took_over` gives back.
        """
        path = checkpoint.path_of(self._checkpoints, step)
        theirs = checkpoint.decoded(files, path)
        state = {**theirs.state, "best": float("-inf"), "best_step": step, "stale": 0, "pending": 0}
        for own in checkpoint.all_in(self._checkpoints):
            shutil.rmtree(own)
        checkpoint.save(self._checkpoints, theirs._replace(state=state))
        (self.run / TAKEN_OVER).write_text(exchange)

    def took_over(self) -> str:
        """The exchange from which the run goes on; empty if it took over nothing."""
        path = self.run / TAKEN_OVER
        return path.read_text() if path.exists() else ""

    def stubborn(self) -> str:
        return failures.stubborn(self.run)

    def note(self, failure: Failure) -> None:
        failures.note(self.run, failure)

    def say(self, rank: int, stacks: str) -> None:
        if stacks:
            self._said(rank).parent.mkdir(exist_ok=True)
            self._said(rank).write_text(stacks)
        else:
            self._said(rank).unlink(missing_ok=True)

    def heard(self, world: int) -> list[str]:
        return [self._heard(rank) for rank in range(world)]

    def plan(self, name: str) -> str:
        try:
            return self._plan(name).read_text()
        except (FileNotFoundError, UnicodeDecodeError):
            return ""

    def keep_plan(self, name: str, text: str) -> None:
        kept = self._plan(name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(text)
        partial.replace(kept)

    @property
    def _checkpoints(self) -> Path:
        return self.run / "checkpoints"

    def _opened(self) -> Spool:
        self.open()
        assert self._spool is not None
        return self._spool

    def _said(self, rank: int) -> Path:
        return self.run / STACKS / f"rank-{rank}.txt"

    def _heard(self, rank: int) -> str:
        try:
            return self._said(rank).read_text().partition("\n")[0]
        except FileNotFoundError:
            return ""

    def _plan(self, name: str) -> Path:
        return self.run.parent / PLANS / f"{name}.json"
