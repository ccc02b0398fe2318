"""Takes a spool's records to an MLflow run, in order, and remembers on disk how far it came."""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import shipped_data, shipped_model, spool
from pipeline.errors import InputError
from pipeline.shipped_model import Wanted

SENT_FILE = "spool.sent.json"
REFUSED_FILE = "spool.refused.jsonl"
RUN_TAG = "metashard.run"
MOST = {"metrics": 1000, "params": 100, "tags": 100}
# MLflow's codes for "will never work", as against "not now".
HOPELESS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    **shipped_model.QUIET,
    # Whoever ships tries again by itself, so a call need not.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class Target(NamedTuple):
    """Where a run is tracked; `parent` is, relative to its folder, that of the run of which it is a part, if it is one."""

    uri: str
    experiment: str
    name: str
    parent: str = ""


@dataclass
class Sent:
    """What of a spool has arrived: bytes from its start, and what was passed over that is still to go: [path, folder] of an
    artifact, a `Wanted` of a model."""

    uri: str = ""
    spool: str = ""
    run_id: str = ""
    experiment_id: str = ""
    offset: int = 0
    owed: list[list[Any]] = field(default_factory=list)
    refused: int = 0


@dataclass
class Chunk:
    """Records to be sent together, by kind."""

    end: int
    records: int = 0
    items: dict[str, list[Any]] = field(default_factory=lambda: {kind: [] for kind in MOST})
    files: dict[tuple[Any, ...], None] = field(default_factory=dict)
    """Artifacts and models, each once, as `Sent.owed` has them."""
    data: list[spool.Record] = field(default_factory=list)
    status: tuple[str, int] | None = None
    damaged: list[str] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return any(len(items) >= MOST[kind] for kind, items in self.items.items())


class Shipment:
    """Sends what a spool holds and MLflow has not; every part may fail and be tried again without sending anything twice.

    Metrics keep the spool's times, by which MLflow knows a repeated one; the run is found again by a tag.
    """

    def __init__(self, run_dir: Path, target: Target):
        self.run_dir, self.target = run_dir, target
        self.refused: list[str] = []
        self._client: Any = None
        past = spool.history(run_dir)
        self._spool, self._started_ms = past.id, past.started_ms
        self.sent = self._restored()

    def step(self) -> int:
        """Send the next piece; the number of its records and artifacts, 0 when all is sent. Raises whatever MLflow raises."""
        if self._client is None:
            self._connect()
        chunk = self._read()
        try:
            if chunk.records:
                self._send(chunk)
                self.sent.offset = chunk.end
                self.sent.owed += [list(own) for own in chunk.files if list(own) not in self.sent.owed]
                self._remember()
                return chunk.records
            if self.sent.owed:
                self._send_file(self.sent.owed[0])
                self.sent.owed.pop(0)
                self._remember()
                return 1
        except Exception:
            # Whatever was wrong, the run may have been deleted or the server be another one: look again.
            self._client = None
            # A file that is not taken must not keep the others waiting.
            self.sent.owed = self.sent.owed[1:] + self.sent.owed[:1]
            raise
        return 0

    def is_complete(self) -> bool:
        """Whether MLflow has everything that the spool holds now."""
        return bool(self.sent.run_id) and not self.sent.owed and not self._read().records

    def _restored(self) -> Sent:
        sent = Sent(**read_json(self.run_dir / SENT_FILE))
        same = sent.uri == plain_uri(self.target.uri) and sent.spool == self._spool
        if same and sent.offset <= (self.run_dir / spool.FILE).stat().st_size:
            return sent
        return Sent(uri=plain_uri(self.target.uri), spool=self._spool)

    def _remember(self) -> None:
        write_json(self.run_dir / SENT_FILE, vars(self.sent))

    def _connect(self) -> None:
        """Find the run, or make it; a run that is not the one sent to before gets everything anew."""
        client = client_of(self.target.uri)
        experiment_id = _experiment(client, self.target)
        run = _find(client, experiment_id, self.sent.run_id, self._spool)
        if run is None:
            tags = {RUN_TAG: self._spool, "mlflow.user": _user(), "mlflow.source.name": "metashard", **self._parent()}
            run = client.create_run(experiment_id, self._started_ms, tags, self.target.name)
        elif run.info.lifecycle_stage == "deleted":
            client.restore_run(run.info.run_id)
        if run.info.run_id != self.sent.run_id:
            self.sent = Sent(self.sent.uri, self._spool, run.info.run_id, run.info.experiment_id)
            self._remember()
        self._client = client

    def _parent(self) -> dict[str, str]:
        """The tag by which MLflow shows a run below the one of which it is a part."""
        if not self.target.parent:
            return {}
        sent = read_json(self.run_dir / self.target.parent / SENT_FILE)
        if sent.get("uri") != self.sent.uri or not sent.get("run_id"):
            raise RuntimeError(f"the run of which {self.run_dir.name} is a part has not been sent there yet")
        return {"mlflow.parentRunId": sent["run_id"]}

    def _read(self) -> Chunk:
        chunk = Chunk(self.sent.offset)
        for end, record in spool.records(self.run_dir, self.sent.offset):
            chunk.end = end
            chunk.records += 1
            _add(chunk, record)
            if chunk.is_full:
                break
        return chunk

    def _send(self, chunk: Chunk) -> None:
        for fault in chunk.damaged:
            self._refuse(fault)
        for kind, items in chunk.items.items():
            for start in range(0, len(items), MOST[kind]):
                self._log(kind, items[start : start + MOST[kind]])
        for record in chunk.data:
            self._unless_hopeless(
                f"data {record['name']}",
                lambda own=record: shipped_data.ship(self._client, self.sent.run_id, own["name"], own["values"]),
            )
        if chunk.status:
            status, time_ms = chunk.status
            if status == "RUNNING":
                self._client.update_run(self.sent.run_id, status=status)
            else:
                self._client.set_terminated(self.sent.run_id, status, time_ms)

    def _log(self, kind: str, items: Sequence[Any]) -> None:
        """One call for all; where MLflow refuses that, one for each, to lose none but the refused."""
        try:
            self._client.log_batch(self.sent.run_id, **{kind: items}, synchronous=True)
        except Exception as error:
            if not self._is_hopeless(error):
                raise
            if len(items) == 1:
                self._refuse(f"{kind} {items[0]}: {first_line(error)}")
                return
            for item in items:
                self._log(kind, [item])

    def _send_file(self, owed: Sequence[Any]) -> None:
        if len(owed) > 2:
            wanted, sent = Wanted(*owed), self.sent
            self._unless_hopeless(
                f"model {wanted.path}",
                lambda: shipped_model.ship(self._client, self.run_dir, sent.run_id, sent.experiment_id, wanted),
            )
            return
        path, folder = owed
        if not (self.run_dir / path).is_file():
            self._refuse(f"artifact {path}: the file is gone")
            return
        self._client.log_artifact(self.sent.run_id, str(self.run_dir / path), folder or None)

    def _unless_hopeless(self, what: str, send: Callable[[], None]) -> None:
        """Send it; what MLflow will never take is refused."""
        try:
            send()
        except Exception as error:
            if not self._is_hopeless(error):
                raise
            self._refuse(f"{what}: {first_line(error)}")

    def _is_hopeless(self, error: Exception) -> bool:
        if isinstance(error, InputError):
            return True
        if getattr(error, "error_code", "") not in HOPELESS:
            return False
        # A deleted run refuses everything: that is not the fault of what it was sent.
        return self._client.get_run(self.sent.run_id).info.lifecycle_stage != "deleted"

    def _refuse(self, reason: str) -> None:
        self.refused.append(reason)
        self.sent.refused += 1
        with (self.run_dir / REFUSED_FILE).open("a") as file:
            file.write(json.dumps({"run_id": self.sent.run_id, "reason": reason}) + "\n")


