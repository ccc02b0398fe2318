"""A room out of what a person names: an adapted model's file, or a checkpoint that was taught nothing yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.adapt import source_of
from pipeline.data.modalities import IMAGE
from pipeline.errors import InputError
from pipeline.serving.limits import Limits
from pipeline.serving.room import Room
from pipeline.serving.store import Store
from pipeline.teaching import adapted
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.assembled import Assembled
from pipeline.teaching.support import Support

FOLDER = "taught"
"""Beside a model, behind its name; and of checkpoints in the folder of runs."""


def opened(target: str, *, runs: Path, state: Path, limits: Limits, wait_s: float = 0) -> Room:
    """The room of a model, with what was taught there before.

    Raises:
        InputError: the target is neither a model nor a checkpoint, or the state is not its own, damaged or in use.
    """
    learner, origin, known = _learner(target, runs)
    if learner.inputs.reader.modalities != (IMAGE,):
        names = ", ".join(learner.inputs.reader.modalities)
        raise InputError(f"{target}: takes {names}, and a server is sent images alone; serve a learner of images")
    store = Store(state, _identity(origin, known), wait_s=wait_s)
    try:
        return Room(learner, store, limits, origin=origin, known=known)
    except BaseException:
        store.close()
        raise


def state_of(target: str, runs: Path) -> Path:
    """Where the classes of a target are kept unless somebody says otherwise."""
    path = Path(target)
    if path.is_file():
        return path.with_name(f"{path.name}.{FOLDER}")
    return runs / f".{FOLDER}" / hashlib.sha256(target.encode()).hexdigest()[:16]


def _learner(target: str, runs: Path) -> tuple[Assembled, Mapping[str, Any], Adapted | None]:
    if Path(target).is_file():
        model = adapted.load(Path(target))
        return model.learner, model.origin, model
    source = source_of(target, runs)
    return source.assembled(), source.told, None


def _identity(origin: Mapping[str, Any], known: Adapted | None) -> str:
    """A hash of the learner and what it knew from the start: state of another one means nothing to it."""
    digest = hashlib.sha256(str(origin["sha256"]).encode())
    if known is not None:
        support: Support = known.support
        digest.update(json.dumps([support.classes, support.names]).encode())
        for tensor in (support.inputs, support.targets):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
