"""One driver for a run: a lock that the system lets go of, and on other machines a heartbeat in the run's folder."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from pipeline.errors import InputError

LOCK_FILE, FILE = "lock", "lease.json"
BEAT_S = 5.0
"""How often the holder says that it lives."""
SILENCE_S = 20.0
"""How long another machine's holder must have said nothing to be taken for dead; no clocks are compared."""


class Lease:
    """Held while the block runs. `lost` is called once if another driver has taken the run over meanwhile.

    On one machine a lock decides, which is free as soon as its holder is dead. Not all file systems carry locks from one
    machine to another, so that the holder also counts up a number in RUN/lease.json: a driver elsewhere watches it for
    `silence_s`, and takes the run over only if it stands still.

    Raises:
        InputError: the run is being trained by another driver.
    """

    def __init__(
        self,
        run: Path,
        *,
        lost: Callable[[], None],
        beat_s: float = BEAT_S,
        silence_s: float = SILENCE_S,
        host: str = "",
    ):
        self.run, self._lost, self.beat_s, self.silence_s = run, lost, beat_s, silence_s
        self.host, self.nonce = host or socket.gethostname(), secrets.token_hex(8)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._lock: TextIO

    def __enter__(self) -> Lease:
        self._lock = (self.run / LOCK_FILE).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._take_over()
        except BlockingIOError as error:
            self._lock.close()
            raise InputError(f"{self.run} is being trained by another process; wait for it or end it") from error
        except BaseException:
            self._lock.close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        if self._is_mine():
            (self.run / FILE).unlink(missing_ok=True)
        self._lock.close()

    def _take_over(self) -> None:
        first = self._read()
        if first and first["host"] != self.host:
            limit = time.monotonic() + self.silence_s
            while time.monotonic() < limit:
                time.sleep(min(self.beat_s, self.silence_s) / 4)
                if (now := self._read()) and now != first:
                    raise InputError(
                        f"{self.run} is being trained by process {now['pid']} of {now['host']}; wait for it or end it"
                    )
        self._write(0)
        if first and first["host"] != self.host:
            # Another one that waited as long may write after this; the last word counts for both.
            time.sleep(self.beat_s / 2)
            if not self._is_mine():
                raise InputError(f"{self.run} was just taken over by another process; wait for it or end it")

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(self.beat_s):
            try:
                if self._read() and not self._is_mine():
                    self._lost()
                    return
                count += 1
                self._write(count)
            except OSError:
                continue  # the file system is away for a moment: silence is what the others will hear

    def _is_mine(self) -> bool:
        return (self._read() or {}).get("nonce") == self.nonce

    def _read(self) -> dict | None:
        try:
            return json.loads((self.run / FILE).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _write(self, beat: int) -> None:
        partial = self.run / f".{FILE}.{self.nonce}"
        partial.write_text(json.dumps({"host": self.host, "pid": os.getpid(), "nonce": self.nonce, "beat": beat}))
        partial.replace(self.run / FILE)
