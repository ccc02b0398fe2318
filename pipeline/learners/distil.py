"""A learner that is taught by another one while it trains."""

from __future__ import annotations

from collections.abc import Hashable
from typing import final

import torch
from torch import Tensor

from pipeline.episode import Batch, Episode, Outcome, Statistics
from pipeline.errors import InputError
from pipeline.learners.learner import Learner, Mode, Predictor
from pipeline.learners.metric import RelationLearner
from pipeline.learners.supervised import SupervisedLearner
from pipeline.tasks.distilled import Distilled, Taught


@final
class DistilledLearner(Learner):
    """The student, whose query loss listens to a frozen teacher that learned from the same support (`tasks.distilled`).

    A supervised student listens to what a supervised teacher says of the base classes. The teacher judges every query by
    itself, by its own norm statistics. What the student becomes does not need it: keep the student alone.
    """

    def __init__(self, student: Learner, teacher: Learner):
        super().__init__()
        self._check(student, teacher)
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.task, self.advice = student.task, student.advice

    def _check(self, student: Learner, teacher: Learner) -> None:
        if isinstance(student, RelationLearner) and student.squares:
            raise InputError("learner.loss = mse has no room for what a teacher says; set learner.loss = task")
        if not isinstance(student.task, Distilled):
            raise InputError(
                "teacher: the learner's task takes no teacher; make it with pipeline.build_task.task(config)"
            )
        if isinstance(student, SupervisedLearner) and not isinstance(teacher, SupervisedLearner):
            raise InputError(
                "teacher: a supervised learner is taught the base classes, which only a supervised teacher knows; "
                "name a run with learner.kind = supervised"
            )

    def outcome(self, episode: Episode) -> Outcome:
        targets = Taught(episode.query.targets, self._said(episode))
        taught = Batch(episode.query.inputs, targets)  # pyright: ignore[reportArgumentType]  (only the task looks into them)
        return self.student.outcome(episode._replace(query=taught))

    @torch.no_grad()
    def _said(self, episode: Episode) -> Tensor:
        """The teacher's logits of the queries."""
        images = episode.query.inputs
        if isinstance(self.student, SupervisedLearner) and isinstance(self.teacher, SupervisedLearner):
            return self.teacher.classify(images)
        return self.teacher.adapt(episode.support, episode.ways, mode=Mode.INDUCTIVE)(images)

    def adapt(self, support: Batch, ways: int, *, mode: Mode) -> Predictor:
        return self.student.adapt(support, ways, mode=mode)

    def begin(self, step: int) -> None:
        self.student.begin(step)

    def breaks(self, episode: Episode) -> int | None:
        return self.student.breaks(episode)

    def phase(self) -> Hashable:
        return self.student.phase()

    def absorb(self, statistics: Statistics) -> None:
        self.student.absorb(statistics)