def _add(chunk: Chunk, record: spool.Record) -> None:
    from mlflow.entities import Metric, Param, RunTag

    match record["kind"]:
        case "metrics":
            chunk.items["metrics"] += [
                Metric(key, float(value), record["t"], record["step"]) for key, value in record["values"].items()
            ]
        case "params":
            chunk.items["params"] += [Param(key, value) for key, value in record["values"].items()]
        case "tags":
            chunk.items["tags"] += [RunTag(key, value) for key, value in record["values"].items()]
        case "artifact":
            chunk.files[record["path"], record["folder"]] = None
        case "model":
            chunk.files[Wanted(record["path"], record["register"], record["alias"], record["t"])] = None
        case "data":
            chunk.data.append(record)
        case "status":
            chunk.status = record["status"], record["t"]
        case "damaged":
            chunk.damaged.append(f"{record['size']} bytes at {record['at']} of {spool.FILE} are no record")


def client_of(uri: str) -> Any:
    """A quiet MLflow client with short timeouts; importing MLflow takes seconds, so it is done here only."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(uri)


def _experiment(client: Any, target: Target) -> str:
    """The id of the experiment, made or restored if need be; that of a local store keeps its artifacts beside it."""
    experiment = client.get_experiment_by_name(target.experiment)
    if experiment is None:
        try:
            return client.create_experiment(target.experiment, artifact_location=_artifacts(target.uri))
        except Exception:
            # Another run may have made it in the meantime.
            experiment = client.get_experiment_by_name(target.experiment)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


def _artifacts(uri: str) -> str | None:
    """Where a local store's artifacts lie; none: where the server says."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


def _find(client: Any, experiment_id: str, run_id: str, spool_id: str) -> Any:
    """The run sent to before, or the one that carries our tag: a crash may have come between making and remembering it."""
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    if run_id:
        try:
            return client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{spool_id}'", ViewType.ALL, max_results=1)
    return found[0] if found else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, ImportError, OSError):
        # A container's user may have no name.
        return str(os.getuid())


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that some libraries add and without the password of a URI in it."""
    return plain_uri((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]


def plain_uri(uri: str) -> str:
    """The URI without user name and password, fit to be written to disk."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", uri)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's values; empty where it is missing or torn."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Replace a JSON file in one move."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(values))
    partial.replace(path)
