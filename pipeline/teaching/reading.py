"""A folder of labelled images as a support set, in the layouts that `metashard pack` knows, with what is odd about it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data.boxes import sound
from pipeline.data.images import encode_png, resize_mask
from pipeline.data.layouts import Layout, named, read
from pipeline.data.modalities import IMAGE
from pipeline.data.source import Sample
from pipeline.errors import InputError
from pipeline.labels import IGNORED
from pipeline.schema.task import TaskConfig
from pipeline.teaching.assembled import Assembled
from pipeline.teaching.support import Support

UNLIKE = 4
"""Times as many samples as the smallest class has: from there on it is said that classes are unlike."""
SQUEEZED = 2.0
"""Ratio of the longer to the shorter side from which on it is said that a picture is squeezed into a square."""
SHOWN = 3
"""How many files a sentence names."""

LAYOUTS: Mapping[str, tuple[Layout, ...]] = {
    "classification": ("folder",),
    "verification": ("folder",),
    "segmentation": ("masks", "fss", "coco", "voc"),
    "detection": ("coco", "voc", "logos"),
}


class Found(NamedTuple):
    """A support set, and a sentence for everything that may be meant otherwise."""

    support: Support
    warnings: list[str]


class Picture(NamedTuple):
    """A picture with all that was said of it; `pixels` is a hash of what it shows."""

    name: str
    samples: list[Sample]
    arrays: tuple[np.ndarray | None, ...]
    pixels: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return next(array for array in self.arrays if array is not None).shape[:2]


def support_of(folder: Path, learner: Assembled, *, layout: str = "") -> Found:
    """The support set in a folder: a folder for each class or person; images and masks; COCO or VOC boxes.

    Raises:
        InputError: it cannot be read, an image among it neither, or it is nothing to learn from.
    """
    task = learner.config.task
    source = read(
        str(folder),
        layout_of(folder, task, layout),
        size=None,
        seed=0,
        min_area=None,
        pairs=None,
        modalities=[name for name in learner.inputs.reader.modalities if name != IMAGE],
    )
    _refuse_empty(folder, task)
    if not source.samples:
        why = "".join(f"; {note}" for note in source.notes)
        raise InputError(
            f"{folder}: no labelled images found{why}; give {' or '.join(LAYOUTS[task.kind])}, see --layout"
        )
    _refuse(folder, _classes(source.samples), task, learner.most_ways)
    return gathered(source.samples, learner, where=str(folder), notes=source.notes)


def gathered(samples: Sequence[Sample], learner: Assembled, *, where: str, notes: Sequence[str] = ()) -> Found:
    """The support set of samples, of which `where` says for people whence they come and `notes` what was already odd.

    Raises:
        InputError: an image among them cannot be read, or nothing is left of a class as the learner sees it.
    """
    task, classes = learner.config.task, _classes(samples)
    pictures, warnings = _distinct(where, _pictures(samples, learner), task)
    shots = Counter(label for picture in pictures for label in {sample.label for sample in picture.samples})
    warnings += [*notes, *_oddities(pictures, learner), *uneven(shots)]
    inputs = learner.inputs.tensor([picture.arrays for picture in pictures])
    targets = torch.stack(_targets(task, classes, learner)(pictures)).to(inputs.device)
    support = Support(classes, inputs, targets, tuple(picture.name for picture in pictures))
    for name, is_there in zip(classes, support.members().any(0).tolist(), strict=True):
        if not is_there:
            raise InputError(f"{where}: nothing of {name!r} is left as the learner sees it; give larger objects of it")
    return Found(support, warnings)


def _classes(samples: Sequence[Sample]) -> tuple[str, ...]:
    return tuple(sorted({sample.label for sample in samples}))


def layout_of(folder: Path, task: TaskConfig, asked: str) -> Layout:
    """How a folder is read for a task, if nobody says it: by what lies in it.

    Raises:
        InputError: it is no folder, or what was asked for is not for this task.
    """
    known = LAYOUTS[task.kind]
    if asked:
        if asked not in known:
            raise InputError(f"--layout {asked} is not for task.kind = {task.kind}; choose of {', '.join(known)}")
        return named(asked)
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; give one with a few labelled images of each class")
    signs: tuple[tuple[Layout, str], ...] = (("masks", "masks"), ("coco", "instances.json"), ("voc", "Annotations"))
    for layout, sign in signs:
        if layout in known and (folder / sign).exists():
            return layout
    fallback: Layout = "fss" if task.kind == "segmentation" else known[0]
    return fallback


def _refuse_empty(folder: Path, task: TaskConfig) -> None:
    """A folder of a class in which nothing lies was surely meant to hold something."""
    if LAYOUTS[task.kind] == ("folder",) and folder.is_dir():
        for place in sorted(folder.iterdir()):
            if (
                place.is_dir()
                and not place.name.startswith(".")
                and not any(file.is_file() for file in place.rglob("*"))
            ):
                raise InputError(f"{place}: class {place.name!r} has no image; put one in, or remove the folder")


def _refuse(folder: Path, classes: Sequence[str], task: TaskConfig, most: int | None) -> None:
    if task.kind == "classification" and len(classes) < 2:
        raise InputError(f"{folder}: one class, {classes[0]!r}, and nothing to tell it from; give images of a second")
    if most is not None and len(classes) > most:
        raise InputError(
            f"{folder}: {len(classes)} classes, and this learner tells at most {most} apart; give fewer, or train with "
            f"data.ways = {len(classes)}"
        )


def _pictures(samples: Sequence[Sample], learner: Assembled) -> list[Picture]:
    """The pictures that samples show, each once, by name."""
    together: dict[str, list[Sample]] = {}
    for sample in samples:
        together.setdefault(str(sample.meta().get("picture", sample.key)), []).append(sample)
    found, broken = [], []
    for name, own in sorted(together.items()):
        try:
            arrays = _arrays(own[0], name, learner)
        except InputError as error:
            broken.append(str(error))
            continue
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(b"" if array is None else f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        found.append(Picture(name, own, arrays, digest.hexdigest()))
    if broken:
        more = f" ({len(broken) - 1} more cannot be read either)" if len(broken) > 1 else ""
        raise InputError(f"{broken[0]}{more}; mend it, or take it out of the support")
    return found


def _arrays(sample: Sample, name: str, learner: Assembled) -> tuple[np.ndarray | None, ...]:
    given = [
        sample.image if modality == IMAGE else sample.planes.get(modality)
        for modality in learner.inputs.reader.modalities
    ]
    files = [_bytes(give) if give else b"" for give in given]
    return learner.inputs.sample(files, f"image {name!r}")


def _bytes(give: Callable[[], bytes | np.ndarray]) -> bytes:
    got = give()
    return got if isinstance(got, bytes) else encode_png(got)


def _distinct(where: str, pictures: list[Picture], task: TaskConfig) -> tuple[list[Picture], list[str]]:
    """Each picture once. One picture cannot be of two classes where an image has one."""
    first: dict[str, Picture] = {}
    repeated = []
    for picture in pictures:
        other = first.setdefault(picture.pixels, picture)
        if other is picture:
            continue
        if LAYOUTS[task.kind] == ("folder",) and other.samples[0].label != picture.samples[0].label:
            raise InputError(
                f"{where}: {other.name!r} and {picture.name!r} are the same picture in two classes; take one of them out"
            )
        repeated.append(f"{picture.name} (as {other.name})")
    if not repeated or LAYOUTS[task.kind] != ("folder",):
        return pictures, [f"{len(repeated)} pictures are there twice: {_some(repeated)}"] if repeated else []
    return list(first.values()), [f"{len(repeated)} pictures are there twice and count once: {_some(repeated)}"]


def _oddities(pictures: Sequence[Picture], learner: Assembled) -> list[str]:
    """What pictures lose or lack when they come in the size that the learner sees."""
    height, width, _ = learner.inputs.shape
    small = [p.name for p in pictures if p.size[0] < height / 2 or p.size[1] < width / 2]
    long = [p.name for p in pictures if max(p.size) / min(p.size) > SQUEEZED * max(height, width) / min(height, width)]
    told = []
    if small:
        told.append(
            f"{len(small)} pictures have less than half the {height} × {width} pixels that the learner sees: {_some(small)}"
        )
    if long:
        told.append(f"{len(long)} pictures are over {SQUEEZED:g} times as long as wide, and squeezed: {_some(long)}")
    return told


def uneven(shots: Mapping[str, int]) -> list[str]:
    """A sentence about the numbers of samples of classes, if they are far apart."""
    least, most = min(shots, key=shots.__getitem__), max(shots, key=shots.__getitem__)
    if shots[most] >= UNLIKE * shots[least]:
        return [f"classes are of unlike size: {most!r} has {shots[most]} samples, {least!r} {shots[least]}"]
    return []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _targets(
    task: TaskConfig, classes: Sequence[str], learner: Assembled
) -> Callable[[Sequence[Picture]], list[Tensor]]:
    """What makes the targets of pictures, all of one form."""
    ways = {name: way for way, name in enumerate(classes)}
    height, width, _ = learner.inputs.shape
    if task.kind == "segmentation":
        return lambda pictures: [_mask(picture, ways, height, width) for picture in pictures]
    if task.kind == "detection":
        return lambda pictures: _boxes(pictures, ways)
    return lambda pictures: [torch.tensor(ways[picture.samples[0].label]) for picture in pictures]


def _mask(picture: Picture, ways: Mapping[str, int], height: int, width: int) -> Tensor:
    """(height, width) int64 of a picture."""
    sample = picture.samples[0]
    if sample.mask is None:
        raise InputError(f"image {picture.name!r}: has no mask; draw one, or take it out of the support")
    mask, names = sample.mask(), sample.meta().get("classes", [sample.label])
    if mask.shape != picture.size:
        raise InputError(
            f"image {picture.name!r}: its mask is {mask.shape} (height, width), the image {picture.size}; make them equal"
        )
    meaning = np.zeros(IGNORED + 1, np.int64)
    meaning[IGNORED] = IGNORED
    meaning[1 : 1 + len(names)] = [1 + ways[name] if name in ways else 0 for name in names]
    small = mask if mask.shape == (height, width) else resize_mask(mask, height)
    return torch.from_numpy(meaning[small])


def _boxes(pictures: Sequence[Picture], ways: Mapping[str, int]) -> list[Tensor]:
    """(boxes, 5) float32 of every picture, padded to the most that one has."""
    found = []
    for picture in pictures:
        sample, (height, width) = picture.samples[0], picture.size
        boxes, names = sound(sample.meta(), sample.label, height, width, f"image {picture.name!r}")
        values = boxes[:, 4].astype(int)
        codes = [int(np.sign(value)) * (1 + ways.get(names[abs(value) - 1], -1)) for value in values]
        shares = np.clip(boxes[:, :4] / (width, height, width, height), 0, 1)
        found.append(torch.tensor(np.column_stack([shares, codes]), dtype=torch.float32))
    most = max(map(len, found))
    return [torch.nn.functional.pad(each, (0, 0, 0, most - len(each))) for each in found]
