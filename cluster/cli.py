"""The verbs that send a command line to a cluster and look after it: submit, list, status, logs, stop, resume."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, assert_never

import typer
from rich.console import Console
from rich.table import Table

from cluster import security, spec, submission
from cluster.errors import SubmitError
from cluster.spec import AnySpec, KubeRaySpec, LocalSpec, RaySpec, SlurmSpec
from cluster.submission import Submission
from cluster.target import DRAINED, Check, State, Target

app = typer.Typer()
DETACHED = 130
"""The code after Ctrl-C: the job goes on, and nobody knows yet how it ends."""
WRONG_INPUT = 2
"""The code of a command whose input was wrong: it would be as wrong a second time."""

Jobs = Annotated[Path, typer.Option("--jobs", help="folder in which submissions are kept")]
Run = Annotated[str, typer.Argument(help="run id", show_default=False)]
JOBS = Path(".metashard")


@app.command(
    epilog="Example: metashard submit --cluster configs/cluster/local.yaml -- train configs/train/classification/glyphs.yaml",
)
def submit(
    command: Annotated[list[str], typer.Argument(help="after --: a verb and what it takes", show_default=False)],
    cluster: Annotated[Path, typer.Option(help="YAML file of a target", show_default=False)],
    run: Annotated[str | None, typer.Option(help="run id; the same one again goes on with it")] = None,
    retries: Annotated[int, typer.Option(help="start it again so often when it fails, while it is followed")] = 0,
    detach: Annotated[bool, typer.Option("--detach", help="do not follow the log")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be sent, and send nothing")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="allow plain http to another machine")] = False,
    jobs: Jobs = JOBS,
) -> None:
    """Run a command on a cluster under a run id, and follow its log; Ctrl-C leaves it running."""
    security.check_command(command)
    asked = spec.load(cluster)
    if insecure:
        asked = asked.model_copy(update={"insecure": True})
    name = submission.check_id(run or submission.new_id(command))
    made = Submission(name, list(command), asked.model_dump(mode="json"), (jobs / name).absolute())
    if dry_run:
        print(_target(asked, jobs).plan(made))
        return
    _send(made, jobs, is_resumed=False)
    if not detach:
        _followed(name, jobs, retries)


@app.command(epilog="Example: metashard resume glyphs-20260101-120000-ab12")
def resume(
    run: Run,
    retries: Annotated[int, typer.Option(help="start it again so often when it fails, while it is followed")] = 0,
    detach: Annotated[bool, typer.Option("--detach", help="do not follow the log")] = False,
    jobs: Jobs = JOBS,
) -> None:
    """Submit a run again as it was, to go on from its newest checkpoint."""
    _send(submission.known(run, jobs), jobs, is_resumed=True)
    if not detach:
        _followed(run, jobs, retries)


@app.command(name="list", epilog="Example: metashard list")
def list_submitted(jobs: Jobs = JOBS) -> None:
    """List what was submitted from here."""
    table = Table("run", "target", "state", "attempt", "command", box=None, pad_edge=False)
    for one in submission.all_in(jobs):
        state = _state_or_fault(one, jobs)
        table.add_row(one.id, one.spec["kind"], _told(state), str(one.attempt), " ".join(one.command))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command(epilog="Example: metashard status glyphs-20260101-120000-ab12")
def status(run: Run, jobs: Jobs = JOBS) -> None:
    """Say where a run is; exit code 0 unless it failed or is lost."""
    one = submission.known(run, jobs)
    state = _of(one, jobs).state(one.job) if one.job else State("lost", message="it was never sent")
    print(f"{one.id}: {_told(state)}, attempt {one.attempt}, on {one.spec['kind']}")
    if state.name in ("failed", "lost"):
        raise typer.Exit(state.code or 1)


@app.command(epilog="Example: metashard logs -f glyphs-20260101-120000-ab12")
def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until it is over; Ctrl-C leaves it running")] = False,
    jobs: Jobs = JOBS,
) -> None:
    """Print a run's log; followed, the exit code is the job's."""
    one = submission.known(run, jobs)
    if follow:
        _followed(run, jobs, retries=0)
    else:
        print(_of(one, jobs).log(one.job), end="")


@app.command(epilog="Example: metashard stop glyphs-20260101-120000-ab12")
def stop(
    run: Run,
    force: Annotated[bool, typer.Option("--force", help="end it at once, without a checkpoint")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="until it is over")] = True,
    jobs: Jobs = JOBS,
) -> None:
    """Ask a run to save and leave; when its time is over it is killed."""
    one = submission.known(run, jobs)
    target = _of(one, jobs)
    state = target.state(one.job)
    if state.is_over and not force:
        raise SubmitError(f"run {run!r} is over: {_told(state)}; go on with: metashard resume {_named(run, jobs)}")
    target.stop(one.job, force=force)
    limit = time.monotonic() + one.spec["grace_s"] + 60
    while wait and not (state := target.state(one.job)).is_over:
        if time.monotonic() > limit:
            raise SubmitError(
                f"run {run!r} is still {state.name}; end it now: metashard stop --force {_named(run, jobs)}"
            )
        time.sleep(0.5)
    print(f"{run}: {_told(state) if wait else 'asked to stop'}")


def _send(asked: Submission, jobs: Path, *, is_resumed: bool) -> None:
    """Submit under the run id; one that is under way is left as it is, so that saying it twice does no harm."""
    with submission.only_submitter(asked.id, jobs):
        before = submission.find(asked.id, jobs)
        if before is not None and before.job:
            if before.command != asked.command or before.spec["kind"] != asked.spec["kind"]:
                raise SubmitError(
                    f"run {asked.id!r} was submitted to {before.spec['kind']} as: {' '.join(before.command)}; "
                    "take another run id, or say the same"
                )
            state = _of(before, jobs).state(before.job)
            if not state.is_over:
                print(f"{asked.id} is {state.name} already")
                return
            if state.name == "finished":
                raise SubmitError(f"run {asked.id!r} is finished; take another run id")
            asked = dataclasses.replace(asked, attempt=before.attempt + 1, job="")
        elif is_resumed:
            raise SubmitError(f"run {asked.id!r} was never sent; submit it")
        target = _of(asked, jobs)
        _checked(target.preflight())
        submission.keep(asked)
        submission.keep(dataclasses.replace(asked, job=target.submit(asked)))
    _tell(asked, jobs)


def _checked(checks: Sequence[Check]) -> None:
    """Print the preflight; raises `SubmitError` if a line failed."""
    table = Table("preflight", "found", "what to do", box=None, pad_edge=False)
    for check in checks:
        mark = "✗" if check.is_failed else "!" if check.is_warning else "✓"
        table.add_row(f"{mark} {check.what}", check.found, check.remedy)
    Console(stderr=True, width=None if sys.stderr.isatty() else 200).print(table)
    if failed := [check for check in checks if check.is_failed]:
        raise SubmitError(f"preflight: {'; '.join(f'{c.what}: {c.remedy}' for c in failed)}; nothing was submitted")


def _tell(one: Submission, jobs: Path) -> None:
    lines = [f"run        {one.id} on {one.spec['kind']}, attempt {one.attempt}"]
    if one.spec["mlflow"]:
        lines.append(f"MLflow     {one.spec['mlflow']}")
    lines.append(f"next       metashard status|logs -f|stop|resume {_named(one.id, jobs)}")
    print("\n".join(lines), flush=True)


def _named(run: str, jobs: Path) -> str:
    """What a verb must be told to find a run."""
    return run if jobs == JOBS else f"--jobs {jobs} {run}"


def _followed(name: str, jobs: Path, retries: int) -> None:
    """Print the log to its end, start it again if it failed and may be; leaves with the job's exit code."""
    try:
        for left in range(retries, -1, -1):
            state = _follow_one(submission.known(name, jobs), jobs)
            if state.name in ("finished", "stopped") or state.code == WRONG_INPUT or not left:
                break
            print(f"metashard: {_told(state)}; starting it again, {left - 1} more after that", file=sys.stderr)
            _send(submission.known(name, jobs), jobs, is_resumed=True)
    except KeyboardInterrupt:
        found = _named(name, jobs)
        print(
            f"\ndetached; {name} goes on. See it: metashard logs -f {found}   end it: metashard stop {found}",
            file=sys.stderr,
        )
        raise typer.Exit(DETACHED) from None
    print(f"{name}: {_told(state)}", file=sys.stderr)
    raise typer.Exit(0 if state.name == "finished" else state.code or 1)


