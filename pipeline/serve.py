"""The verb `serve`: a model that is taught and asked over HTTP, until somebody ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import torch
from starlette.types import ASGIApp

from pipeline.errors import InputError
from pipeline.serving import app
from pipeline.serving.deployment import Address, deployed, free
from pipeline.serving.limits import Limits
from pipeline.serving.opening import opened, state_of
from pipeline.serving.tokens import VARIABLE, Tokens, from_environment

WAIT_S = 20.0
"""Seconds that a replica waits for the state of one that has just died."""


class Served(NamedTuple):
    """What is served, to whom and within which limits; `threads` of torch work on a batch."""

    target: str
    runs: Path
    state: Path
    token_file: Path | None
    token: str
    limits: Limits
    threads: int


def settled(
    target: str, *, runs: Path, state: Path | None, token_file: Path | None, host: str, limits: Limits, threads: int
) -> Served:
    """What will be served, seen to be whole before anything is started.

    Raises:
        InputError: it is not, or strangers could ask it without a token.
    """
    token = from_environment()
    if not is_loopback(host) and token_file is None and not token:
        raise InputError(
            f"--host {host}: others can reach it, and nobody needs a token; give --token-file (see metashard token), set "
            f"{VARIABLE}, or leave --host out"
        )
    Tokens(token_file)
    where = state_of(target, runs) if state is None else state
    opened(target, runs=runs, state=where, limits=limits).close()
    absolute = None if token_file is None else token_file.absolute()
    # A run's id stays what it is; a path means the same in another process.
    known = str(Path(target).absolute()) if Path(target).exists() else target
    return Served(known, runs.absolute(), where.absolute(), absolute, token, limits, threads)


def application(served: Served) -> ASGIApp:
    """What the replica runs."""
    torch.set_num_threads(served.threads)
    room = opened(served.target, runs=served.runs, state=served.state, limits=served.limits, wait_s=WAIT_S)
    tokens = Tokens(served.token_file, [served.token] if served.token else [])
    return app.application(room, tokens=tokens, limits=served.limits, closes=room.close)


def serve(served: Served, address: Address, *, told: Callable[[str], None]) -> None:
    """Answer at an address until Ctrl-C or SIGTERM; `told` is called with the URL once that is so.

    Raises:
        InputError: somebody listens there.
        RunFailed: the server does not start.
    """
    address = free(address)

    def build() -> ASGIApp:
        return application(served)

    with deployed(build, address, gpus=int(torch.cuda.is_available())):
        told(address.url)
        until_ended()


def until_ended() -> None:
    """Return at the first Ctrl-C or SIGTERM; a second one means what it always does."""
    over = threading.Event()
    before = {number: signal.signal(number, lambda *_: over.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    over.wait()
    for number, handler in before.items():
        signal.signal(number, handler)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
