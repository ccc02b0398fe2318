"""A copy of a run in a store, made while it goes on, from which a driver on any other machine goes on with it."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipeline import checkpoint, lease, shipment, spool, tracking
from pipeline.archive import CONFIG_FILE, STOP_FILE
from pipeline.data import remote
from pipeline.data.root import Url
from pipeline.data.store import Absent
from pipeline.errors import InputError
from pipeline.shipment import read_json, write_json

FILE = "mirror.json"
"""In the run's folder: the URL of its copy, and which holder of the run has written that last from here."""
LOOK_S = 1.0
"""How often it is looked for a new checkpoint."""
EVERY_S = 30.0
"""How often the rest is sent."""
CHECKPOINTS = "checkpoints"
OWN = frozenset(
    (FILE, lease.FILE, lease.LOCK_FILE, STOP_FILE, tracking.LOCK_FILE, tracking.LOG_FILE, shipment.SENT_FILE, "ray")
)
"""What is this machine's alone."""
Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds."""


class StoreBoard:
    """The holder's heartbeat in the copy of a run."""

    def __init__(self, copy: Url):
        self._url = copy / lease.FILE

    def read(self) -> dict[str, Any] | None:
        try:
            return json.loads(remote.content(self._url))
        except (Absent, ValueError):
            return None

    def write(self, said: dict[str, Any]) -> None:
        remote.put(self._url, json.dumps(said).encode())


def check(url: Url) -> None:
    """Raises InputError if nothing can be written to this folder of a store, read from there, listed or removed."""
    folder, said = url / f".preflight-{secrets.token_hex(4)}", secrets.token_bytes(8)
    mark = folder / "mark"
    remote.put(mark, said)
    try:
        if remote.content(mark) != said or mark not in remote.listed(folder):
            raise InputError(f"{url}: what is written there is not what is read; use a store that is consistent")
    finally:
        remote.remove(mark)


def is_known(copy: Url) -> bool:
    """Whether the store has a run there."""
    try:
        remote.version_of(copy / CONFIG_FILE)
    except Absent:
        return False
    return True


def held(run: Path, copy: Url, holder: str) -> None:
    """Note that this folder is the run from now on, by the holder of its lease."""
    write_json(run / FILE, {"url": str(copy), "holder": holder})


def bring(run: Path, copy: Url, *, before: str) -> None:
    """Make the folder what the store has, unless the last holder, `before`, was here: then it has that and perhaps more.

    Where the store has no such run yet the folder stays as it is. Evaluations made here stay too; checkpoints that the store has
    not got go, once the others are there. Whoever is killed meanwhile brings it again.

    Raises:
        InputError: the folder is another run's, or the store does not answer.
    """
    if before and read_json(run / FILE).get("holder") == before:
        return
    names = sorted(str(url).removeprefix(f"{copy}/") for url in remote.listed(copy))
    if CONFIG_FILE not in names:
        return
    if spool.FILE in names:
        _refuse_another(run, copy)
    (run / FILE).unlink(missing_ok=True)
    whole = {name.rpartition("/")[0] for name in names if name.endswith(f"/{checkpoint.COMPLETE}")}
    # By it MLflow is told only what it has not got; of another spool it knows nothing.
    (run / shipment.SENT_FILE).unlink(missing_ok=True)
    # COMPLETE is there before a checkpoint's other files by the alphabet, and has to be the last.
    for name in sorted(names, key=lambda name: name.endswith(checkpoint.COMPLETE)):
        folder = name.rpartition("/")[0]
        if _is_own(name) or (folder.startswith(f"{CHECKPOINTS}/") and folder not in whole):
            continue
        content, path = remote.content(copy / name), run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(content)
        partial.replace(path)
    for path in checkpoint.all_in(run / CHECKPOINTS):
        if f"{CHECKPOINTS}/{path.name}" not in whole:
            shutil.rmtree(path)


def _refuse_another(run: Path, copy: Url) -> None:
    """Raise InputError if the folder holds a run, and the store under the same id another one."""
    here, there = spool.history(run).id, spool.id_of(remote.content(copy / spool.FILE))
    if here and there and here != there:
        raise InputError(f"{copy}: is another run than {run}; choose another --run, --runs or mirror")


def fetch(copy: Url, runs: Path) -> Path:
    """Bring a run out of a store into the folder `runs`, to be looked at, evaluated or gone on with; its folder.

    Raises:
        InputError: there is no such run, or it is being trained on this machine.
    """
    if not is_known(copy):
        found = {str(url).removeprefix(f"{copy}/").partition("/")[0] for url in remote.listed(copy)}
        raise InputError(f"{copy}: no run there; what is there: {', '.join(sorted(found)) or 'nothing'}")
    run = runs / copy.name
    run.mkdir(parents=True, exist_ok=True)
    with lease.locked(run):
        last = (StoreBoard(copy).read() or {}).get("nonce", "")
        bring(run, copy, before=last)
        if not read_json(run / FILE):
            held(run, copy, "")
    return run


