"""Checkpoints: safetensors and JSON with hashes, `COMPLETE` written last, the last good one found by reading.

A checkpoint is a folder `step-00000200/` of `learner.safetensors`, `optimizer.safetensors`, `state.json`, `config.json`,
`manifest.json` (format number and the sha256 of each of them) and the empty file `COMPLETE`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from pipeline.errors import InputError

Done = TypeVar("Done")

FORMAT = 1
FILES = ("learner.safetensors", "optimizer.safetensors", "state.json", "config.json")
MANIFEST, COMPLETE = "manifest.json", "COMPLETE"
Files = Mapping[str, bytes]
"""The files of a checkpoint by name, as they travel from one machine to another."""


class Checkpoint(NamedTuple):
    """What a run needs to go on: `state` is the loop's progress, `config` the resolved run config."""

    step: int
    learner: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]
    config: Mapping[str, Any]


def path_of(folder: Path, step: int) -> Path:
    """Where in a folder the checkpoint of a meta-step lies."""
    return folder / f"step-{step:08d}"


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder/step-…`; a kill or a power cut at any moment leaves a complete checkpoint or one that is not read.

    Raises:
        OSError: it cannot be written, as on a full disk; what was written of it is removed.
    """
    return put(folder, checkpoint.step, encoded(checkpoint))


def encoded(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a checkpoint, without COMPLETE."""
    tensors, settings = _flat(checkpoint.optimizer)
    learner = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.learner.items()}
    files = {
        FILES[0]: save_tensors(learner),
        FILES[1]: save_tensors(tensors),
        FILES[2]: json.dumps({"step": checkpoint.step, "optimizer": settings, **checkpoint.state}).encode(),
        FILES[3]: json.dumps(dict(checkpoint.config)).encode(),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {**files, MANIFEST: json.dumps({"format": FORMAT, "sha256": hashes}, indent=1).encode()}


def put(folder: Path, step: int, files: Files) -> Path:
    """Write the files of a checkpoint as `save` does."""
    final = path_of(folder, step)
    partial = folder / f".{final.name}.partial"
    for stale in (partial, final):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        # On disk before the name says so: after a power cut a checkpoint is whole or not there.
        for path in (*partial.iterdir(), partial):
            _flush(path)
        (partial / COMPLETE).touch()
        _flush(partial)
        partial.rename(final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"checkpoint {final} cannot be written: {error}; make room, then resume") from error
    _flush(folder)
    return final


@contextmanager
def laid_out(files: Files) -> Iterator[Path]:
    """A folder of a checkpoint whose files came from elsewhere, while the block runs."""
    with TemporaryDirectory(prefix="metashard-checkpoint-") as folder:
        yield put(Path(folder), 0, files)


class Writer:
    """Has checkpoints written in a thread of its own while training goes on; leaving the block waits for the last one.

    `write(checkpoint, needed)` does it, and lets older ones go but those of the meta-steps `needed`. One is written at a
    time, so that the newest whole one is at most one older than the last that was asked for.
    """

    def __init__(self, write: Callable[[Checkpoint, Collection[int]], None]):
        self._write = write
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self._await()

    def write(self, checkpoint: Checkpoint, *, needed: Collection[int]) -> None:
        """Copy the values as they are now, and have them written later; waits for the one before.

        Raises:
            OSError: the one before could not be written.
        """
        self._await()
        learner, optimizer = tree_map(_copied, (dict(checkpoint.learner), dict(checkpoint.optimizer)))
        copied = checkpoint._replace(learner=learner, optimizer=optimizer)
        self._writing = self._pool.submit(self._write, copied, needed)

    def then(self, do: Callable[[], Done]) -> Future[Done]:
        """Have something done in the writer's thread, after what it was handed before."""
        return self._pool.submit(do)

    def _await(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _copied(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        InputError: it is not complete, has another format number, or a file's hash is not the manifest's.
    """
    return decoded(files_of(path), path)


def files_of(path: Path) -> dict[str, bytes]:
    """The files of a complete checkpoint, without COMPLETE; their content is not looked at.

    Raises:
        InputError: it is not complete, or cannot be read.
    """
    if not (path / COMPLETE).exists():
        raise InputError(f"{path} is not a complete checkpoint: it has no file COMPLETE; name another one")
    files = {}
    for name in (MANIFEST, *FILES):
        try:
            files[name] = (path / name).read_bytes()
        except OSError as error:
            said = f"{MANIFEST} is not a manifest" if name == MANIFEST else f"{name} cannot be read"
            raise InputError(
                f"checkpoint {path}: {said} ({type(error).__name__}: {error}); name another checkpoint"
            ) from error
    return files


def decoded(files: Files, path: Path) -> Checkpoint:
    """The checkpoint that these files are; `path` is where they come from.

    Raises:
        InputError: as `load`.
    """
    hashes = _hashes(files[MANIFEST], path)
    for name in FILES:
        if hashlib.sha256(files[name]).hexdigest() != hashes[name]:
            raise InputError(
                f"checkpoint {path}: {name} is not what was written (sha256 differs); name another checkpoint"
            )
    try:
        state = json.loads(files[FILES[2]])
        optimizer = _nested(load_tensors(files[FILES[1]]), state.pop("optimizer"))
        config = json.loads(files[FILES[3]])
        return Checkpoint(state.pop("step"), load_tensors(files[FILES[0]]), optimizer, state, config)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise InputError(f"checkpoint {path} cannot be read: {type(error).__name__}: {error}") from error


def _hashes(manifest: bytes, path: Path) -> dict[str, str]:
    try:
        told = json.loads(manifest)
        number, hashes = told["format"], told["sha256"]
        whole = set(hashes) == set(FILES)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"checkpoint {path}: {MANIFEST} is not a manifest ({type(error).__name__}: {error}); name another checkpoint"
        ) from error
    if number != FORMAT:
        raise InputError(
            f"checkpoint {path} has format {number}, this version reads {FORMAT}; use the version that wrote it"
        )
    if not whole:
        raise InputError(f"checkpoint {path}: {MANIFEST} does not name its files; name another checkpoint")
    return hashes


def all_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, complete or not, oldest first."""
    return sorted(folder.glob("step-*"))


def latest(folder: Path) -> Checkpoint:
    """The newest checkpoint that is whole.

    Raises:
        InputError: none is whole.
    """
    told = []
    for path in reversed(all_in(folder)):
        try:
            return load(path)
        except InputError as error:
            told.append(str(error))
    raise InputError("; ".join([f"{folder} holds no whole checkpoint", *told]))


def best(run: Path) -> Path:
    """The best checkpoint of a run by validation; the newest whole one where the best is damaged.

    Raises:
        InputError: none is whole.
    """
    newest = latest(run / "checkpoints")
    chosen = path_of(run / "checkpoints", newest.state["best_step"])
    try:
        load(chosen)
    except InputError:
        return path_of(run / "checkpoints", newest.step)
    return chosen


def meant(folder: Path) -> Path | None:
    """The checkpoint that a person means by its folder or by a run's, the best one then; None where it is neither."""
    if (folder / "manifest.json").exists() and (folder / "state.json").exists():
        return folder
    return best(folder) if (folder / "checkpoints").is_dir() else None


def faults(folder: Path) -> list[str]:
    """A sentence for every checkpoint newer than the newest whole one, or for all if none is whole."""
    found = []
    for path in reversed(all_in(folder)):
        try:
            load(path)
            break
        except InputError as error:
            found.append(str(error))
    return found


def prune(folder: Path, *, keep: int, needed: Collection[int]) -> None:
    """Delete all but the `keep` newest checkpoints and those of the meta-steps `needed`; remains of a killed save go too."""
    stay = {path_of(folder, step) for step in needed}
    for path in [*(p for p in all_in(folder)[:-keep] if p not in stay), *folder.glob(".*.partial")]:
        shutil.rmtree(path)


def _flat(optimizer: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as tensors by `<parameter>.<name>` and a JSON rest."""
    tensors, rest = {}, {}
    for number, values in optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value.detach().cpu().contiguous()
            else:
                rest[f"{number}.{name}"] = value
    return tensors, {"param_groups": optimizer["param_groups"], "rest": rest}


def _nested(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for full, value in {**tensors, **settings["rest"]}.items():
        number, name = full.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    return {"state": state, "param_groups": settings["param_groups"]}


def restore(checkpoint: Checkpoint, learner: torch.nn.Module, optimizer: Optimizer) -> None:
    """Put the saved values into a learner and an optimizer built from the same config."""
    learner.load_state_dict(dict(checkpoint.learner), strict=True)
    optimizer.load_state_dict(dict(checkpoint.optimizer))
    # Files hold tensors row by row. A kernel may round otherwise over other strides, and is slower: lay them as they were.
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
