"""Feeders: processes anywhere in the cluster that read episodes for a worker, so that a node's GPUs do not wait for its CPUs."""

from __future__ import annotations

from concurrent.futures import Future
from itertools import cycle
from typing import TYPE_CHECKING, Any

from pipeline import build
from pipeline.config import dump, parse
from pipeline.data.index import Index
from pipeline.episode import Episode
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.schema.run import RunConfig


class _Feeder:
    """Runs in a process of its own. An episode is a function of its numbers, so that any feeder gives the same one."""

    def __init__(self, config: dict[str, Any]):
        parsed = parse(config, "feeder")
        self._loader = build.loader(parsed, Index.open(parsed.data.root), rank=0, world=1)

    def episode(self, step: int, number: int) -> Episode:
        return self._loader.episode(step, number)


class Feeders:
    """`count` feeders, spread over the nodes; they end with the process that made them.

    One whose node is lost is started again elsewhere, and reads again what it was asked for. Room for them is asked for before
    the run starts; they themselves ask for none: workers that came back on fewer nodes may have it, and would wait for ever.
    """

    def __init__(self, config: RunConfig, count: int):
        import ray

        options = {"num_cpus": 0, "num_gpus": 0, "max_restarts": -1, "max_task_retries": -1}
        feeder = ray.remote(_Feeder).options(**options, scheduling_strategy="SPREAD")
        self._turns = cycle([feeder.remote(dump(config)) for _ in range(count)])

    def read(self, step: int, number: int) -> Future[Episode]:
        """Episode `number` of meta-step `step`, when it is there; `InputError` where the data are at fault."""
        told: Future[Episode] = Future()
        asked: Future[Episode] = next(self._turns).episode.remote(step, number).future()
        asked.add_done_callback(lambda done: pass_on(done, told))
        return told


def pass_on(done: Future[Episode], told: Future[Episode]) -> None:
    """What a feeder answered. Ray wraps an error in its traceback; of one that is the user's to mend the line alone is told."""
    if told.cancelled():
        return
    error = done.exception()
    if error is None:
        told.set_result(done.result())
    else:
        cause = getattr(error, "cause", None)
        told.set_exception(InputError(str(cause)) if isinstance(cause, InputError) else error)
