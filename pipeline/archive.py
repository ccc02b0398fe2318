"""What a run keeps: its folder as workers reach it, here or through an actor beside the driver, so that nodes share none."""

from __future__ import annotations

import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from pipeline import checkpoint, failures
from pipeline.checkpoint import Checkpoint, Files
from pipeline.errors import InputError
from pipeline.failures import Failure
from pipeline.spool import Spool

CONFIG_FILE = "config.yaml"
STOP_FILE = "stop"
STACKS = "stacks"
PLANS = "plans"
LOOK_EVERY_S = 0.25
"""How often a worker on another machine asks whether the run shall stop."""
ANSWER_S = 60.0
"""How long the folder's machine may take to answer; it writes to a disk at most."""
SAVE_S = 1800.0
"""How long a checkpoint may take on its way."""
SAVING = "saving"
"""The thread in which the actor saves, so that nothing else waits for that."""


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
        pass

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


@final
class Distant(Archive):
    """It lies on the driver's machine, where an actor does what is asked; a worker holds this."""

    def __init__(self, actor: Any):
        self._actor = actor
        self._asked: Any = None
        self._asked_s = 0.0
        self._lock = threading.Lock()
        self._waiting: list[Word] = []
        self._told: Any = None

    def __reduce__(self):
        return Distant, (self._actor,)

    def open(self) -> None:
        self._done("open")

    def tags(self, values: Mapping[str, str]) -> None:
        self._tell((None, dict(values)))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._tell((step, dict(values)))

    def settle(self) -> None:
        with self._lock:
            while self._waiting or self._told is not None:
                if self._told is not None:
                    told, self._told = self._told, None
                    self._answer(told, ANSWER_S)
                self._send()

    def _tell(self, word: Word) -> None:
        """Nobody waits for what is told. One call is on its way at a time: an actor that dies may change their order."""
        import ray

        with self._lock:
            self._waiting.append(word)
            if self._told is not None and not ray.wait([self._told], timeout=0)[0]:
                return
            if self._told is not None:
                told, self._told = self._told, None
                self._answer(told, ANSWER_S)
            self._send()

    def _send(self) -> None:
        if self._waiting:
            self._told, self._waiting = self._actor.tell.remote(self._waiting), []

    def trace(self, name: str, content: bytes) -> None:
        self._done("trace", name, content)

    def newest(self) -> int | None:
        return self._done("newest")

    def load(self, step: int) -> Checkpoint:
        return checkpoint.decoded(self.files(step), checkpoint.path_of(Path("checkpoints"), step))

    def files(self, step: int) -> Files:
        return self._done("files", step, limit_s=SAVE_S)

    def save(self, saved: Checkpoint, needed: Collection[int], *, keep: int) -> None:
        files = checkpoint.encoded(saved)
        self.settle()
        self._done("put", saved.step, files, keep, tuple(needed), limit_s=SAVE_S, group=SAVING)

    def stop_asked(self) -> bool:
        import ray

        if self._asked is None:
            if time.monotonic() - self._asked_s < LOOK_EVERY_S:
                return False
            self._asked, self._asked_s = self._actor.stop_asked.remote(), time.monotonic()
        if not ray.wait([self._asked], timeout=0)[0]:
            return False
        asked, self._asked = self._asked, None
        return self._answer(asked, ANSWER_S)

    def stubborn(self) -> str:
        return self._done("stubborn")

    def note(self, failure: Failure) -> None:
        self._done("note", failure)

    def say(self, rank: int, stacks: str) -> None:
        self._done("say", rank, stacks)

    def heard(self, world: int) -> list[str]:
        return self._done("heard", world)

    def plan(self, name: str) -> str:
        return self._done("plan", name)

    def keep_plan(self, name: str, text: str) -> None:
        self._done("keep_plan", name, text)

    def _done(self, what: str, *given: Any, limit_s: float = ANSWER_S, group: str | None = None) -> Any:
        method = getattr(self._actor, what)
        return self._answer((method.options(concurrency_group=group) if group else method).remote(*given), limit_s)

    @staticmethod
    def _answer(asked: Any, limit_s: float) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get(asked, timeout=limit_s)
        except RayTaskError as error:
            # Ray's own text is the traceback of the other process.
            if isinstance(error.cause, InputError | OSError):
                raise error.cause from error
            raise
        except RayError as error:
            raise OSError(
                f"the driver's node, which keeps the run's folder, does not answer ({type(error).__name__})"
            ) from error


@contextmanager
def beside_driver(run: Path) -> Iterator[Distant]:
    """A run's folder on this machine, to be given to workers on others; an actor here does what they ask.

    One that dies is started again, and does again what it had not answered.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote  # whose types do not know that it takes groups, which `options` does not
    kind = remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, concurrency_groups={SAVING: 1})
    actor = kind(Folder).options(scheduling_strategy=here).remote(run.absolute())
    try:
        yield Distant(actor)
    finally:
        try:
            ray.get(actor.close.remote(), timeout=ANSWER_S)
        except RayError as error:
            print(f"warning: {run}: its last metrics may be missing ({type(error).__name__})", file=sys.stderr)
        ray.kill(actor)
