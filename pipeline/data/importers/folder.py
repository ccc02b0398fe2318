"""Reads class folders, on disk or in a zip: the folder an image lies in is its class."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pipeline.data.images import EXTENSIONS, decode
from pipeline.data.modalities import kind_of
from pipeline.data.source import Sample, Source, keys_of
from pipeline.errors import InputError

SPLIT_FOLDERS = ("train", "val", "test")
_ZIP_ERRORS = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError)
_KEPT = {"png": "png", "jpg": "jpg", "jpeg": "jpg"}


def folder(path: str | Path, *, modalities: Sequence[str] = ()) -> Source:
    """The data set in a folder or zip of class folders; a nested folder's class is its relative path, as `birds/wren`.

    If the topmost folders are train, val and test (or some of them), they are its splits and not part of class names; neither is
    a last folder that all classes have alike, as `images` of tiny-ImageNet's `CLASS/images/NAME.JPEG`.
    Hidden files and files that are no images are left out. With `modalities` the files `NAME.depth.png` or `NAME.depth.npy` are
    the depth of the image `NAME`, and so on; how many images have none is in the source's notes. Raises `InputError` for an
    absent or unreadable path, an image outside every class folder, a kind of image that cannot be read, and a modality without
    its image or twice.
    """
    path = Path(path)
    stored, read = images_of(path, modalities)
    names, planes = _apart(stored, modalities, path)
    tops = {shown.split("/")[0] for shown in names}
    has_splits = bool(tops) and tops.issubset(SPLIT_FOLDERS) and all(shown.count("/") > 1 for shown in names)
    samples, splits = [], {}
    called = _class_names({str(PurePosixPath(shown).parent) for shown in names}, within=2 if has_splits else 1)
    for (shown, name), key in zip(names.items(), keys_of(list(names)), strict=True):
        label = called[str(PurePosixPath(shown).parent)]
        if has_splits:
            split, label = label.split("/", 1)
            splits.setdefault(split, {})[label] = None
        made = sample(key, label, partial(read, name), shown)
        seen = {modality: partial(read, at) for modality, at in planes.get(_stem(shown), {}).items()}
        samples.append(replace(made, planes=seen) if seen else made)
    ordered = {split: list(splits[split]) for split in SPLIT_FOLDERS if split in splits}
    lacking = {modality: sum(modality not in sample.planes for sample in samples) for modality in modalities}
    notes = [f"{count} images have no {modality}" for modality, count in lacking.items() if count]
    return Source(path.stem, samples, ordered, tuple(notes))


def _apart(
    names: dict[str, str], modalities: Sequence[str], path: Path
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Images as `images_of` gives them, and by their path without extension what there is of other modalities."""
    if not modalities:
        return names, {}
    images: dict[str, str] = {}
    planes: dict[str, dict[str, str]] = {}
    for shown, name in names.items():
        if (found := kind_of(shown, modalities)) is None:
            images[shown] = name
        elif planes.setdefault(found[0], {}).setdefault(found[1], name) != name:
            raise InputError(f"{path}: {found[0]!r} has two files of {found[1]}; remove one")
    users = Counter(_stem(shown) for shown in images)
    for stem, seen in planes.items():
        if users[stem] != 1:
            raise InputError(
                f"{path}: {stem!r} has {next(iter(seen))} and {users[stem] or 'no'} images, where one has it; mend the names"
            )
    return images, planes


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _class_names(places: Set[str], *, within: int) -> dict[str, str]:
    """Class names by the folders of images, of which at least so many names stay."""
    ends = {place.rpartition("/")[2] for place in places}
    is_alike = len(places) > 1 and len(ends) == 1 and all(place.count("/") >= within for place in places)
    return {place: place.rpartition("/")[0] if is_alike else place for place in places}


