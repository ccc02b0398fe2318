"""Learners to teach, untrained, and folders to teach them from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from small import small_config

from pipeline import build
from pipeline.data.images import encode_png
from pipeline.data.index import Index
from pipeline.data.outline import outline
from pipeline.start import started
from pipeline.teaching.assembled import Assembled, assembled
from pipeline.teaching.support import Support

PROTOTYPE = {"learner": {"kind": "prototype"}}
UNET = {"kind": "unet", "width": 4}
DENSE = {"learner": {"kind": "prototype"}, "model": UNET, "data": {"ways": 2}}
SEGMENTATION = {**DENSE, "task": {"kind": "segmentation"}}
DETECTION = {**DENSE, "task": {"kind": "detection"}}
NAMES = ("cross", "bars", "disc")
"""Classes of `picture`."""


def learner_of(root: Path, place: Path, **sections) -> Assembled:
    """A learner with its first values, built as from a file."""
    config, index = small_config(root, place, **sections), Index.open(root)
    values = started(config, index, build.learner).state_dict()
    return assembled(config, outline(index, config.data.train), values, "no weights")


def picture(name: str, number: int, *, size: int = 16) -> np.ndarray:
    """A picture (size, size, 1) of a class, a little other for every number: black on white."""
    shown = np.full((size, size, 1), 255, np.uint8)
    at, half = 2 + number % 3, size // 2
    if name == "cross":
        shown[half - 1 + at // 3 : half + 2, at:-2] = shown[at:-2, half - 1 : half + 1 + at // 4] = 0
    elif name == "bars":
        shown[:, at :: 4 + number % 2] = 0
    else:
        rows, columns = np.mgrid[:size, :size]
        shown[(rows - half) ** 2 + (columns - half) ** 2 < (3 + number % 3) ** 2] = 0
    return shown


def class_folders(place: Path, shots: int = 3, names: tuple[str, ...] = NAMES) -> Path:
    """A folder for each class with so many pictures of it."""
    for name in names:
        (place / name).mkdir(parents=True, exist_ok=True)
        for number in range(shots):
            (place / name / f"{number}.png").write_bytes(encode_png(picture(name, number)))
    return place


def support_of(learner: Assembled, shots: int = 3, names: tuple[str, ...] = NAMES) -> Support:
    """The same as a support."""
    pairs = [(way, number) for way in range(len(names)) for number in range(shots)]
    inputs = learner.inputs.tensor([(picture(names[way], number),) for way, number in pairs])
    shown = tuple(f"{names[way]}/{number}" for way, number in pairs)
    return Support(names, inputs, torch.tensor([way for way, _ in pairs]), shown)
