"""The folder of a run: made, found, gone on with, and held by one driver at a time."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import yaml

from pipeline import mirror
from pipeline.archive import CONFIG_FILE
from pipeline.config import differences, dump
from pipeline.data.root import Url
from pipeline.errors import InputError
from pipeline.lease import Lease
from pipeline.schema.run import RunConfig


def new_folder(config: RunConfig, name: str = "") -> Path:
    """Where a run under `runs` is to be, called as the config and the time if it has no name yet."""
    return config.runs / (name or f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")


def new_run(config: RunConfig, name: str = "") -> Path:
    """The folder of a new run, made with its config; it may be there, of a run killed before it had one."""
    run = new_folder(config, name)
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        _keep(config, run)
    except OSError as error:
        raise InputError(f"runs = {config.runs}: {error.strerror}; name a folder that can be written") from error
    return run


def found_run(config: RunConfig, name: str) -> Path | None:
    """The folder of the run of this id, if it was begun.

    Raises:
        InputError: the id cannot be a folder's name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"run id {name!r}: letters, digits, '.', '_' and '-' only")
    folder = config.runs / name
    return folder if (folder / CONFIG_FILE).exists() else None


def resumed_run(config: RunConfig, run: Path, *, allow_change: bool = False) -> None:
    """See that the config of a run to go on with is this one, or keep this one if another one is allowed.

    Raises:
        InputError: it is not a run, or its config differs; the differences are named.
    """
    try:
        stored = yaml.safe_load((run / CONFIG_FILE).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise no_run(run, error) from error
    if changed := differences(stored, dump(config)):
        said = f"--resume {run}: its config is another one: {'; '.join(changed)}"
        if not allow_change:
            raise InputError(f"{said}; undo that, start a new run, or say --allow-change")
        print(f"{said}; going on with the new one", file=sys.stderr)
        _keep(config, run)


def no_run(run: Path, why: object) -> InputError:
    """What is said of a folder that a person takes for a run's."""
    return InputError(f"--resume {run}: not a run's folder ({why}); `metashard runs` lists them")


def take(held: ExitStack, run: Path, copy: Url | None) -> None:
    """Be the run's only driver until `held` is closed; where it has a copy in a store, go on from that if it is newer.

    Raises:
        InputError: another driver trains it, it is no run, or the store cannot be used.
    """
    if not (run / CONFIG_FILE).exists() and not (copy and mirror.is_known(copy)):
        raise no_run(run, f"it has no {CONFIG_FILE}")
    if copy is None:
        held.enter_context(Lease(run, lost=_taken_over))
        return
    run.mkdir(parents=True, exist_ok=True)
    # On one machine several folders may be copies of the run: the lock of one says nothing of the others.
    board, host = mirror.StoreBoard(copy), f"{socket.gethostname()}:{run.absolute()}"
    lease = held.enter_context(Lease(run, lost=_taken_over, board=board, host=host))
    mirror.bring(run, copy, before=lease.before)
    mirror.held(run, copy, lease.nonce)


def _keep(config: RunConfig, run: Path) -> None:
    """Write the config where a resume looks for it; whoever is killed meanwhile leaves the old one or none."""
    partial = run / f".{CONFIG_FILE}.partial"
    partial.write_text(yaml.safe_dump(dump(config), sort_keys=False))
    partial.replace(run / CONFIG_FILE)


def _taken_over() -> None:
    """Another driver goes on with the run: this one must not write into it any more, not even to save."""
    print("metashard: another driver has taken this run over; ending", file=sys.stderr, flush=True)
    os._exit(1)
