"""Small models that were taught a few classes, of every task, without a run behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small import small_config

from pipeline import build
from pipeline.data.index import Index
from pipeline.data.outline import outline
from pipeline.schema.run import RunConfig
from pipeline.start import started
from pipeline.teaching.adapted import Adapted, teach
from pipeline.teaching.assembled import Assembled, assembled
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


def config_of(root: Path, runs: Path, *, shots: int = 2, **sections: Any) -> RunConfig:
    """A run of a learner; its episodes have two support samples of a class."""
    data = {"shots": shots, **sections.pop("data", {})}
    return small_config(root, runs, data=data, **sections)


def learner_of(config: RunConfig) -> Assembled:
    """The untrained learner, as a checkpoint would bring it."""
    index = Index.open(config.data.root)
    values = started(config, index, build.learner).state_dict()
    return assembled(config, outline(index, config.data.train), values, "wrong values")


def support_of(config: RunConfig, learner: Assembled, *, number: int = 0) -> Support:
    """The support of a test episode; classes are called a, b, …"""
    index = Index.open(config.data.root)
    drawn = build.sampler(config, index, config.data.test).draw(0, number)
    batch = build.place(config, torch.device("cpu"))(build.reader(config, index).episode(drawn)).support
    names = tuple(f"sample {each}" for each in range(len(batch.inputs)))
    classes = tuple("abcdefgh"[: len(drawn.classes)])
    return Support(classes, batch.inputs, batch.targets, names).to(learner.inputs.device)


def taught(root: Path, runs: Path, **sections: Any) -> Adapted:
    """A model of an untrained learner that was shown the support of a test episode."""
    config = config_of(root, runs, **sections)
    learner = learner_of(config)
    return teach(learner, support_of(config, learner), origin={"from": "a test"})
