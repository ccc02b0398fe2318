"""Work on one module by several threads at the same time, for operations too small to be shared by threads within."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread per operation: the count changes the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def twins(module: Module, count: int) -> list[Module]:
    """Modules with the parameters and buffers of this one: the same tensors.

    `functional_call` puts other tensors into a module while it runs, so that two threads cannot use the same one.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return [copy.deepcopy(module, dict(shared)) for _ in range(count)]


class SideBySide(Generic[Module]):
    """Threads, each with a twin of the module and one torch thread for its operations.

    Twins share all tensors, so that what is changed in place is changed for all of them; attributes stay as they were.
    """

    def __init__(self, module: Module, count: int):
        self.twins = twins(module, count)
        self._pool = ThreadPoolExecutor(count, "side-by-side")

    def each(self, work: Callable[[Module, Iterator[Item]], Result], items: Sequence[Item]) -> list[Result]:
        """`work(twin, share)` for every thread's share of the items, every so many-th of them, in the order of the threads.

        An error of one, or Ctrl-C, ends the others at their next item; it is raised when all of them have ended.
        """
        count, ending = min(len(self.twins), len(items)), threading.Event()

        def share(number: int) -> Iterator[Item]:
            for item in items[number::count]:
                if ending.is_set():
                    raise _Ended
                yield item

        def alone(number: int) -> Result:
            # Here and not where the pool starts a thread: one that came too late would leave the whole process with one.
            torch.set_num_threads(1)
            return work(self.twins[number], share(number))

        with one_thread():
            futures = [self._pool.submit(alone, number) for number in range(count)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                ending.set()
                wait(futures)
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, _Ended):
                raise error
        return [future.result() for future in futures]


class _Ended(Exception):
    """Another thread has failed: what this one does is of no use any more."""


def on_all_threads(
    module: Module, work: Callable[[Module, Iterable[Item]], list[Result]], items: Sequence[Item]
) -> list[Result]:
    """`work(module, items)`, its results in any order: every thread of this process has a share, and one torch thread for it.

    What becomes of an item does not depend on how many threads there are. A GPU is kept busy by one.
    """
    on_gpu = any(tensor.is_cuda for tensor in (*module.parameters(), *module.buffers()))
    threads = 1 if on_gpu else min(torch.get_num_threads(), len(items))
    if threads > 1:
        try:
            side = SideBySide(module, threads)
        except (TypeError, RuntimeError):
            pass  # It cannot be copied, as with a lock or a tensor that was computed: one thread gives the same, later.
        else:
            return [result for results in side.each(work, items) for result in results]
    with one_thread():
        return work(module, items)