def catch_up(run: Path) -> int | None:
    """Send the copy of a run what it has not got; the number of files, None where the run has no copy.

    Raises:
        InputError: the store does not take it, or another machine has gone on with the run.
    """
    known = read_json(run / FILE)
    return Mirror(run, Url(known["url"])).send() if known.get("holder") else None


class Mirror:
    """Sends what is new in a run's folder to its copy while the block runs, and what is left at its end.

    A checkpoint is there when COMPLETE is, which goes last, after the metrics of its meta-steps. A store that does not
    answer holds up nothing; what it has missed it is sent later.
    """

    def __init__(self, run: Path, copy: Url, *, look_s: float = LOOK_S, every_s: float = EVERY_S):
        self.run, self.copy, self._look_s, self._every_s = run, copy, look_s, every_s
        self.fault = ""
        self._sent: dict[str, Stamp | None] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mirror", daemon=True)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        self._try(is_last=True)
        if self.fault:
            said = f"{self.copy} has not got everything: {self.fault}; send the rest: metashard sync {self.run.name}"
            print(f"warning: {said}", file=sys.stderr)

    def send(self) -> int:
        """Send what is new, and let go of what was pruned here; the number of files sent.

        Raises:
            InputError: the store does not take it, or another machine has gone on with the run.
        """
        # A driver that was cut off may send before it hears that it was taken over.
        holder = read_json(self.run / FILE).get("holder")
        if holder and (StoreBoard(self.copy).read() or {}).get("nonce") != holder:
            raise InputError(
                f"{self.copy}: another machine has gone on with it; bring that: metashard fetch {self.copy}"
            )
        if self._sent is None:
            self._sent = {str(url).removeprefix(f"{self.copy}/"): None for url in remote.listed(self.copy)}
        here = self._here()
        loose = [name for name in here if not name.startswith(f"{CHECKPOINTS}/")]
        count = sum(self._put(name, here[name]) for name in loose if self._sent.get(name) != here[name])
        for folder in sorted({name.rpartition("/")[0] for name in here.keys() - set(loose)}):
            count += self._send_checkpoint(
                folder, {name: here[name] for name in here if name.rpartition("/")[0] == folder}
            )
        gone = [name for name in self._sent if name.startswith(f"{CHECKPOINTS}/") and name not in here]
        for name in sorted(gone, key=lambda name: not name.endswith(checkpoint.COMPLETE)):
            remote.remove(self.copy / name)
            del self._sent[name]
        return count

    def _send_checkpoint(self, folder: str, files: dict[str, Stamp]) -> int:
        assert self._sent is not None
        complete = f"{folder}/{checkpoint.COMPLETE}"
        if complete not in files or all(self._sent.get(name) == stamp for name, stamp in files.items()):
            return 0
        if complete in self._sent:
            manifest = f"{folder}/{checkpoint.MANIFEST}"
            if manifest in self._sent and remote.content(self.copy / manifest) == (self.run / manifest).read_bytes():
                self._sent |= files  # it was sent before this began, or has been made again as it was
                return 0
            remote.remove(self.copy / complete)
            del self._sent[complete]
        new = [name for name in files if name != complete and self._sent.get(name) != files[name]]
        # One that was pruned meanwhile is not there to be put.
        if not all([self._put(name, files[name]) for name in new]):
            return 0
        return len(new) + self._put(complete, files[complete])

    def _put(self, name: str, stamp: Stamp) -> bool:
        assert self._sent is not None
        try:
            content = (self.run / name).read_bytes()
        except FileNotFoundError:
            return False
        remote.put(self.copy / name, content)
        self._sent[name] = stamp
        return True

    def _here(self) -> dict[str, Stamp]:
        found = {}
        for path in sorted(self.run.rglob("*")):
            name = path.relative_to(self.run).as_posix()
            if _is_own(name):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if not path.is_dir():
                found[name] = (status.st_size, status.st_mtime_ns)
        return found

    def _watch(self) -> None:
        known: list[Path] = []
        last_s = -self._every_s
        while not self._over.wait(self._look_s):
            now = checkpoint.all_in(self.run / CHECKPOINTS)
            if now != known or time.monotonic() - last_s >= self._every_s:
                known = now
                self._try()
                last_s = time.monotonic()

    def _try(self, *, is_last: bool = False) -> None:
        before, self.fault = self.fault, ""
        try:
            self.send()
        except (InputError, OSError) as error:
            self.fault = str(error)
            if not (before or is_last):
                print(f"warning: {self.copy} does not take what is new: {error}; it is tried again", file=sys.stderr)


def _is_own(name: str) -> bool:
    """Whether a file of a run stays on its machine."""
    parts = name.split("/")
    return parts[0] in OWN or any(part.startswith(".") or part.endswith(".partial") for part in parts)
