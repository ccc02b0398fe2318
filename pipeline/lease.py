"""One driver for a run: a lock that the system lets go of, and on other machines a heartbeat where all of them see it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

from pipeline.errors import InputError

LOCK_FILE, FILE = "lock", "lease.json"
BEAT_S = 5.0
"""How often the holder says that it lives."""
SILENCE_S = 20.0
"""How long another machine's holder must have said nothing to be taken for dead; no clocks are compared."""


class Board(Protocol):
    """Where the holder of a run says that it lives. What passes by itself raises OSError, the rest InputError."""

    def read(self) -> dict[str, Any] | None:
        """What was written last; None if nothing was, or half of it."""
        ...

    def write(self, said: dict[str, Any]) -> None:
        """Put this in the place of what is there."""
        ...


class FileBoard:
    """In the run's folder."""

    def __init__(self, run: Path):
        self._path = run / FILE

    def read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def write(self, said: dict[str, Any]) -> None:
        partial = self._path.with_name(f".{FILE}.{said['nonce']}")
        partial.write_text(json.dumps(said))
        partial.replace(self._path)


def locked(run: Path) -> TextIO:
    """The lock of a run's folder on this machine, free again when this is closed or its process dead.

    Raises:
        InputError: another process has it.
    """
    lock = (run / LOCK_FILE).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise InputError(f"{run} is being trained by another process; wait for it or end it") from error
    return lock


class Lease:
    """Held while the block runs. `lost` is called once if another driver has taken the run over meanwhile.

    On one machine a lock decides, which is free as soon as its holder is dead. Not all file systems carry locks from one
    machine to another, so that the holder also counts up a number on a board, in RUN/lease.json if none is given: a driver
    elsewhere watches it for `silence_s`, and takes the run over only if it stands still.

    `nonce` is the holder's own, `before` that of whoever held it before, empty if nobody did.

    Raises:
        InputError: the run is being trained by another driver.
    """

    def __init__(
        self,
        run: Path,
        *,
        lost: Callable[[], None],
        board: Board | None = None,
        beat_s: float = BEAT_S,
        silence_s: float = SILENCE_S,
        host: str = "",
    ):
        self.run, self._lost, self.beat_s, self.silence_s = run, lost, beat_s, silence_s
        self.board = board or FileBoard(run)
        self.host, self.nonce, self.before = host or socket.gethostname(), secrets.token_hex(8), ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._lock: TextIO

    def __enter__(self) -> Lease:
        self._lock = locked(self.run)
        try:
            self._take_over()
        except BaseException:
            self._lock.close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        with suppress(OSError, InputError):  # else the next one waits, as for a dead one
            if self._is_mine():
                self._write(is_over=True)
        self._lock.close()

    def _take_over(self) -> None:
        first = self.board.read()
        self.before = first["nonce"] if first else ""
        is_elsewhere = bool(first) and first["host"] != self.host and not first.get("is_over")
        if is_elsewhere:
            limit = time.monotonic() + self.silence_s
            while time.monotonic() < limit:
                time.sleep(min(self.beat_s, self.silence_s) / 4)
                if (now := self.board.read()) and now != first:
                    raise InputError(
                        f"{self.run} is being trained by process {now['pid']} of {now['host']}; wait for it or end it"
                    )
        self._write()
        if is_elsewhere:
            # Another one that waited as long may write after this; the last word counts for both.
            time.sleep(self.beat_s / 2)
            if not self._is_mine():
                raise InputError(f"{self.run} was just taken over by another process; wait for it or end it")

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(self.beat_s):
            try:
                if self.board.read() and not self._is_mine():
                    self._lost()
                    return
                count += 1
                self._write(count)
            except (OSError, InputError):
                continue  # the board is away for a moment: silence is what the others will hear

    def _is_mine(self) -> bool:
        return (self.board.read() or {}).get("nonce") == self.nonce

    def _write(self, beat: int = 0, *, is_over: bool = False) -> None:
        said = {"host": self.host, "pid": os.getpid(), "nonce": self.nonce, "beat": beat, "is_over": is_over}
        self.board.write(said)
