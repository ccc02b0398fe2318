"""What a person sees while long work goes on: a bar with rate and time left on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import spool

LOOK_EVERY_S = 0.5
LINE_EVERY_S = 10.0


@contextmanager
def counting(doing: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show (done, total) counts of a verb's work."""
    with _Display(doing, unit) as display:
        yield lambda done, total: display.show(done, total, "")


@contextmanager
def watching(run: Path, steps: int) -> Iterator[None]:
    """Show a run's progress by following its spool, which must exist, whoever writes it."""
    ended = threading.Event()

    def follow(display: _Display) -> None:
        at, step, loss, score = 0, 0, float("nan"), ""
        while True:
            # Asked before reading, so that the last lines are shown too.
            was_ended = ended.wait(LOOK_EVERY_S)
            for end, record in spool.records(run, at):
                at = end
                if record["kind"] != "metrics":
                    continue
                step, values = max(step, record["step"]), record["values"]
                loss = float(values.get("train/loss", loss))
                if "validation/score" in values:
                    score = f"  validation {100 * float(values['validation/score']):.1f} %"
            if step:
                display.show(step, steps, f"  loss {loss:.4f}{score}")
            if was_ended:
                return

    with _Display("training", "meta-steps") as display:
        thread = threading.Thread(target=follow, args=(display,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class _Display:
    """One line of progress, redrawn on a terminal; in a pipe a new line every ten seconds and at the end."""

    def __init__(self, doing: str, unit: str):
        self.doing, self.unit = doing, unit
        self.bar: Progress | None = None
        self.began_s = self.said_s = time.monotonic()
        self.first: int | None = None
        self.done = -1
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            )
            rate = TextColumn("{task.fields[rate]}{task.fields[more]}")
            self.bar = Progress(*columns, rate, TimeRemainingColumn(), console=Console(stderr=True))
            self.task = self.bar.add_task(doing, total=None, visible=False, rate="", more="")

    def __enter__(self) -> _Display:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, done: int, total: int, more: str) -> None:
        """Tell how far it is; `more` goes behind it."""
        if done == self.done:
            return
        now = time.monotonic()
        # A resumed run starts in the middle; only what is done now counts for the rate.
        if self.first is None:
            self.first, self.began_s = done, now
        rate = (done - self.first) / (now - self.began_s) if now > self.began_s else 0.0
        if self.bar is not None:
            self.bar.update(
                self.task, completed=done, total=total, visible=True, rate=f"{rate:.2f}/s" if rate else "", more=more
            )
        elif done >= total or self.done < 0 or now - self.said_s >= LINE_EVERY_S:
            left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
            speed = f" ({rate:.2f}/s{left})" if rate else ""
            print(f"{self.doing}: {done:,}/{total:,} {self.unit}{speed}{more}", file=sys.stderr, flush=True)
            self.said_s = now
        else:
            return
        self.done = done
