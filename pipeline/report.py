"""The verbs `runs`, `ui` and `sync`: what there is to see of runs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import mirror, spool, swept, tables, tracking
from pipeline.errors import InputError
from pipeline.shipment import plain_uri, read_json
from pipeline.status import status_of
from pipeline.swept import Sweep
from pipeline.tables import Grid

USUAL_PORT = 5000
START_S = 60
TRAINING = "training"
NOT_TESTED = {"test": float("nan"), "interval": float("nan")}


class RunRow(NamedTuple):
    """A line of `metashard runs`; accuracies are 0…1, nan where there is none yet."""

    id: str
    name: str
    what: str
    """A training, or what is told of several of them together."""
    status: str
    started: datetime
    steps: int
    planned: str
    validation: float
    test: float
    interval: float


def runs(root: Path) -> list[RunRow]:
    """The runs in a folder, the newest first, read from their spools.

    Raises:
        InputError: there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"runs = {root}: no such folder; `metashard train` makes it, --runs names another")
    rows = [_row(folder) for folder in run_folders(root)]
    return sorted(rows, key=lambda row: row.started, reverse=True)


def run_folders(root: Path) -> list[Path]:
    """The folders of runs below `root`."""
    return sorted(file.parent for file in root.glob(f"*/{spool.FILE}"))


def find(target: Path, root: Path) -> Path:
    """The folder of the run or sweep that a person names, by its id under `root` or by its folder.

    Raises:
        InputError: there is none.
    """
    for folder in (target, root / target):
        if (folder / spool.FILE).exists():
            return folder
    raise InputError(f"{target} is no run under {root}, and no run's folder; `metashard runs` lists the runs")


def _row(run: Path) -> RunRow:
    past = spool.history(run)
    if swept.is_sweep(past):
        try:
            return _sweep_row(swept.read(run))
        except InputError:
            pass  # a damaged one is listed too; `metashard report` says what is wrong with it
    scores = [value for value in past.series.get(swept.SHARE, {}).values() if value == value]
    return RunRow(
        id=run.name,
        name=past.params.get("name", run.name),
        what=_what(past),
        status=status_of(run, past),
        started=datetime.fromtimestamp(past.started_ms / 1000),
        steps=max(past.series.get("train/loss", {}), default=0),
        planned=past.params.get("meta.steps", "?"),
        validation=max(scores, default=float("nan")),
        **_tested(run),
    )


def _sweep_row(sweep: Sweep) -> RunRow:
    """A sweep by its best trial; its meta-steps are those of all trials."""
    best = sweep.best
    return RunRow(
        id=sweep.folder.name,
        name=sweep.past.params.get("name", sweep.folder.name),
        what=in_words(sweep),
        status=sweep.status,
        started=datetime.fromtimestamp(sweep.past.started_ms / 1000),
        steps=sum(trial.steps for trial in sweep.trials),
        planned=sweep.past.params.get("meta_steps", "?"),
        validation=best.score if best and best.score is not None and sweep.metric == swept.SHARE else float("nan"),
        **(_tested(best.run) if best else NOT_TESTED),
    )


def _tested(run: Path) -> dict[str, float]:
    """The headline of a run's test episodes and its interval, nan where there is none yet."""
    result = read_json(run / "result.json")
    found = result["test"][result["mode"]].get(result["test"].get("metric"), {}) if "test" in result else {}
    return {
        name: found.get(key, nan) for (name, nan), key in zip(NOT_TESTED.items(), ("mean", "interval"), strict=True)
    }


def in_words(sweep: Sweep) -> str:
    """How many trials a sweep has and, where the listing has no column for it, the best score."""
    planned, many = sweep.past.params.get("trials", ""), len(sweep.trials)
    is_short = sweep.status != "FINISHED" and planned.isdecimal() and many < int(planned)
    said = f"sweep, {many} of {planned} trials" if is_short else f"sweep of {many} trial{'' if many == 1 else 's'}"
    if sweep.best and sweep.metric != swept.SHARE:
        said += f", best {sweep.metric} {sweep.shown(sweep.best.score)}"
    return said


def _what(past: spool.History) -> str:
    kind, members = past.tags.get(spool.KIND), sum(re.fullmatch(r"run\.\d+", key) is not None for key in past.params)
    match kind:
        case None:
            return TRAINING
        case swept.KIND:
            return "sweep, damaged"
        case "compare":
            return f"comparison of {members} runs"
        case "table":
            return f"table of {members} runs"
        case _:
            return f"summary of {members} {kind}"


def print_runs(rows: Sequence[RunRow]) -> None:
    """A table of runs; in a pipe it is as wide as it needs to be."""
    if not rows:
        print("no runs yet; start one with: metashard train CONFIG")
        return
    columns = ("run", "what", "status", "started", "meta-steps", "best validation", "test ± 95 %")
    tables.show(Grid(columns, [_cells(row) for row in rows]))


def _cells(row: RunRow) -> list[str]:
    test = "–" if row.test != row.test else f"{100 * row.test:.2f} ± {100 * row.interval:.2f} %"
    best = "–" if row.validation != row.validation else f"{100 * row.validation:.2f} %"
    started = f"{row.started:%Y-%m-%d %H:%M}"
    steps = f"{row.steps}/{row.planned}" if row.what == TRAINING else str(row.steps or "–")
    return [row.id, row.what, row.status.lower(), started, steps, best, test]


