"""What was submitted, kept in a folder of its own: the command, the target, and what the target calls the job."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.errors import SubmitError

_FILE = "submission.json"
RUN_ENV = "METASHARD_RUN"
"""The variable by which a job knows its run id: the command goes on with the run of this id, or makes it."""


@dataclass(frozen=True)
class Submission:
    """A command line under a run id. `command` is what follows `metashard`; `spec` the target's file as plain values.

    `job` is what the target calls it, empty before it was sent; `attempt` counts from 1.
    """

    id: str
    command: list[str]
    spec: dict[str, Any]
    folder: Path
    job: str = ""
    attempt: int = 1

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the job; none is secret."""
        tracking = {"MLFLOW_TRACKING_URI": self.spec["mlflow"]} if self.spec.get("mlflow") else {}
        return {RUN_ENV: self.id, **tracking, **self.spec.get("env", {})}


def new_id(command: list[str]) -> str:
    """A run id: the config's file name (or the verb), the time, four digits of chance."""
    named = next((Path(word).stem for word in command[1:] if word.endswith((".yaml", ".yml"))), command[0])
    return f"{re.sub('[^A-Za-z0-9._-]', '-', named)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def check_id(name: str) -> str:
    """The id itself; raises `SubmitError` if it cannot name a folder, a job and a Kubernetes object."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise SubmitError(f"run id {name!r}: letters, digits, '.', '_' and '-' only, 100 at most")
    return name


def keep(submission: Submission) -> None:
    """Write it down; whoever reads meanwhile sees the old or the new."""
    values = {key: value for key, value in asdict(submission).items() if key != "folder"}
    partial = submission.folder / f".{_FILE}.{os.getpid()}"
    partial.write_text(json.dumps(values, indent=1))
    partial.replace(submission.folder / _FILE)


def find(name: str, folder: Path) -> Submission | None:
    """The submission of this run id, if there is one."""
    path = folder / check_id(name) / _FILE
    try:
        return Submission(**json.loads(path.read_text()), folder=path.parent.absolute())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise SubmitError(f"{path} is not a submission ({error}); remove it, or name another run") from error


def known(name: str, folder: Path) -> Submission:
    """As `find`; raises `SubmitError` if there is none."""
    found = find(name, folder)
    if found is None:
        raise SubmitError(f"run {name!r}: none was submitted from here ({folder}); `metashard list` names them")
    return found


def all_in(folder: Path) -> list[Submission]:
    """All of them, oldest first."""
    paths = sorted(folder.glob(f"*/{_FILE}"), key=lambda path: path.stat().st_mtime)
    return [known(path.parent.name, folder) for path in paths]


@contextmanager
def only_submitter(name: str, folder: Path) -> Iterator[Path]:
    """The folder of a run id, held so that no other process submits under this id meanwhile."""
    own = (folder / check_id(name)).absolute()
    try:
        own.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SubmitError(f"{own}: {error.strerror}; name a folder that can be written with --jobs") from error
    with (own / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SubmitError(f"run {name!r} is being submitted by another process; wait for it") from error
        yield own
