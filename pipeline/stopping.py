"""How somebody asks a driver to stop: by signals, of which the first waits for a checkpoint and the next does not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

DRAINED = 75
"""The exit code of what saved and left because its machine was wanted back: start it again (EX_TEMPFAIL)."""
DRAINS = (signal.SIGTERM, signal.SIGUSR1)
"""The signals by which a cluster wants a machine back."""


@contextmanager
def stoppable(ask: Callable[[], None]) -> Iterator[list[int]]:
    """While the block runs, the first SIGINT, SIGTERM or SIGUSR1 calls `ask`; gives the signals that came.

    Ctrl-C a second time, or SIGTERM after it, does not wait; a machine that is wanted back may say so again and again. Outside
    the main thread signals belong to somebody else.
    """
    came: list[int] = []

    def heard(number: int, _: object) -> None:
        came.append(number)
        if len(came) == 1:
            ask()
        elif number != signal.SIGUSR1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, *DRAINS)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(signals: Sequence[int]) -> int:
    """How to leave when these asked to stop: 0 where a person did."""
    return DRAINED if set(signals) & set(DRAINS) else 0
