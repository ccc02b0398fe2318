"""Small models that were taught a few classes, of every task, without a run behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from teachable import learner_of

from pipeline import build
from pipeline.data.index import Index
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.assembled import Assembled
from pipeline.teaching.support import Support

UNET: dict[str, Any] = {"kind": "unet", "width": 4, "depth": 2, "downsample": "stride"}
PROTOTYPE: dict[str, Any] = {"learner": {"kind": "prototype"}}
GRADIENT: dict[str, Any] = {"learner": {"kind": "gradient", "rule": {"kind": "sgd", "lr": 0.1}, "steps": 2}}
SEGMENTATION: dict[str, Any] = {"task": {"kind": "segmentation"}, "data": {"ways": 2}, "model": UNET, **PROTOTYPE}
DETECTION: dict[str, Any] = {"task": {"kind": "detection"}, "data": {"ways": 2}, "model": UNET, **GRADIENT}
VERIFICATION: dict[str, Any] = {"task": {"kind": "verification"}, "learner": {"kind": "cosine"}}
TASKS = {
    "classification": PROTOTYPE,
    "verification": VERIFICATION,
    "segmentation": SEGMENTATION,
    "detection": DETECTION,
}


def support_of(learner: Assembled, *, number: int = 0) -> Support:
    """The support of a test episode of the learner's data; classes are called a, b, …"""
    config = learner.config
    index = Index.open(config.data.root)
    drawn = build.sampler(config, index, config.data.test).draw(0, number)
    batch = build.place(config, torch.device("cpu"))(build.reader(config, index).episode(drawn)).support
    names = tuple(f"sample {each}" for each in range(len(batch.inputs)))
    classes = tuple("abcdefgh"[: len(drawn.classes)])
    return Support(classes, batch.inputs, batch.targets, names).to(learner.inputs.device)


def taught(root: Path, runs: Path, *, shots: int = 2, **sections: Any) -> Adapted:
    """A model of an untrained learner that was shown the support of a test episode, two samples of a class."""
    learner = learner_of(root, runs, **{**sections, "data": {"shots": shots, **sections.get("data", {})}})
    return Adapted(learner, support_of(learner), origin={"from": "a test"})
