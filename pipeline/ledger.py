"""The ledger of a sweep: every event of its trials as a line of JSON, the only memory from which a sweep goes on.

`SWEEP/ledger.jsonl`: a trial is *proposed* with its point, *begun* (again after a failure or a kill), has a *value* at
meta-steps, may take over another trial's state (*exchanged*), and is *ended* once. What Ray keeps is pickled, and never read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

FORMAT = 1
FILE = "ledger.jsonl"
WAITING, RUNNING = "waiting", "running"
"""Proposed, not begun; begun, not ended."""
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
"""Trained to its end; ended by the scheduler or a spent budget; failed more often than it is tried."""


@dataclass
class Trial:
    """What is known of a trial; `values` are those of the sweep's metric, since it last took over another's state."""

    number: int
    point: dict[str, Any]
    origin: str
    """Whence the point is: search, start, or the name of a past sweep."""
    state: str = WAITING
    attempts: int = 0
    values: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    """From begin to end, all attempts together."""
    objectives: dict[str, float] = field(default_factory=dict)
    exchanges: list[dict[str, Any]] = field(default_factory=list)
    """Of whom it took over the state, after which meta-step, and with which point it went on."""
    said: str = ""
    """Why it failed, or failed last."""
    begun_s: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in (FINISHED, STOPPED, FAILED)

    @property
    def steps(self) -> int:
        """Meta-steps after which it was last judged."""
        return max(self.values, default=0)

    def score(self, mode: str) -> float | None:
        """Its best value, the largest for `max`; None if it has none."""
        known = [value for value in self.values.values() if value == value]
        return (max if mode == "max" else min)(known) if known else None


class _Known:
    """What the events of a ledger say together."""

    def __init__(self, path: Path):
        self.path = path
        self.trials: dict[int, Trial] = {}
        self.spent_s = 0.0
        self.last_s = self.driver_s = 0.0

    def take(self, event: dict[str, Any]) -> None:
        """Learn from the next event."""
        kind, time_s = event["event"], event["t"]
        if kind == "driver":
            if event["format"] != FORMAT:
                raise InputError(
                    f"{self.path} has format {event['format']}, this version reads {FORMAT}; use the one that wrote it"
                )
            for trial in self.trials.values():
                _pause(trial, self.last_s)
            self.spent_s += self.last_s - self.driver_s
            self.driver_s = self.last_s = time_s
            return
        self.last_s = time_s
        number = event["trial"]
        if kind == "proposed":
            self.trials[number] = Trial(number, event["point"], event["origin"])
            return
        trial = self.trials[number]
        match kind:
            case "begun":
                trial.state, trial.begun_s = RUNNING, time_s
                trial.attempts += 1
            case "value":
                trial.values[event["step"]] = float(event["value"])
            case "exchanged":
                trial.point, trial.values = event["point"], {}
                trial.exchanges.append({key: event[key] for key in ("source", "step", "point")})
            case "failed_once":
                trial.said = event["said"]
                _pause(trial, time_s)
            case "ended":
                _pause(trial, time_s)
                trial.state, trial.said, trial.objectives = event["state"], event["said"], event["objectives"]


def trials_of(sweep: Path) -> dict[int, Trial]:
    """What the ledger of a sweep says of its trials, whoever writes it; empty where there is none. Those that run have the
    `seconds` until its last event.

    Raises:
        InputError: it is of another format, or damaged.
    """
    known = _Known(sweep / FILE)
    for _, event in events(known.path):
        known.take(event)
    for trial in known.trials.values():
        if trial.state == RUNNING:
            trial.seconds += known.last_s - trial.begun_s
    return known.trials


class Ledger:
    """Appends to a sweep's ledger and keeps in `trials` what it says; one process writes.

    Raises:
        InputError: the file is of another format, or cannot be written.
    """

    def __init__(self, sweep: Path):
        self.path = sweep / FILE
        self._known = _Known(self.path)
        whole = 0
        for end, event in events(self.path):
            whole = end
            self._known.take(event)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            # What follows is the beginning of a line whose writer was killed.
            os.ftruncate(self._file, whole)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}; name another folder in runs") from error
        self._write("driver", format=FORMAT)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_) -> None:
        os.close(self._file)

    @property
    def trials(self) -> dict[int, Trial]:
        """The trials by number."""
        return self._known.trials

    @property
    def spent_s(self) -> float:
        """Seconds that earlier drivers worked on the sweep."""
        return self._known.spent_s

    @property
    def driven_s(self) -> float:
        """Seconds that drivers worked on the sweep, this one included."""
        return self.spent_s + time.time() - self._known.driver_s

    def proposed(self, number: int, point: dict[str, Any], origin: str) -> None:
        self._write("proposed", number, point=point, origin=origin)

    def begun(self, number: int, node: str) -> None:
        self._write("begun", number, node=node)

    def value(self, number: int, step: int, value: float) -> None:
        # JSON has no numbers that are not finite; `float()` reads these strings back.
        self._write("value", number, step=step, value=value if value - value == 0 else str(value))

    def exchanged(self, number: int, source: int, step: int, point: dict[str, Any]) -> None:
        self._write("exchanged", number, source=source, step=step, point=point)

    def failed_once(self, number: int, said: str) -> None:
        """A failure after which the trial is tried again."""
        self._write("failed_once", number, said=said)

    def ended(self, number: int, state: str, *, said: str = "", objectives: dict[str, float] | None = None) -> None:
        """The trial is over, in one of the states that are."""
        self._write("ended", number, state=state, said=said, objectives=objectives or {})

    def _write(self, kind: str, number: int | None = None, **values: Any) -> None:
        event = {"t": time.time(), "event": kind, **({} if number is None else {"trial": number}), **values}
        line = json.dumps(event, allow_nan=False, separators=(",", ":")) + "\n"
        os.write(self._file, line.encode())
        os.fsync(self._file)
        self._known.take(event)


def _pause(trial: Trial, time_s: float) -> None:
    """Nobody works on it any more."""
    if trial.state == RUNNING:
        trial.seconds += time_s - trial.begun_s
        trial.state = WAITING


def events(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (offset behind it, event) of every whole line.

    Raises:
        InputError: a line is no event.
    """
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
                if not {"event", "t"} <= event.keys():
                    raise ValueError("no event")
            except (ValueError, AttributeError) as error:
                raise InputError(
                    f"{path}, line {number}: no event of a sweep; bring the file back as it was"
                ) from error
            yield offset, event