def print_trials(sweep: Sweep) -> None:
    """A table of a sweep's trials, the best first."""
    print(f"{sweep.folder}: {in_words(sweep)}, {sweep.status.lower()}")
    if sweep.trials:
        tables.show(tables.trials(sweep))
    else:
        print("no trial has begun yet")


def print_scores(results: Mapping[str, Mapping[str, Any]]) -> None:
    """A table of evaluations: by name what `Evaluation.as_json` gives."""
    tables.show(tables.scores(results))


def print_comparison(result: Mapping[str, Any]) -> None:
    """A table of what `Comparison.as_json` gives; accuracies and their like in %, differences in points of them."""
    print(f"{tables.comparison_title(result)}; differences from the first run on the same episodes")
    tables.show(tables.comparison(result))


def print_seeds(result: Mapping[str, Any]) -> None:
    """A table of what `seeds.Summary.as_json` gives: over seeds, within a run, and run by run."""
    print(f"{tables.seeds_title(result)}; ± sd: how far a seed's value lies from the mean of all seeds")
    tables.show(tables.seeds(result))
    for run in result["runs"]:
        print(f"seed {run['seed']}: {run['run']} {run['checkpoint']}")


def print_pairs(result: Mapping[str, Any]) -> None:
    """A table of what `pair_protocol.Evaluated.as_json` gives."""
    mirrored = ", features of an image and its mirror image" if result["mirror"] else ""
    print(f"{result['pairs']} pairs by {result['score']}{mirrored}; thresholds from {result['threshold_from']}")
    tables.show(tables.pairs(result))
    for fold in result["folds"]:
        share = f"{100 * fold['accuracy']:.2f} % of {fold['pairs']} pairs"
        print(f"fold {fold['fold']}: {share} right at {fold['threshold']:.4g}")


def sync(root: Path, run: Path | None, uri: str) -> Iterator[str]:
    """Send MLflow and the copy in a store what they have not, of one run (a folder, or an id under `root`) or of all.

    Yields a line for each.

    An empty `uri` stands for the one the run was started with.

    Raises:
        InputError: there is no such run; or, after all were tried, not everything was taken.
    """
    folders = run_folders(root) if run is None else [run if run.exists() else root / run]
    short = lacking = 0
    for folder in folders:
        known = read_json(folder / tracking.TARGET_FILE).get("uri", "")
        chosen = uri or known or tracking.default_uri(root)
        done = tracking.sync(folder, uri=chosen)
        short += not done.complete
        state = "complete" if done.complete else f"NOT complete: {done.error}"
        yield f"{folder.name}: {done.sent} records sent to {plain_uri(chosen)}; {state}"
        for reason in done.refused:
            yield f"{folder.name}: MLflow refuses {reason}"
        try:
            count = mirror.catch_up(folder)
        except InputError as error:
            lacking += 1
            yield f"{folder.name}: the copy is NOT complete: {error}"
        else:
            if count is not None:
                yield f"{folder.name}: {count} files sent to its copy; complete"
    if not folders:
        yield f"no runs in {root}"
    if short or lacking:
        lines = [f"{short} of {len(folders)} runs are not complete in MLflow; see to the server, then sync again"]
        lines.append(f"{lacking} of {len(folders)} runs have no complete copy")
        raise InputError("; ".join(line for line, number in zip(lines, (short, lacking), strict=True) if number))


def ui(root: Path, uri: str, port: int) -> None:
    """Serve MLflow's pages of a store on this machine until Ctrl-C; port 0 takes 5000 or else a free one.

    Raises:
        InputError: there is no store yet, or the port is taken.
    """
    uri = uri or tracking.default_uri(root)
    if uri.startswith(("http://", "https://")):
        print(f"MLflow is at {plain_uri(uri)}")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise InputError(f"{uri}: no MLflow store there; train first, or name one with --uri or --runs")
    with serving(uri, _usable_port(port), root / "ui.log") as (address, process):
        try:
            # Who reads this line may end it at once.
            print(f"MLflow is at {address}  (Ctrl-C ends it)", flush=True)
            process.wait()
        except KeyboardInterrupt:
            return
    raise RuntimeError(f"MLflow's server ended by itself; its last words are in {root / 'ui.log'}")


@contextmanager
def serving(uri: str, port: int, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """An MLflow server on loopback for a database; it answers when the block begins and is gone when the block ends."""
    address = f"http://127.0.0.1:{port}"
    artifacts = ["--artifacts-destination", str(log.parent.absolute() / "mlartifacts")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # The URI may hold a password, so it does not go on the command line, where all users see it.
    environment = {**os.environ, **quiet, "MLFLOW_BACKEND_STORE_URI": uri}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command + artifacts,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        _await_answer(address, process, log)
        yield address, process
    finally:
        signal.signal(signal.SIGTERM, before)
        _end_group(process)


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


def _await_answer(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    raise RuntimeError(f"MLflow's server did not start: {last} (all of it: {log})")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and those it started: MLflow's command only launches the real server."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + 5
        while _group_lives(process) and time.monotonic() < deadline:
            time.sleep(0.05)
    process.wait()


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _usable_port(port: int) -> int:
    """`port` if it is free; for 0 the usual one, or else one that the system gives."""
    if not 0 <= port < 65536:
        raise InputError(f"--port {port}: ports go from 1 to 65535")
    reason = ""
    for candidate in (port,) if port else (USUAL_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError as error:
                reason = error.strerror
                continue
            return probe.getsockname()[1]
    raise InputError(f"--port {port} cannot be had: {reason}; leave it out to take a free one")
