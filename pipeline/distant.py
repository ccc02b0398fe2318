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
class Keeper:
    """In an actor beside the driver: does what workers ask of the folders of runs, each by its path."""

    def __init__(self):
        self._folders: dict[Path, Folder] = {}
        self._lock = threading.Lock()

    def do(self, run: Path, what: str, *given: Any) -> Any:
        """Call a method of a run's folder."""
        with self._lock:
            folder = self._folders.setdefault(run, Folder(run))
        return getattr(folder, what)(*given)

    def close(self, run: Path) -> None:
        """Let go of a folder's files."""
        with self._lock:
            folder = self._folders.pop(run, None)
        if folder is not None:
            folder.close()


@final
class Distant(Archive):
    """It lies on the driver's machine, where a `Keeper` does what is asked; a worker holds this."""

    def __init__(self, actor: Any, run: Path):
        self._actor, self.run = actor, run
        self._asked: Any = None
        self._asked_s = 0.0
        self._lock = threading.Lock()
        self._waiting: list[Word] = []
        self._told: Any = None

    def __reduce__(self):
        return Distant, (self._actor, self.run)

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
            self._told, self._waiting = self._actor.do.remote(self.run, "tell", self._waiting), []

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
            self._asked, self._asked_s = self._actor.do.remote(self.run, "stop_asked"), time.monotonic()
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

    def best(self) -> Files:
        """As `Folder.best`."""
        return self._done("best", limit_s=SAVE_S)

    def series(self, name: str, after: int) -> dict[int, float]:
        """As `Folder.series`."""
        return self._done("series", name, after)

    def ask_to_stop(self, asked: bool) -> None:
        """As `Folder.ask_to_stop`."""
        self._done("ask_to_stop", asked)

    def adopt(self, step: int, files: Files, exchange: str) -> None:
        """As `Folder.adopt`."""
        self._done("adopt", step, files, exchange, limit_s=SAVE_S)

    def took_over(self) -> str:
        """As `Folder.took_over`."""
        return self._done("took_over")

    def _done(self, what: str, *given: Any, limit_s: float = ANSWER_S, group: str | None = None) -> Any:
        method = self._actor.do.options(concurrency_group=group) if group else self._actor.do
        return self._answer(method.remote(self.run, what, *given), limit_s)

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
    """A run's folder on this machine, to be given to workers on others; an actor here does what they ask."""
    with keeper() as actor:
        try:
            yield Distant(actor, run.absolute())
        finally:
            let_go(actor, run)


@contextmanager
def keeper() -> Iterator[Any]:
    """A `Keeper` on this machine while the block runs. One that dies starts again, and does again what it had not answered."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote  # whose types do not know that it takes groups, which `options` does not
    kind = remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, concurrency_groups={SAVING: 1})
    actor = kind(Keeper).options(scheduling_strategy=here).remote()
    try:
        yield actor
    finally:
        ray.kill(actor)


def let_go(actor: Any, run: Path) -> None:
    """Have a keeper write what it was told of a run, and close its files; nobody tells it more."""
    import ray
    from ray.exceptions import RayError

    try:
        ray.get(actor.close.remote(run.absolute()), timeout=ANSWER_S)
    except RayError as error:
        print(f"warning: {run}: its last metrics may be missing ({type(error).__name__})", file=sys.stderr)
