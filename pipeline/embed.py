"""The verb `embed`: the features that a frozen encoder makes of every sample, as a packed data set like any other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import build, checkpoint, restore
from pipeline import config as configs
from pipeline.data import fragments
from pipeline.data import pack as packing
from pipeline.data.claim import claim
from pipeline.data.fragments import CLASS_FIELD
from pipeline.data.index import Index
from pipeline.data.loader import Reader
from pipeline.data.merge import merge
from pipeline.data.root import Root
from pipeline.data.source import Sample
from pipeline.errors import InputError
from pipeline.frozen import Frozen, frozen_encoder
from pipeline.schema.run import RunConfig
from pipeline.session import Progress, silent

BATCH = 128
"""Samples that are embedded at once."""


def embed(
    target: Path,
    out: Path,
    *,
    data: Root | None = None,
    config: Path | None = None,
    runs: Path = Path("runs"),
    mirror: bool = False,
    progress: Progress = silent,
) -> Index:
    """Embed every sample of a packed data set once, by the norm statistics of the run, write the features and open their index.

    `target` is a run's id or folder, a checkpoint, or with `config` a .safetensors file; `data` other images than the run's,
    which are converted as in an evaluation. Features, with `mirror` means over an image and its mirror image, are float32 arrays
    (1, 1, features), or maps (side, side, channels), in tars of the same samples in the same order as those of the images. So
    keys, classes, splits, rows and episodes, those of lanes too, are the images'. The same call started again after a stop keeps
    the finished tars; until all are there the folder has no index. `progress(done, total)` counts samples.

    Raises:
        InputError: there is no such encoder, the images do not fit it, or `out` holds something else.
    """
    path, asked, state = _asked(target, config, runs)
    index = Index.open(data or asked.data.root)
    # Values without a checkpoint are for the images at hand.
    trained = build.trained_on(asked, index, {"images": index.shape(0)} if state is None else state)
    known, channels = frozen_encoder(asked, trained, path, mirror=mirror), trained.shape(0)[2]
    asked = restore.read_alike(asked, trained, index)
    dest = out.absolute()
    claim(dest, hashlib.sha256(f"{known.sha256} {index.fingerprint}".encode()).hexdigest())
    names = [f"shard-{number:06d}.tar" for number in range(len(index.shards))]
    reader, done = build.reader(asked, index, channels), 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, labels = known.encoder.to(device), _labels(index)
    for name, rows in zip(names, _rows_by_shard(index), strict=True):
        if fragments.current(dest, name, CLASS_FIELD) is None:
            samples = _samples(encoder, reader, rows, labels, partial(_counted, progress, done, len(index)))
            packing.write_shard(dest / name, samples, store="raw", size=None, channels=None)
            if faults := fragments.faults(dest, name, CLASS_FIELD):
                raise InputError(faults[0])
        done += len(rows)
        progress(done, len(index))
    origin = {
        "encoder": {
            "sha256": known.sha256,
            **known.settings,
            "from": str(path.absolute()),
            "images_of": index.fingerprint,
        }
    }
    splits = {name: [index.class_names[number] for number in ids] for name, ids in index.splits.items()}
    tars = fragments.known(dest, names, CLASS_FIELD)
    return merge(dest, tars, name=index.name, splits=splits, origin={**index.manifest["origin"], **origin})


def _asked(target: Path, config: Path | None, runs: Path) -> tuple[Path, RunConfig, Mapping[str, Any] | None]:
    """The file or checkpoint that holds the encoder, the config that says what it is, and the state of the checkpoint."""
    if target.is_file():
        if config is None:
            raise InputError(
                f"{target}: values without a config; give --config, a run's YAML with this model and its data"
            )
        return target, configs.load(config), None
    if config is not None:
        raise InputError(f"--config {config}: runs and checkpoints have their own; leave it out")
    path = restore.find(target, runs)
    saved = checkpoint.load(path)
    return path, configs.parse(dict(saved.config), str(path)), saved.state


def _rows_by_shard(index: Index) -> list[np.ndarray]:
    """The rows of every tar in the order in which they lie there."""
    order = np.lexsort((index.offsets("image"), index.shard_of))
    return np.split(order, np.searchsorted(index.shard_of[order], range(1, len(index.shards))))


def _counted(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _labels(index: Index) -> np.ndarray:
    """The class id of every row."""
    labels = np.empty(len(index), np.int32)
    for number in range(len(index.class_names)):
        labels[index.postings(number)] = number
    return labels


def _samples(
    encoder: Frozen, reader: Reader, rows: np.ndarray, labels: np.ndarray, told: Callable[[int], None]
) -> Iterator[Sample]:
    """The samples of a tar with their features; `told(done)` counts them."""
    index, like = reader.shards.index, next(encoder.parameters())
    for at in range(0, len(rows), BATCH):
        part = [int(row) for row in rows[at : at + BATCH]]
        inputs = reader.inputs(part, map(reader.stored, part), repeat(0, len(part)))
        arrays = _arrays(encoder(inputs.to(like.device, like.dtype)))
        for row, array in zip(part, arrays, strict=True):
            if not np.isfinite(array).all():
                raise InputError(
                    f"{index.root}: features of sample {index.key(row)!r} are not finite; look at the encoder"
                )
            yield Sample(index.key(row), index.class_names[labels[row]], partial(np.asarray, array))
        told(at + len(part))


def _arrays(features: Tensor) -> np.ndarray:
    """Vectors (samples, features) or maps (samples, channels, side, side) as (height, width, channels) each."""
    maps = features if features.ndim == 4 else features[:, :, None, None]
    return np.ascontiguousarray(maps.permute(0, 2, 3, 1).float().cpu().numpy())