def _follow_one(one: Submission, jobs: Path) -> State:
    target = _of(one, jobs)
    for line in target.follow(one.job):
        print(line, flush=True)
    return target.state(one.job)


def _told(state: State) -> str:
    told = state.name
    if state.code == DRAINED:
        told += f" (exit code {DRAINED}: saved, can go on)"
    elif state.code:
        told += f" (exit code {state.code})"
    return f"{told}: {state.message}" if state.message else told


def _state_or_fault(one: Submission, jobs: Path) -> State:
    """A list must not end at a target that does not answer."""
    if not one.job:
        return State("lost", message="it was never sent")
    try:
        return _of(one, jobs).state(one.job)
    except SubmitError as error:
        return State("lost", message=str(error))


def _of(one: Submission, jobs: Path) -> Target:
    return _target(spec.parse(one.spec, str(one.folder)), jobs)


def _target(asked: AnySpec, jobs: Path) -> Target:
    match asked:
        case LocalSpec():
            from cluster.local import Local

            return Local(asked, jobs)
        case RaySpec():
            from cluster.jobs import RayJobs

            return RayJobs(asked)
        case SlurmSpec():
            from cluster.slurm import Slurm

            return Slurm(asked)
        case KubeRaySpec():
            from cluster.kuberay import KubeRay

            return KubeRay(asked)
        case _:
            assert_never(asked)