def images_of(path: Path, modalities: Sequence[str] = ()) -> tuple[dict[str, str], partial[bytes]]:
    """The images of a folder or zip of class folders, by `class/file` the name by which what comes second reads them; the npy
    files of modalities, as `class/file.depth.npy`, count among them.

    Raises `InputError` as `folder`.
    """
    if path.is_dir():
        stored, read = walk(path), partial(read_file, str(path))
    elif path.is_file():
        stored, read = zip_names(path), partial(read_zip, str(path))
    else:
        raise InputError(f"{path}: no such folder or zip; give one that holds class folders")
    stored = sorted(name for name in stored if kind_of(name, modalities) is not None or is_image(name, path))
    names = dict(zip(stored if path.is_dir() else _without_top(stored), stored, strict=True))
    for shown in names:
        if "/" not in shown:
            raise InputError(f"{path}: image {shown!r} lies in no class folder; move it into one")
    return names, read


def sample(key: str, label: str, read: partial[bytes], name: str) -> Sample:
    """A sample from a file's bytes; PNG and JPEG files keep them, other kinds become PNG."""
    suffix = name.rsplit(".", 1)[1].lower()
    if suffix in _KEPT:
        return Sample(key, label, read, _KEPT[suffix])
    return Sample(key, label, partial(_decoded, read, name), "png")


def zip_names(path: Path) -> list[str]:
    """The files in a zip. Raises `InputError` for a damaged zip and for names that are absolute or contain `..`."""
    names = [info.filename for info in _zip(str(path)).infolist() if not info.is_dir()]
    for name in names:
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise InputError(f"{path}: member name {name!r} leaves the zip; make the zip again without such names")
    return names


def read_zip(path: str, name: str) -> bytes:
    """One file of a zip; the zip stays open for the next one."""
    try:
        return _zip(path).read(name)
    except (*_ZIP_ERRORS, zlib.error, EOFError, RuntimeError, KeyError) as error:
        raise InputError(f"{path}: file {name!r} cannot be read ({error}); copy the zip again") from None


@lru_cache(maxsize=8)
def _zip(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _ZIP_ERRORS as error:
        raise InputError(f"{path}: no readable zip ({error}); give a folder of class folders or a zip of one") from None


def read_file(root: str, name: str) -> bytes:
    """One file of a folder. Raises `InputError` if it cannot be read."""
    try:
        return Path(root, name).read_bytes()
    except OSError as error:
        raise InputError(f"{root}/{name}: cannot be read ({error.strerror}); mend or remove it") from None


def _decoded(read: partial[bytes], name: str) -> np.ndarray:
    return decode(read(), name)


def walk(root: Path) -> list[str]:
    """The files at any depth by their path from the root, but those in hidden folders; links are followed.

    Raises `InputError` for a folder that cannot be read and for links that lead round.
    """
    names: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    # Class folders are often links to another disk, so links are followed; one back to a parent would never end.
    for place, folders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        status = os.stat(place)
        if (first := seen.setdefault((status.st_dev, status.st_ino), place)) != place:
            raise InputError(f"{place}: is the same folder as {first}; remove the link")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names += [os.path.relpath(os.path.join(place, name), root) for name in files]
    return names


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: folder cannot be read ({error.strerror}); mend its permissions") from None


def _without_top(names: Sequence[str]) -> list[str]:
    """Names without the one folder that holds all class folders, as zipping a folder makes it."""
    cut = len({name.split("/")[0] for name in names}) == 1 and all(name.count("/") > 1 for name in names)
    return [name.split("/", 1)[1] for name in names] if cut else list(names)


def is_image(name: str, where: Path) -> bool:
    """Whether a file is an image by its name. Raises `InputError` for a kind of image that is not read."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    suffix = PurePosixPath(name).suffix.lower()
    if hidden or suffix[1:] in EXTENSIONS:
        return not hidden
    if suffix in Image.registered_extensions():
        raise InputError(f"{where}: {name!r} is of a kind that is not read; convert it to PNG or JPEG, or remove it")
    return False
