"""The verb `export --mlflow`: a learner as a folder that MLflow serves, whether its data are still there or not."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.torch import save

from pipeline import adapt, register, servable
from pipeline.data.files import make_folder
from pipeline.data.images import encode_png
from pipeline.data.index import Index
from pipeline.data.modalities import IMAGE
from pipeline.errors import InputError
from pipeline.shipped_model import ABOUT, EXAMPLE, WEIGHTS, package
from pipeline.teaching import source
from pipeline.teaching.source import Source

WAYS = 2
"""Classes of an example that is made up."""


def export(target: str, out: Path, *, runs: Path) -> None:
    """Write the learner of a checkpoint as an MLflow model, which was asked its own example first, replaced in one move.

    Raises:
        InputError: there is no such learner, it cannot be built, or the folder holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--mlflow {out}: is there already; name a new folder")
    found = adapt.source_of(target, runs)
    make_folder(out.parent)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as place:
        files, made = Path(place, "files"), Path(place, "model")
        _lay_out(files, found)
        package(files, made, model_id=None, run_id=None)
        if out.exists():
            out.rmdir()
        shutil.move(made, out)


def _lay_out(folder: Path, found: Source) -> None:
    """The files that the model is made of, as those of `register`."""
    weights = save({name: value.contiguous() for name, value in found.values.items()})
    about = source.about(found.config, found.data, weights, step=int(found.told["step"]))
    asked = _example(found)
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(weights)
    for name, values in ((ABOUT, about), (EXAMPLE, asked)):
        (folder / name).write_text(json.dumps(values))
    # Whoever serves it later must not be the first to try.
    servable.opened(folder / ABOUT, folder / WEIGHTS).answer(asked)


def _example(found: Source) -> dict[str, list[Any]]:
    """A request: an episode of the data's test split, or a made-up one where the data are gone."""
    config = found.config
    try:
        return register.example(config, Index.open(config.data.root))
    except (InputError, OSError):
        return made_up(found)


def made_up(found: Source) -> dict[str, list[Any]]:
    """A request of two classes, whose images are noise around a grey of their own."""
    config, generator = found.config, np.random.default_rng(0)
    names = servable.columns(config.task)
    height, width, channels = found.data.images
    ways = min(WAYS, config.data.ways)
    noise = generator.integers(0, 100, (ways, height, width, channels))
    images = [_picture(found, (noise[way] + 60 * way).astype(np.uint8), config.data.modalities) for way in range(ways)]
    told: dict[str, list[Any]] = {"support": images, "labels": list("ab"[:ways]), "queries": images[:1]}
    if "masks" in names:
        mask = np.zeros((height, width), np.uint8)
        masks = []
        for way in range(ways):
            shown = mask.copy()
            shown[: height // 2] = 1 + way
            masks.append(base64.b64encode(encode_png(shown)).decode())
        told["masks"] = masks
    if "boxes" in names:
        told["boxes"] = [[[0, 0, width / 2, height / 2, 1 + way]] for way in range(ways)]
    return told


def _picture(found: Source, array: np.ndarray, modalities: Any) -> servable.Picture:
    files = [
        register.encoded(array if name == IMAGE else np.repeat(array[..., :1], found.data.modalities[name], axis=2))
        for name in modalities
    ]
    return files[0] if len(files) == 1 else files
