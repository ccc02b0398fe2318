"""What went wrong in a run's workers, kept beside the run, so that the same failure twice in a row ends it.

`RUN/failures.jsonl` has a line for every start of a driver and for every failure: the meta-step, and what was said.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

FILE = "failures.jsonl"
_LIMIT = 2


class Failure(NamedTuple):
    """A meta-step that was not finished, and why; `rank` is the one that says so."""

    step: int
    rank: int
    said: str


def begin(run: Path) -> None:
    """A driver starts: what failed under an earlier one, and was perhaps mended, does not count."""
    _append(run, {"start": True})


def note(run: Path, failure: Failure) -> None:
    """Keep a failure; called by the rank that had it, just before it ends."""
    _append(run, failure._asdict())


def since_start(run: Path) -> list[Failure]:
    """The failures under this driver, oldest first."""
    return _by_start(run)[-1]


def every(run: Path) -> list[Failure]:
    """The failures under all its drivers, oldest first."""
    return [failure for found in _by_start(run) for failure in found]


def _by_start(run: Path) -> list[list[Failure]]:
    """The failures under each driver, and before the first."""
    found: list[list[Failure]] = [[]]
    try:
        lines = (run / FILE).read_text().splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # between two records, or half a one
        if "start" in record:
            found.append([])
        else:
            found[-1].append(Failure(record["step"], record["rank"], record["said"]))
    return found


def stubborn(run: Path) -> str:
    """Says what failed at one meta-step again after everything was started anew; empty if nothing did.

    The ranks of one attempt may all say the same; what is counted is how often one rank does.
    """
    found = since_start(run)
    if not found:
        return ""
    last = found[-1]
    times = [failure.rank for failure in found if (failure.step, failure.said) == (last.step, last.said)]
    most = max(times.count(rank) for rank in times)
    if most < _LIMIT:
        return ""
    return (
        f"meta-step {last.step + 1} failed {most} times in the same way, and would again: {last.said}; see {run / FILE}"
    )


def _append(run: Path, record: dict) -> None:
    # One write: lines of several ranks do not mix. Whoever was killed while it wrote has left half a line.
    with (run / FILE).open("ab", buffering=0) as file:
        file.write(f"\n{json.dumps({**record, 'time': time.time()})}\n".encode())
