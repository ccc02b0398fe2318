"""Reads CIFAR-FS: a zip for each split, or the classes of CIFAR-100 with Bertinetto's lists of them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path, PurePosixPath

from pipeline.data.importers.folder import SPLIT_FOLDERS, images_of, sample
from pipeline.data.source import Source, keys_of
from pipeline.data.splits import names_of
from pipeline.errors import InputError


def cifar_fs(path: str | Path) -> Source:
    """The data set of a folder with `meta_train.zip`, `meta_val.zip` and `meta_test.zip` (or some of them), which hold
    `CLASS/NAME.png` and are the splits. Where `split_train.json` and so on lie beside them, [[superclass, class], …], these must
    name the same classes.

    As Bertinetto et al. (ICLR 2019) publish it, it is `data/CLASS/NAME.png` and lists of classes
    `splits/bertinetto/{train,val,test}.txt`.

    Raises:
        InputError: neither is there, a zip cannot be read, a class is in two zips, or a list names other classes than its zip.
    """
    path = Path(path)
    zips = {split: path / f"meta_{split}.zip" for split in SPLIT_FOLDERS}
    zips = {split: file for split, file in zips.items() if file.is_file()}
    lists = {split: path / "splits" / "bertinetto" / f"{split}.txt" for split in SPLIT_FOLDERS}
    lists = {split: file for split, file in lists.items() if file.is_file()}
    if zips:
        return _of_zips(path, zips)
    if lists:
        names, read = images_of(path / "data")
        samples = _samples(names, read)
        return Source("cifar_fs", samples, {split: names_of(file) for split, file in lists.items()})
    raise InputError(
        f"{path}: --layout cifar_fs reads meta_train.zip, meta_val.zip and meta_test.zip, or data/ with "
        "splits/bertinetto/train.txt and so on; neither is here"
    )


def _of_zips(path: Path, zips: dict[str, Path]) -> Source:
    samples, home, splits = [], {}, {}
    for split, file in zips.items():
        found = _samples(*images_of(file))
        classes = sorted({one.label for one in found})
        for name in classes:
            if (first := home.setdefault(name, file)) != file:
                raise InputError(f"{file}: class {name!r} is in {first.name} too; a class belongs to one split")
        _compare(path / f"split_{split}.json", file, set(classes))
        samples += found
        splits[split] = classes
    return Source("cifar_fs", samples, splits)


def _samples(names: dict[str, str], read: partial[bytes]) -> list:
    return [
        sample(key, str(PurePosixPath(shown).parent), partial(read, stored), shown)
        for (shown, stored), key in zip(names.items(), keys_of(list(names)), strict=True)
    ]


def _compare(file: Path, zipped: Path, classes: set[str]) -> None:
    """Whether a list of a split names the classes of its zip, if there is one."""
    if not file.is_file():
        return
    try:
        told = {str(name) for _, name in json.loads(file.read_bytes())}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file}: is no list of [superclass, class] ({error}); mend or remove it") from None
    if other := sorted(told ^ classes):
        where = zipped.name if other[0] in classes else file.name
        raise InputError(
            f"{file}: {len(other)} classes are not in both of it and {zipped.name}, first {other[0]!r}, which is in {where} "
            "alone; get both again"
        )
