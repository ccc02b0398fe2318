"""Checkpoints: safetensors and JSON with hashes, `COMPLETE` written last, the last good one found by reading.

A checkpoint is a folder `step-00000200/` of `learner.safetensors`, `optimizer.safetensors`, `state.json`, `config.json`,
`manifest.json` (format number and the sha256 of each of them) and the empty file `COMPLETE`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from pipeline.errors import InputError

Done = TypeVar("Done")

FORMAT = 1
FILES = ("learner.safetensors", "optimizer.safetensors", "state.json", "config.json")


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
    final = path_of(folder, checkpoint.step)
    partial = folder / f".{final.name}.partial"
    for stale in (partial, final):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_files(partial, checkpoint)
        partial.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"checkpoint {final} cannot be written: {error}; make room, then resume") from error
    _flush(folder)
    return final


def _write_files(partial: Path, checkpoint: Checkpoint) -> None:
    tensors, settings = _flat(checkpoint.optimizer)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.learner.items()}, partial / FILES[0]
    )
    save_file(tensors, partial / FILES[1])
    (partial / FILES[2]).write_text(json.dumps({"step": checkpoint.step, "optimizer": settings, **checkpoint.state}))
    (partial / FILES[3]).write_text(json.dumps(dict(checkpoint.config)))
    hashes = {name: hashlib.sha256((partial / name).read_bytes()).hexdigest() for name in FILES}
    (partial / "manifest.json").write_text(json.dumps({"format": FORMAT, "sha256": hashes}, indent=1))
    # On disk before the name says so: after a power cut a checkpoint is whole or not there.
    for path in (*partial.iterdir(), partial):
        _flush(path)
    (partial / "COMPLETE").touch()
    _flush(partial)


class Writer:
    """Writes checkpoints in a thread of its own while training goes on; leaving the block waits for the last one.

    One is written at a time, so that the newest whole one is at most one older than the last that was asked for.
    """

    def __init__(self):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self._await()

    def write(self, folder: Path, checkpoint: Checkpoint, *, keep: int, needed: Collection[int]) -> None:
        """Copy the values as they are now, and `save` and `prune` later; waits for the one before.

        Raises:
            OSError: the one before could not be written.
        """
        self._await()
        learner, optimizer = tree_map(_copied, (dict(checkpoint.learner), dict(checkpoint.optimizer)))
        copied = checkpoint._replace(learner=learner, optimizer=optimizer)
        self._writing = self._pool.submit(self._write, folder, copied, keep, needed)

    def then(self, do: Callable[[], Done]) -> Future[Done]:
        """Have something done in the writer's thread, after what it was handed before."""
        return self._pool.submit(do)

    def _await(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    @staticmethod
    def _write(folder: Path, checkpoint: Checkpoint, keep: int, needed: Collection[int]) -> None:
        save(folder, checkpoint)
        prune(folder, keep=keep, needed=needed)


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
    if not (path / "COMPLETE").exists():
        raise InputError(f"{path} is not a complete checkpoint: it has no file COMPLETE; name another one")
    try:
        hashes = _hashes(path)
        for name in FILES:
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != hashes[name]:
                raise InputError(
                    f"checkpoint {path}: {name} is not what was written (sha256 differs); name another checkpoint"
                )
        state = json.loads((path / FILES[2]).read_text())
        optimizer = _nested(load_file(path / FILES[1]), state.pop("optimizer"))
        config = json.loads((path / FILES[3]).read_text())
        return Checkpoint(state.pop("step"), load_file(path / FILES[0]), optimizer, state, config)
    except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError, SafetensorError) as error:
        raise InputError(f"checkpoint {path} cannot be read: {type(error).__name__}: {error}") from error


def _hashes(path: Path) -> dict[str, str]:
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        number, hashes = manifest["format"], manifest["sha256"]
        whole = set(hashes) == set(FILES)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"checkpoint {path}: manifest.json is not a manifest ({type(error).__name__}: {error}); name another checkpoint"
        ) from error
    if number != FORMAT:
        raise InputError(
            f"checkpoint {path} has format {number}, this version reads {FORMAT}; use the version that wrote it"
        )
    if not whole:
        raise InputError(f"checkpoint {path}: manifest.json does not name its files; name another checkpoint")
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
