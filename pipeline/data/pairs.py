"""Pairs of samples that are compared, of one class or of two, in folds: their file, and their table in the index."""

# pyarrow makes the functions of its compute module at run time, where a type checker does not see them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.index import FOLDER, Index
from pipeline.data.source import Pair
from pipeline.errors import InputError

COLUMNS = ("fold", "image_a", "image_b", "same")
TABLE = "pairs"
"""Of the index: the columns fold, a and b (rows of samples) are int32, same is int8, 1 or 0."""
TEST = "test"
"""The split that a fold becomes which is held out."""


class Pairs(NamedTuple):
    """The pairs of a data set: folds and the rows of their samples, (pairs,) int32 each, and whether these are of one class."""

    fold: np.ndarray
    a: np.ndarray
    b: np.ndarray
    same: np.ndarray

    def only(self, chosen: np.ndarray) -> Pairs:
        """Those of a mask (pairs,)."""
        return Pairs(*(column[chosen] for column in self))


def read(path: Path, images: Mapping[str, str], labels: Mapping[str, str]) -> list[Pair]:
    """The pairs of a CSV file with the columns fold, image_a, image_b and same.

    `images` gives the key of every image by `class/file`, `labels` the class of every key. The file's name alone will do for an
    image where no other class has one of that name.

    Raises:
        InputError: the file is none, or a line names an image that is not there or not one alone, a fold that is no number, or
            says of two images what their classes do not.
    """
    keys = _by_name(images)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (lines.fieldnames or ())]:
                raise InputError(
                    f"{path}: has no column {missing[0]!r}; its first line is to name {', '.join(COLUMNS)}"
                )
            found = [_pair(line, keys, labels, f"{path}, line {lines.line_num}") for line in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); --pairs takes a CSV file of {', '.join(COLUMNS)}"
        ) from None
    if not found:
        raise InputError(f"{path}: holds no pair; leave --pairs out, or name another file")
    return found


def _by_name(images: Mapping[str, str]) -> dict[str, list[str]]:
    """The keys of images by `class/file` and by `file`."""
    keys: dict[str, list[str]] = {}
    for shown, key in images.items():
        for name in {shown, shown.rpartition("/")[2]}:
            keys.setdefault(name, []).append(key)
    return keys


def _pair(line: Mapping[str, str], keys: Mapping[str, list[str]], labels: Mapping[str, str], where: str) -> Pair:
    fold, *names, same = ((line[name] or "").strip() for name in COLUMNS)
    if not (fold.isascii() and fold.isdigit() and len(fold) < 6):
        raise InputError(f"{where}: fold {fold!r} is no number; folds are 0, 1, 2 …")
    if same not in ("0", "1"):
        raise InputError(f"{where}: same = {same!r} is neither 1 (one person) nor 0 (two); mend it")
    for name in names:
        match keys.get(name, []):
            case [_]:
                pass
            case []:
                raise InputError(f"{where}: image {name!r} is not among the images; bring it, or take the pair out")
            case several:
                raise InputError(
                    f"{where}: image {name!r} is in {len(several)} folders; name it with its own, as PERSON/{name}"
                )
    a, b = (keys[name][0] for name in names)
    if a == b:
        raise InputError(f"{where}: image {names[0]!r} is compared with itself; take the pair out")
    if (labels[a] == labels[b]) != (same == "1"):
        raise InputError(
            f"{where}: same = {same}, but the images lie in the folders {labels[a]!r} and {labels[b]!r}; mend the line or the "
            "folders"
        )
    return Pair(int(fold), a, b, same == "1")


def held_out(pairs: Sequence[Pair], labels: Mapping[str, str], fold: int) -> set[str]:
    """The classes that occur in the pairs of a fold. Raises `InputError` if there is no such fold."""
    found = {labels[key] for pair in pairs if pair.fold == fold for key in (pair.a, pair.b)}
    if not found:
        folds = ", ".join(map(str, sorted({pair.fold for pair in pairs})))
        raise InputError(f"--fold {fold}: the pairs have no such fold; they have {folds}")
    return found


def table_of(pairs: Sequence[Pair], keys: pa.ChunkedArray) -> pa.Table:
    """The table of pairs whose samples have these keys, in the order of rows."""
    named = {name: pa.array([getattr(pair, name) for pair in pairs], keys.type) for name in ("a", "b")}
    rows = {name: pc.index_in(column, value_set=keys) for name, column in named.items()}
    assert not any(column.null_count for column in rows.values())
    folds = pa.array([pair.fold for pair in pairs], pa.int32())
    same = pa.array([int(pair.same) for pair in pairs], pa.int8())
    return pa.table({"fold": folds, **rows, "same": same})


def are_in(index: Index) -> bool:
    """Whether a data set holds pairs."""
    return TABLE in index.manifest["files"]


def pairs_of(index: Index) -> Pairs:
    """The pairs that lie in the index. Raises `InputError` if there are none, or if their table is damaged."""
    if not are_in(index):
        raise InputError(f"{index.root}: holds no pairs; pack it with --layout identities --pairs FILE")
    try:
        with index.table_content(TABLE) as file:
            table = pa.ipc.open_file(file).read_all()
        fold, a, b, same = (np.asarray(table[name].combine_chunks()) for name in ("fold", "a", "b", "same"))
    except InputError:  # what a store answers is no damage
        raise
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        place = index.root / f"{FOLDER}/{TABLE}.arrow"
        raise InputError(f"{place}: is damaged ({error}); pack it again") from None
    return Pairs(fold, a, b, same.astype(bool))


def held_fold(index: Index) -> int | None:
    """The fold whose classes were kept for the test when the data were packed, if one was."""
    return index.manifest["origin"].get("fold")


def faults(index: Index) -> Iterator[str]:
    """A line for everything that is wrong with the pairs of an index."""
    try:
        pairs = pairs_of(index)
    except InputError as error:
        yield str(error)
        return
    if outside := int(((pairs.a < 0) | (pairs.a >= len(index)) | (pairs.b < 0) | (pairs.b >= len(index))).sum()):
        yield f"{outside} pairs name samples that are not in the index; pack it again"
        return
    first, second = index.class_of[pairs.a], index.class_of[pairs.b]
    if wrong := int(((first == second) != pairs.same).sum()):
        yield f"{wrong} pairs say of their samples' classes what the samples do not; pack it again"
    held = np.unique(np.concatenate([first, second])[np.tile(pairs.fold == held_fold(index), 2)])
    for split, classes in index.splits.items():
        if split != TEST and len(both := np.intersect1d(held, classes)):
            yield (
                f"class {index.class_names[both[0]]!r} of split {split!r} is in the pairs of fold {held_fold(index)}, which was "
                f"to be held out ({len(both)} such classes); pack it again"
            )
