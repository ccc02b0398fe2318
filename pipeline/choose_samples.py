"""The verb `choose samples`: which images of an unlabelled folder to label as support, by the features of a trained encoder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline import checkpoint, restore
from pipeline.config import parse
from pipeline.data.files import make_folder, write_file
from pipeline.data.images import decode, resize
from pipeline.data.importers.folder import is_image, read_file, walk
from pipeline.data.index import Index
from pipeline.data.modalities import IMAGE
from pipeline.errors import InputError
from pipeline.frozen import Known, frozen_encoder
from pipeline.selection import Strategy, check_budget, choose
from pipeline.session import Progress, silent

BATCH = 128
"""Images that are embedded at once."""
NAMED = 3
"""Faults that a message tells one by one; the others are counted."""


class Chosen(NamedTuple):
    """The files to label, the most wanted first, and by what they were chosen out of `pool` images."""

    files: list[Path]
    pool: int
    checkpoint: Path
    encoder: str
    """sha256, as of features that `metashard embed` makes."""
    strategy: Strategy
    seed: int

    def as_json(self) -> str:
        told = {
            "checkpoint": str(self.checkpoint),
            "encoder": self.encoder,
            "strategy": str(self.strategy),
            "seed": self.seed,
            "pool": self.pool,
            "budget": len(self.files),
            "files": [str(file) for file in self.files],
        }
        return json.dumps(told, indent=1) + "\n"

    def as_lines(self) -> str:
        return "".join(f"{file}\n" for file in self.files)

    def as_csv(self) -> str:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["rank", "file"])
        rows.writerows((rank, str(file)) for rank, file in enumerate(self.files, 1))
        return text.getvalue()


def strategy_of(name: str) -> Strategy:
    """The strategy that a person means. Raises `InputError` if there is none of this name."""
    if name not in list(Strategy):
        raise InputError(f"--strategy {name}: there is no such strategy; give one of {', '.join(Strategy)}")
    return Strategy(name)


def choose_samples(
    folder: Path,
    run: Path,
    *,
    budget: int,
    strategy: Strategy,
    seed: int = 0,
    runs: Path = Path("runs"),
    progress: Progress = silent,
) -> Chosen:
    """Choose `budget` images of those at any depth in `folder` by their features under the encoder of a run or checkpoint.

    Images are read in the order of their bytes' hashes, so that the choice depends on what they show, not on what they are called
    or where they lie. `progress(done, total)` counts those that were looked at.

    Raises:
        InputError: there are too few images, one cannot be read or is there twice, or the run has no encoder of images.
    """
    names = _images_in(folder)
    check_budget(budget, len(names))
    known, path = _encoder_of(run, runs)
    hashes = {name: hashlib.sha256(read_file(str(folder), name)).hexdigest() for name in names}
    ordered = sorted(names, key=lambda name: (hashes[name], name))
    features = _features(folder, ordered, known, progress)
    files = [folder / ordered[row] for row in choose(features, budget, strategy, seed=seed)]
    return Chosen(files, len(names), path, known.sha256, strategy, seed)


def check_place(out: Path) -> None:
    """Make the folder of the list; `InputError` if it cannot be written there."""
    make_folder(out.absolute().parent)
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file")


def write(found: Chosen, out: Path) -> None:
    """Write the list as a whole, as CSV where the file's name says so, else a line each."""
    write_file(out, (found.as_csv() if out.suffix.lower() == ".csv" else found.as_lines()).encode())


def _images_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one that holds unlabelled images")
    names = sorted(name for name in walk(folder) if is_image(name, folder))
    if not names:
        raise InputError(f"{folder}: holds no image; name a folder with PNG, JPEG or other images at any depth")
    for name in names:
        if not name.isprintable():
            raise InputError(f"{folder}: {name!r} cannot be told in a line; rename it")
    return names


def _encoder_of(run: Path, runs: Path) -> tuple[Known, Path]:
    """The encoder of a run on the device of this machine, and the checkpoint that it is from."""
    path = restore.find(run, runs)
    config = parse(dict(checkpoint.load(path).config), str(path))
    if config.data.modalities != (IMAGE,):
        raise InputError(
            f"--run {run}: its encoder takes {', '.join(config.data.modalities)}, and a folder holds images alone; name a run "
            "of images"
        )
    try:
        trained = Index.without_shards(config.data.root)
    except InputError as error:
        raise InputError(f"--run {run}: the index of its data says for which images its encoder is; {error}") from error
    known = frozen_encoder(config, trained, path, key="--run")
    if (channels := known.settings["images"][2]) not in (1, 3):
        raise InputError(
            f"--run {run}: its encoder takes {channels} channels, image files have 1 or 3; name another run"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return known._replace(encoder=known.encoder.to(device)), path


def _array(data: bytes, what: str, known: Known) -> np.ndarray:
    """An image (height, width, channels) uint8 of the form of those that the encoder was trained on."""
    height, width, channels = known.settings["images"]
    array = decode(data, what, channels=channels)
    if height == width and array.shape[:2] != (height, width):
        array = resize(array, height)
    if array.shape[:2] != (height, width):
        size = " × ".join(map(str, array.shape[:2]))
        raise InputError(f"{what}: {size} pixels, the encoder takes {height} × {width}; only squares are resized")
    return array


def _features(folder: Path, names: Sequence[str], known: Known, progress: Progress) -> np.ndarray:
    """Features (images, dim), float32; `InputError` that names the images which are not whole, or to the encoder the same."""
    parts: list[np.ndarray] = []
    faults: list[str] = []
    seen: dict[bytes, str] = {}
    for at in range(0, len(names), BATCH):
        arrays: list[np.ndarray] = []
        for name in names[at : at + BATCH]:
            try:
                array = _array(read_file(str(folder), name), f"{folder / name}", known)
            except InputError as error:
                faults.append(str(error))
                continue
            if (first := seen.setdefault(hashlib.sha256(array.tobytes()).digest(), name)) != name:
                faults.append(f"{folder / name}: is to the encoder what {folder / first} is; remove one of them")
            arrays.append(array)
        if not faults:
            parts.append(_embedded(np.stack(arrays), known))
        progress(min(at + BATCH, len(names)), len(names))
    if faults:
        more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise InputError("; ".join(faults[:NAMED]) + more)
    return np.concatenate(parts)


def _embedded(images: np.ndarray, known: Known) -> np.ndarray:
    """Features (images, dim) float32 of images (images, height, width, channels) uint8."""
    like = next(known.encoder.parameters())
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float().div_(255)
    inputs = 1 - inputs if known.settings["invert"] else inputs
    return known.encoder(inputs.to(like.device, like.dtype)).flatten(1).float().cpu().numpy()
