"""Slurm: a batch job that starts Ray on its nodes, runs the command on the first, and is queued again when it drained."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import SubmitError
from cluster.security import MODE_ENV, TOKEN_PATH_ENV, write_token
from cluster.spec import SlurmSpec
from cluster.submission import Submission
from cluster.target import DRAINED, Check, State

POLL_S = 1.0
ASK_EVERY = 10
"""The controller serves a whole cluster: while a log is followed it is asked at each tenth look only."""
ANSWER_S = 60
_QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "STOPPED", "RESIZING"}


def directives(spec: SlurmSpec) -> list[str]:
    """What is asked of Slurm, as options of sbatch."""
    asked = {
        "partition": spec.partition,
        "account": spec.account,
        "qos": spec.qos,
        "nodes": spec.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": spec.cpus,
        "gpus-per-node": ":".join(filter(None, [spec.gpu_type, str(spec.gpus)])) if spec.gpus else "",
        "mem": spec.memory,
        "time": spec.time,
        "chdir": spec.working_dir.absolute(),
        "signal": f"B:USR1@{spec.grace_s}",
        "open-mode": "append",
    }
    return [f"--{key}={value}" for key, value in asked.items() if value != ""] + ["--requeue", *spec.options]


def script(submission: Submission, spec: SlurmSpec) -> str:
    """The batch script. It holds no secret: the token is in a file beside it that only its owner can read."""
    log = str(submission.folder / "slurm").replace("%", "%%") + "-%j.log"
    options = [f"--job-name={submission.id}", *directives(spec), f"--output={log}"]
    values = {
        "folder": submission.folder,
        "nodes": spec.nodes,
        "cpus": spec.cpus,
        "gpus": spec.gpus,
        "gpu_type": spec.gpu_type,
        "interface": spec.interface,
        "port": spec.port,
        "temp_dir": spec.temp_dir,
        "start_s": spec.start_s,
        "requeues": spec.requeues,
        "drained": DRAINED,
    }
    exported = {MODE_ENV: "token", TOKEN_PATH_ENV: str(submission.folder / "token"), **submission.environment}
    path = [f"PATH={shlex.quote(spec.bin)}:$PATH"] if spec.bin else []
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {shlex.quote(option)}" for option in options),
            *(f"{key}={shlex.quote(str(value))}" for key, value in values.items()),
            *(f"export {key}={shlex.quote(value)}" for key, value in exported.items()),
            f"command=({shlex.join(['metashard', *submission.command])})",
            "setup() {",
            *(f"{{ {line}\n}} || return" for line in [*spec.setup, *path]),
            ":",
            "}",
            Path(__file__).with_suffix(".sh").read_text(),
        ]
    )


def slurm(*words: str, text: str | None = None) -> str:
    """What a command of Slurm prints.

    Raises:
        SubmitError: there is none here, it does not answer, or refuses; Slurm's own sentence, in one line.
    """
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, errors="replace", timeout=ANSWER_S)
    except FileNotFoundError as error:
        raise SubmitError(
            f"{words[0]}: there is no such command here; run metashard on a login node of the Slurm cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SubmitError(f"{words[0]}: Slurm has not answered for {ANSWER_S} s; try again later") from error
    said = " ".join(f"{done.stderr}".split())
    if done.returncode:
        raise SubmitError(f"{words[0]} refused: {said.removeprefix(f'{words[0]}: error: ') or done.returncode}")
    return done.stdout if text is None else f"{done.stdout.strip()} {said}".strip()


class Slurm:
    """A target; a job is named `NUMBER@FOLDER`, for Slurm forgets a job minutes after its end and the folder does not."""

    def __init__(self, spec: SlurmSpec):
        self.spec = spec

    def plan(self, submission: Submission) -> str:
        return script(submission, self.spec)

    def preflight(self) -> list[Check]:
        version = slurm("sinfo", "--version").strip()
        checks = [Check("Slurm", version)]
        body = "\n".join(["#!/bin/bash", *(f"#SBATCH {shlex.quote(o)}" for o in directives(self.spec)), "true\n"])
        try:
            found = slurm("sbatch", "--test-only", text=body).removeprefix("sbatch: ")
            checks.append(Check("nodes", found))
        except SubmitError as error:
            checks.append(Check("nodes", str(error), "change partition, account, nodes, time … in the cluster's file"))
        if self.spec.bin and not (Path(self.spec.bin) / "metashard").exists():
            remedy = "set bin to the folder of metashard, ray and python, on a disk that all nodes share"
            checks.append(Check("metashard", f"bin = {self.spec.bin} has none", remedy))
        return checks

    def submit(self, submission: Submission) -> str:
        """As `Target.submit`.

        Raises:
            SubmitError: there is no Slurm here, or it refuses.
        """
        write_token(submission.folder / "token")
        path = submission.folder / "slurm.sh"
        path.write_text(script(submission, self.spec))
        number = slurm("sbatch", "--parsable", str(path)).strip().split(";")[0]
        return f"{number}@{submission.folder}"

    def state(self, job: str) -> State:
        is_stopped = _file(job, "stopped").exists()
        try:
            code = int(_file(job, "exit").read_text())
        except FileNotFoundError:
            return _seen(_number(job), is_stopped=is_stopped)
        if is_stopped and code:
            return State("stopped", code)
        return State("failed" if code else "finished", code)

    def follow(self, job: str) -> Iterator[str]:
        """As `Target.follow`. Attempts of a job that was queued again stand in one log, one after another."""
        log, at, rest, looks = _file(job, "log"), 0, b"", 0
        while True:
            is_over = looks % ASK_EVERY == 0 and self.state(job).is_over
            looks += 1
            new = _read(log, at)
            at += len(new)
            *lines, rest = (rest + new).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
            if is_over:
                break
            time.sleep(POLL_S)
        if rest:
            yield rest.decode(errors="replace")

    def log(self, job: str) -> str:
        return _read(_file(job, "log"), 0).decode(errors="replace")

    def stop(self, job: str, *, force: bool) -> None:
        """As `Target.stop`. A job that still waits in the queue leaves it at once."""
        _file(job, "stopped").touch()
        signal = [] if force or self.state(job).name == "queued" else ["--signal=TERM", "--batch"]
        try:
            slurm("scancel", *signal, _number(job))
        except SubmitError:
            if not self.state(job).is_over:
                raise


def _number(job: str) -> str:
    return job.partition("@")[0]


def _file(job: str, ending: str) -> Path:
    """What the script keeps beside itself about this job of Slurm, its log among it."""
    number, _, folder = job.partition("@")
    return Path(folder) / f"slurm-{number}.{ending}"


def _seen(number: str, *, is_stopped: bool) -> State:
    """What Slurm knows of a job that has left no exit code."""
    try:
        shown = slurm("scontrol", "--oneliner", "show", "job", number)
    except SubmitError as error:
        if "Invalid job id" not in str(error):
            raise
        if is_stopped:
            return State("stopped")
        return State("lost", None, f"Slurm does not know job {number} any more, and it left no exit code")
    fields = dict(re.findall(r"(\w+)=(\S*)", shown))
    name, reason = fields["JobState"], fields.get("Reason", "None")
    message = name if reason == "None" else f"{name} ({reason})"
    if name in _QUEUED:
        return State("queued", None, message)
    if name in _RUNNING:
        return State("running", None, message)
    if name == "COMPLETED":
        return State("finished", 0)
    if name == "CANCELLED" or is_stopped:
        return State("stopped", None, message)
    code = int(fields.get("ExitCode", "1:0").split(":")[0]) or 1
    return State("failed", code, message)


def _read(path: Path, at: int) -> bytes:
    """What a file holds from a place on; nothing while it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(at)
            return file.read()
    except FileNotFoundError:
        return b""
