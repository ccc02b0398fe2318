"""What every way of learning from a support set promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from enum import StrEnum

from torch import Tensor, nn

from pipeline.episode import Batch, Episode, Outcome, Statistics
from pipeline.tasks.task import Task

Predictor = Callable[[Tensor], Tensor]
"""Inputs (samples, …) -> predictions (samples, …) of an adapted learner."""


class Mode(StrEnum):
    """Whether a prediction may look at other queries (through the batch statistics of norm layers) or not (law 8)."""

    INDUCTIVE = "inductive"
    TRANSDUCTIVE = "transductive"


class Learner(nn.Module, ABC):
    """Its parameters are the meta-parameters; no method leaves anything of an episode behind on the object."""

    task: Task
    advice: str = ""
    """What to do when its losses are not finite, if that is not simply to lower a rate."""
    transforms: bool = True
    """Whether it may call `torch.func` itself; one that takes all its derivatives by `pipeline.calculus` does not."""

    @abstractmethod
    def outcome(self, episode: Episode) -> Outcome:
        """Learn from the support, judge on the query; `loss.backward()` gives the meta-gradient (law 4).

        It is called inside `torch.func.vmap` too, so it must neither branch on values nor draw random numbers.
        """

    @abstractmethod
    def adapt(self, support: Batch, ways: int, *, mode: Mode) -> Predictor:
        """Learn from the support, without gradients for the meta-parameters."""

    def forward(self, episode: Episode) -> Outcome:
        return self.outcome(episode)

    def begin(self, step: int) -> None:
        """Told before each meta-step, on all ranks alike: what follows a schedule or a stream of noise is set here."""

    def breaks(self, episode: Episode) -> int | None:
        """The inner step of an episode after which a fast weight is not finite, if there is one."""
        return None

    def phase(self) -> Hashable:
        """What of the learner's state decides *how* an outcome is computed; a compiled engine keeps a graph for each."""
        return ()

    def absorb(self, statistics: Statistics) -> None:
        """Take in norm statistics averaged over a whole meta-batch and all ranks; most learners keep none."""
        assert not statistics
