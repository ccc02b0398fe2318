"""Validation aside: a Ray task measures a checkpoint while training goes on, and what it found counts at the next validation."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, final

from pipeline import checkpoint, evaluate, ranks, restore
from pipeline.archive import Archive
from pipeline.checkpoint import Files
from pipeline.judging import Score, score
from pipeline.learners.learner import Mode
from pipeline.restore import Subject

if TYPE_CHECKING:
    from pipeline.schema.run import RunConfig


def measured(subject: Subject, files: Files, split: str, episodes: int, mode: Mode) -> Score:
    """The headline metric of a checkpoint, given by its files, on the first frozen episodes of a split."""
    with restore.out_of(files, subject) as subject:
        found, rows = evaluate.measure(subject, split=split, episodes=episodes, workers=1, modes=(mode,))
    return score([row[mode].metrics[found.learner.task.headline] for row in rows])


@final
class RayAside:
    """`begin` has the checkpoint of a meta-step validated once it is written, `result` waits for that; rank 0 does it for all.

    When a score counts is a matter of meta-steps, never of how fast it came, so that a run is the same each time. The task asks
    for no CPU: workers may have them all, and it would wait for ever.
    """

    def __init__(self, subject: Subject, archive: Archive, writer: checkpoint.Writer, config: RunConfig):
        self._subject, self._archive, self._writer = subject, archive, writer
        self._asked = config.data.validation, config.validation.episodes, Mode(config.evaluate.mode)
        self._sent: Future[Any] | None = None

    def begin(self, step: int) -> None:
        """Have the checkpoint of this meta-step, which was handed to the writer, validated."""
        if ranks.rank() == 0:
            self._sent = self._writer.then(lambda: self._send(self._archive.files(step)))

    def result(self) -> Score:
        """The score of the checkpoint that was begun with last, on all ranks.

        Raises:
            RuntimeError: it could not be measured; on all ranks.
        """
        found: Score | str | None = None
        if ranks.rank() == 0:
            found = self._received()
        found = ranks.told_by_first(found)
        if isinstance(found, str):
            raise RuntimeError(f"validation aside failed: {found}")
        assert found is not None
        return Score(*found)

    def _send(self, files: Files) -> Any:
        import ray

        task = ray.remote(measured).options(num_cpus=0, max_retries=3, scheduling_strategy="SPREAD")
        return task.remote(self._subject, files, *self._asked)

    def _received(self) -> Score | str:
        import ray

        assert self._sent is not None
        try:
            return ray.get(self._sent.result())
        except Exception as error:
            return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
