"""How a run stands, as far as this machine can tell: what its spool says last, and whether anybody still writes."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

from pipeline import spool
from pipeline.lease import LOCK_FILE

# A run of whose writers nothing can be seen, as on another machine, counts as interrupted after this silence.
SILENCE_S = 120
INTERRUPTED = "INTERRUPTED"


def status_of(run: Path, past: spool.History) -> str:
    """RUNNING, FINISHED, FAILED or KILLED, as it was told; INTERRUPTED where it was to go on and nobody drives it."""
    return INTERRUPTED if past.status == "RUNNING" and not _is_alive(run) else past.status


def _is_alive(run: Path) -> bool:
    if spool.is_open(run) or time.time() - (run / spool.FILE).stat().st_mtime < SILENCE_S:
        return True
    # Held by whoever drives the run, also while nothing is tracked, as during an evaluation.
    return spool.is_held(run / LOCK_FILE, fcntl.LOCK_SH)
