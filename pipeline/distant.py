"""The run's folder for workers on other machines: an actor beside the driver does what they ask, so that nodes share no disk."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from pipeline import checkpoint
from pipeline.archive import Archive, Folder, Word
from pipeline.checkpoint import Checkpoint, Files
from pipeline.errors import InputError
from pipeline.failures import Failure

LOOK_EVERY_S = 0.25
"""How often a worker on another machine asks whether the run shall stop."""
ANSWER_S = 60.0
"""How long the folder's machine may take to answer; it writes to a disk at most."""
SAVE_S = 1800.0
"""How long a checkpoint may take on its way."""
SAVING = "saving"
"""The thread in which the actor saves, so that nothing else waits for that."""


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
