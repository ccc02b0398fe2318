"""What every target can do with a submission, and the states that one can be in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

from cluster.submission import Submission

DRAINED = 75
"""The code of a command that saved and left because it was told to, and can go on (EX_TEMPFAIL of sysexits.h)."""


class State(NamedTuple):
    """Where a job is; `code` is its exit code once it is over, `message` what else its target says."""

    name: Literal["queued", "running", "finished", "failed", "stopped", "lost"]
    code: int | None = None
    message: str = ""

    @property
    def is_over(self) -> bool:
        return self.name not in ("queued", "running")


class Check(NamedTuple):
    """A line of the preflight: what was looked at, what was found, and what to do about it if it does not do."""

    what: str
    found: str
    remedy: str = ""
    is_warning: bool = False

    @property
    def is_failed(self) -> bool:
        return bool(self.remedy) and not self.is_warning


class Target(Protocol):
    """Where commands are run. A job is named by the string that `submit` returned."""

    def plan(self, submission: Submission) -> str:
        """Exactly what `submit` would send, as text."""
        ...

    def preflight(self) -> list[Check]:
        """What can be seen from here before anything is queued."""
        ...

    def submit(self, submission: Submission) -> str:
        """Start it; returns the target's name for the job."""
        ...

    def state(self, job: str) -> State:
        """Where it is now."""
        ...

    def follow(self, job: str) -> Iterator[str]:
        """The lines of its log from the first on, until it is over."""
        ...

    def log(self, job: str) -> str:
        """Its log so far."""
        ...

    def stop(self, job: str, *, force: bool) -> None:
        """Ask it to save and leave; by force: end it now."""
        ...
