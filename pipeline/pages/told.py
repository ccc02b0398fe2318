"""What every kind of page tells: when it was, what it ran on, where MLflow has it, how to do it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from pipeline import spool, tracking
from pipeline.data.index import FOLDER as INDEX_FOLDER
from pipeline.pages.parts import Code, Facts, Note, Part, link
from pipeline.shipment import REFUSED_FILE, SENT_FILE, read_json
from pipeline.status import INTERRUPTED, status_of

STATES = {
    "RUNNING": "running",
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "stopped before its end",
    INTERRUPTED: "interrupted: it was killed, or its machine was",
}
REVISION = "mlflow.source.git.commit"
DIRTY = "-dirty"
NAMES = {
    REVISION: "git revision",
    "config.fingerprint": "config fingerprint",
    "data.fingerprint": "data fingerprint",
    "engine.plan": "how episodes were executed",
    "make_learner": "learner made by",
}
"""What tags are called on a page, where it is not their key."""
END = "END_OF_CONFIG"


def times(run: Path, past: spool.History) -> dict[str, str]:
    """The state, and from when to when the spool tells of it, in this machine's time."""
    began = datetime.fromtimestamp(past.started_ms / 1000)
    last_ms = max((record.get("t", 0) for _, record in spool.records(run)), default=past.started_ms)
    took = timedelta(seconds=(last_ms - past.started_ms) // 1000)
    return {
        "State": STATES[status_of(run, past)],
        "Started": f"{began:%Y-%m-%d %H:%M:%S}",
        "Last heard of": f"{datetime.fromtimestamp(last_ms / 1000):%Y-%m-%d %H:%M:%S}, {took} after that",
    }


def environment(past: spool.History) -> list[Part]:
    """Versions, machine, revision, hashes: all that was noted of the run but what it is."""
    noted = {key: text for key, text in past.tags.items() if key != spool.KIND and not key.startswith("changed.")}
    versions = {key: text for key, text in noted.items() if key.startswith("version.")}
    others = {NAMES.get(key, key): text for key, text in noted.items() if key not in versions}
    return (
        [Facts({**others, **{key.removeprefix("version."): text for key, text in versions.items()}})] if noted else []
    )


def tracked(run: Path, past: spool.History) -> list[Part]:
    """Where MLflow has it, and what MLflow has not."""
    uri, page = tracking.target_uri(run), tracking.run_url(run)
    if not page:
        lacking = f"MLflow has not heard of it yet; send it: metashard sync {shlex.quote(str(run))}"
        return [Note(lacking, is_warning=True)]
    parts: list[Part] = [link(page, f"Run {tracking.run_id_of(run)} in MLflow")]
    if not uri.startswith("http"):
        parts.append(Note(f"It lies in {uri}; the link works while this runs: metashard ui --uri {shlex.quote(uri)}"))
    sent, size = read_json(run / SENT_FILE), (run / spool.FILE).stat().st_size
    # The status is told last: whatever stands behind what was sent is lacking there.
    if past.status != "RUNNING" and (sent.get("offset", 0) < size or sent.get("owed")):
        parts.append(
            Note(f"MLflow has not got everything; send it: metashard sync {shlex.quote(str(run))}", is_warning=True)
        )
    return parts


def warnings(run: Path, past: spool.History) -> list[Part]:
    """What anybody who relies on the figures should know, of any kind of run."""
    said = []
    if past.tags.get(REVISION, "").endswith(DIRTY):
        said.append("The code had been changed since its git revision; the figures belong to those changes too.")
    said += [
        f"{key.removeprefix('changed.')} was changed to {text} when it was gone on with; the config shows the new one."
        for key, text in past.tags.items()
        if key.startswith("changed.")
    ]
    damaged = sum(record["kind"] == "damaged" for _, record in spool.records(run))
    if damaged:
        said.append(f"{damaged} lines of {spool.FILE} are damaged and were passed over.")
    refused = _lines(run / REFUSED_FILE)
    if refused:
        said.append(f"MLflow refused {refused} records; they are in {REFUSED_FILE} and in {spool.FILE}.")
    return [Note(text, is_warning=True) for text in said]


def commands(past: spool.History, verb: str, file: str, config: str) -> Code:
    """The commands that do it again, the config among them, for a POSIX shell."""
    end = END
    while end in config.splitlines():
        end += "_"
    revision = past.tags.get(REVISION, "").removesuffix(DIRTY)
    checkout = f"git checkout {shlex.quote(revision)}\n" if revision not in ("", "unknown") else ""
    text = f"{checkout}cat > {file} <<'{end}'\n{config.rstrip()}\n{end}\nmetashard {verb} {file}"
    return Code("In a checkout of metashard, on data with the fingerprint above", text)


def data_hint(config: Mapping[str, Any], past: spool.History) -> list[Part]:
    """How to come by the data: what is known of how they were packed, and the hash by which they are known."""
    data = config.get("data")
    root = str(data.get("root", "")) if isinstance(data, Mapping) else ""
    found = past.tags.get("data.fingerprint", "")
    if not root:
        return []
    hint = f"The data lay in {root}. On another machine append data.root=… and runs=runs to the last command."
    if found:
        hint += f" They are the same data if the fingerprint in {INDEX_FOLDER}/manifest.json is {found}."
    parts: list[Part] = [Note(hint)]
    manifest = {} if "://" in root else read_json(Path(root) / INDEX_FOLDER / "manifest.json")
    if isinstance(manifest, dict) and manifest.get("fingerprint") == found and found:
        parts.append(Facts(_packed(manifest)))
    return parts


def _packed(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What a data set's manifest tells of how it was packed."""
    origin = manifest.get("origin", {})
    splits = {"layout": "as the layout says", "rule": f"--rule {origin.get('rule')}", "files": "--splits FOLDER"}
    store, kind = manifest.get("store", "?"), manifest.get("dtype", "?")
    return {
        "data set": str(manifest.get("name", "?")),
        "packed with": f"metashard pack SOURCE DEST --layout … --store {store}",
        "samples": f"{manifest.get('samples', 0):,}, {kind}",
        "splits": splits.get(str(origin.get("splits")), json.dumps(origin)),
        "tars": str(len(manifest.get("shards", []))),
    }


def text_of(path: Path) -> str:
    """A text file's content; empty where there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def tree_of(text: str) -> dict[str, Any]:
    """The values of a YAML text; empty where it is none."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def command_line(words: Sequence[object]) -> str:
    """Words as a shell wants them."""
    return shlex.join(map(str, words))


def _lines(path: Path) -> int:
    return len(text_of(path).splitlines())
