"""The spool of a run: all that is tracked, appended to a local file of JSON lines before any server hears of it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

FORMAT = 1
FILE = "spool.jsonl"
KIND = "kind"
"""The tag that says what a run is, where it is no training: a comparison, a summary of seeds."""
# MLflow's own limits; what is longer goes to a file, so that nothing is cut off unseen.
LONGEST = {"params": 6000, "tags": 8000}
LONGEST_KEY = 250

log = logging.getLogger(__name__)
Record = dict[str, Any]


@dataclass
class History:
    """What a spool holds, read back: `series` gives by metric key the value of every step, in the order they came."""

    id: str = ""
    """A number that no other run has, on any machine."""
    started_ms: int = 0
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    status: str = "RUNNING"
    series: dict[str, dict[int, float]] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was told of each data set."""


class Spool:
    """Appends to `run_dir/spool.jsonl`; a run that goes on after a crash opens it again and continues it.

    Every call writes whole lines at once, so that a killed process leaves at most one torn line, which the next opening
    cuts off. A disk that is full holds nothing up: lines wait in memory and are written with the next ones.

    Raises:
        InputError: the file is of another format, or cannot be opened.
    """

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir.resolve()
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._warned = False
        try:
            self._file = os.open(run_dir / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise InputError(
                f"{run_dir / FILE} cannot be written: {error.strerror}; free it or choose other runs"
            ) from error
        try:
            # Shared and never waited for: it only tells `is_open` that somebody still writes.
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            pass
        try:
            _cut_torn_line(self._file)
            past = history(run_dir)
        except BaseException:
            os.close(self._file)
            raise
        self._params, self._tags, self._status, self._data = past.params, past.tags, past.status, past.data
        self._last_step = {key: max(points) for key, points in past.series.items()}
        if not past.id:
            self._write({"kind": "run", "format": FORMAT, "id": uuid.uuid4().hex})

    def params(self, values: Mapping[str, str]) -> None:
        """Settings of the run. MLflow never changes one: the first value stands, a later other one becomes a tag."""
        whole = {plain_key(key): str(value) for key, value in values.items()}
        fresh = {key: value for key, value in whole.items() if key not in self._params}
        changed = {k: v for k, v in whole.items() if k not in fresh and self._params[k] != shortened("params", k, v)}
        self._params |= self._put("params", fresh)
        self.tags({f"changed.{key}": value for key, value in changed.items()})

    def tags(self, values: Mapping[str, str]) -> None:
        """Notes on the run; the last value of a tag is the one that shows."""
        whole = {plain_key(key): str(value) for key, value in values.items()}
        fresh = {key: value for key, value in whole.items() if self._tags.get(key) != shortened("tags", key, value)}
        self._tags |= self._put("tags", fresh)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values at a step. Of a key, steps only go up: a resumed run comes by the same steps again, the series does not."""
        fresh = {}
        for key, value in values.items():
            key = plain_key(key)
            if step > self._last_step.get(key, -1):
                self._last_step[key] = step
                fresh[key] = _to_json(float(value))
        if fresh:
            self._write({"kind": "metrics", "step": int(step), "values": fresh})

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file inside the run's folder, to be shown under `folder`; it must stay where it is until it is sent."""
        inside = path.resolve().relative_to(self.run_dir)
        self._write({"kind": "artifact", "path": inside.as_posix(), "folder": folder})

    def data(self, name: str, values: Mapping[str, Any]) -> None:
        """A data set that the run reads, by JSON values: `digest`, `source`, `context`, `images` (type and form), `profile`."""
        if self._data.get(name) != values:
            self._data[name] = dict(values)
            self._write({"kind": "data", "name": name, "values": dict(values)})

    def model(self, folder: Path, *, register: str = "", alias: str = "") -> None:
        """A folder inside the run's, as `register.lay_out` makes it, to be shown as a model of the run; it stays where it is.

        With `register` it becomes a version of the registered model of that name, to which `alias` then points, if given.
        """
        inside = folder.resolve().relative_to(self.run_dir)
        self._write({"kind": "model", "path": inside.as_posix(), "register": register, "alias": alias})

    def status(self, status: str) -> None:
        """RUNNING, FINISHED, FAILED or KILLED."""
        assert status in ("RUNNING", "FINISHED", "FAILED", "KILLED"), status
        if status != self._status:
            self._status = status
            self._write({"kind": "status", "status": status})

    def close(self) -> None:
        """Close the file; names in the log what could not be written."""
        with self._lock:
            self._flush()
            os.close(self._file)
        if self._waiting:
            log.error("%s: %d records could not be written and are lost", self.run_dir / FILE, len(self._waiting))

    def _put(self, kind: str, whole: Mapping[str, str]) -> dict[str, str]:
        """Spool the values, those too long for MLflow as files besides; returns them as MLflow will have them."""
        values = {key: shortened(kind, key, value) for key, value in whole.items()}
        for key in whole:
            if values[key] != whole[key]:
                file = self.run_dir / _whole_file(kind, key)
                file.parent.mkdir(exist_ok=True)
                file.write_text(whole[key])
                self.artifact(file, kind)
        if values:
            self._write({"kind": kind, "values": values})
        return values

    def _write(self, record: Record) -> None:
        record = {"t": time.time_ns() // 1_000_000, **record}
        line = json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
        with self._lock:
            self._waiting.append(line.encode())
            self._flush()

    def _flush(self) -> None:
        while self._waiting:
            line = self._waiting[0]
            size = os.fstat(self._file).st_size
            try:
                if os.write(self._file, line) < len(line):
                    os.ftruncate(self._file, size)
                    raise OSError("the disk is full")
            except OSError as error:
                if not self._warned:
                    log.warning("%s: %s; metrics wait in memory until it can be written", self.run_dir / FILE, error)
                self._warned = True
                return
            self._warned = False
            self._waiting.pop(0)


def plain_key(key: str) -> str:
    """The key with what MLflow refuses in names replaced by `_`."""
    key = re.sub(r"[^\w\-. :/]", "_", key)
    key = "/".join(part if part.strip(".") else "_" for part in key.split("/"))
    return key[:LONGEST_KEY]


def shortened(kind: str, key: str, value: str) -> str:
    """A param's or tag's value, or its beginning with the place of the whole where it is longer than MLflow's limit."""
    if len(value) <= LONGEST[kind]:
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()[:8]
    note = f" … (all {len(value)} characters, sha256 {digest}…: artifact {_whole_file(kind, key)})"
    return value[: LONGEST[kind] - len(note)] + note


def _whole_file(kind: str, key: str) -> str:
    return f"{kind}/{re.sub('[^A-Za-z0-9._-]', '_', key)}.txt"


def records(run_dir: Path, start: int = 0) -> Iterator[tuple[int, Record]]:
    """Yield (offset behind it, record) of every whole line from a byte offset on; a line that is no record has kind "damaged"."""
    with (run_dir / FILE).open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or "kind" not in record:
                record = {"kind": "damaged", "at": start - len(line), "size": len(line)}
            yield start, record


def history(run_dir: Path) -> History:
    """Read a spool back, empty where there is none.

    Raises:
        InputError: it is of another format.
    """
    past = History()
    if not (run_dir / FILE).exists():
        return past
    for _, record in records(run_dir):
        match record["kind"]:
            case "run":
                if record["format"] != FORMAT:
                    raise InputError(
                        f"{run_dir / FILE} has format {record['format']}, this version reads {FORMAT}; use the one that wrote it"
                    )
                past.id, past.started_ms = record["id"], record["t"]
            case "params":
                past.params.update(record["values"])
            case "tags":
                past.tags.update(record["values"])
            case "metrics":
                for key, value in record["values"].items():
                    past.series.setdefault(key, {})[record["step"]] = float(value)
            case "data":
                past.data[record["name"]] = record["values"]
            case "status":
                past.status = record["status"]
    return past


def id_of(content: bytes) -> str:
    """The id of the run whose spool has this content; empty if it has none."""
    try:
        record = json.loads(content.partition(b"\n")[0])
        return record["id"] if record["kind"] == "run" else ""
    except (ValueError, KeyError, TypeError):
        return ""


def is_open(run_dir: Path) -> bool:
    """Whether a living process has the spool open, as far as this machine can tell."""
    return is_held(run_dir / FILE, fcntl.LOCK_EX)


def is_held(path: Path, wanted: int) -> bool:
    """Whether a living process has locked a file against this lock (fcntl.LOCK_EX, LOCK_SH), as far as this machine can tell."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, wanted | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _to_json(value: float) -> float | str:
    """JSON has no numbers that are not finite; `float()` reads these strings back."""
    return value if value - value == 0 else str(value)


def _cut_torn_line(file: int) -> None:
    """Drop what follows the last line end: the beginning of a line whose writer was killed."""
    size = end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - 65536)
        block = os.pread(file, end - start, start)
        if (found := block.rfind(b"\n")) >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(file, end)
