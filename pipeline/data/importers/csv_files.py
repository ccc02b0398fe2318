"""Reads images that CSV files list with their labels: one file, or one for each split as Ravi's mini-ImageNet has."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.data.images import EXTENSIONS
from pipeline.data.importers.boxed import inside
from pipeline.data.importers.folder import SPLIT_FOLDERS, read_file, sample
from pipeline.data.source import Sample, Source, keys_of
from pipeline.errors import InputError

FILE, LABEL, SPLIT = ("file", "filename"), "label", "split"
WANTED = "its first line is to name file,label (and split, if classes have one)"


class Line(NamedTuple):
    """What a line says, and where it stands."""

    file: str
    label: str
    split: str
    where: str


def csv_files(path: str | Path) -> Source:
    """The data set of a CSV file with the columns `file` (or `filename`) and `label`, with `split` too if classes have one; files
    are relative to the CSV's folder.

    Of a folder its `train.csv`, `val.csv` and `test.csv` (or some of them) are the splits and its files lie in `images`, as
    Ravi and Larochelle (ICLR 2017) have mini-ImageNet. Other columns are not looked at, which the source's notes say. A file
    with two labels is a sample of each, which name it as `picture` in their meta, so that no episode has it twice.

    Raises:
        InputError: there is no such list, a column is missing, a line is too long, its file, label or split is empty, its file is
            no image, not there or outside the folder, or a file has one label twice.
    """
    path, notes = Path(path), []
    if path.is_dir():
        folder, lists = path / "images", {split: path / f"{split}.csv" for split in SPLIT_FOLDERS}
        lists = {split: file for split, file in lists.items() if file.is_file()}
        if not lists:
            raise InputError(f"{path}: no train.csv, val.csv or test.csv here; name a CSV file, or bring them")
        lines = [line for split, file in lists.items() for line in _lines(file, split, notes)]
    else:
        folder, lines = path.parent, _lines(path, None, notes)
    labels: dict[str, dict[str, str]] = {}
    splits: dict[str, dict[str, None]] = {}
    for line in lines:
        seen = labels.setdefault(line.file, {})
        if line.label in seen:
            raise InputError(
                f"{line.where}: {line.file!r} is {line.label!r} already ({seen[line.label]}); take a line out"
            )
        seen[line.label] = line.where
        if line.split:
            splits.setdefault(line.split, {})[line.label] = None
    absent = [(file, next(iter(seen.values()))) for file, seen in labels.items() if not inside(folder, file).is_file()]
    if absent:
        file, where = absent[0]
        raise InputError(f"{where}: {len(absent)} files are not in {folder}, first {file!r}; bring them")
    samples = [
        made
        for (file, seen), key in zip(labels.items(), keys_of(list(labels)), strict=True)
        for made in _samples(folder, file, key, list(seen))
    ]
    return Source(path.stem, samples, {split: list(names) for split, names in splits.items()}, tuple(notes))


def _samples(folder: Path, file: str, key: str, labels: Sequence[str]) -> list[Sample]:
    """A sample for each label of a file."""
    read = partial(read_file, str(folder), file)
    if len(labels) == 1:
        return [sample(key, labels[0], read, file)]
    made = [sample(f"{key}/{number}", label, read, file) for number, label in enumerate(labels)]
    return [Sample(one.key, one.label, one.image, one.extension, meta=partial(dict, picture=key)) for one in made]


def _lines(file: Path, split: str | None, notes: list[str]) -> list[Line]:
    """What a CSV file says; `split` is that of all its lines, none: the column says. Notes which columns are not looked at."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictReader(opened, strict=True)
            columns = list(rows.fieldnames or ())
            named = next((name for name in FILE if name in columns), FILE[0])
            if missing := [name for name in (named, LABEL) if name not in columns]:
                raise InputError(f"{file}: has no column {missing[0]!r}; {WANTED}")
            used = {named, LABEL, *((SPLIT,) if split is None else ())}
            if others := [name for name in columns if name not in used]:
                notes.append(f"columns of {file.name} that are not looked at: {', '.join(others)}")
            found = []
            for row in rows:
                where = f"{file}, line {rows.line_num}"
                if None in row:
                    raise InputError(f"{where}: has more than {len(columns)} fields; quote what has a comma in it")
                told = {name: (row[name] or "").strip() for name in used & set(columns)}
                if empty := [name for name, value in told.items() if not value]:
                    raise InputError(f"{where}: {min(empty)} is empty; fill it in, or take the line out")
                found.append(Line(_image(told[named], where), told[LABEL], split or told.get(SPLIT, ""), where))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read ({error}); --layout csv takes a CSV file in UTF-8") from None
    if not found:
        raise InputError(f"{file}: lists no file; {WANTED}, the others a file each")
    return found


def _image(name: str, where: str) -> str:
    """A file's name without detours, so that one file has one name."""
    if PurePosixPath(name).suffix[1:].lower() not in EXTENSIONS:
        raise InputError(
            f"{where}: {name!r} is of a kind that is not read; convert it to PNG or JPEG, or take the line out"
        )
    return str(PurePosixPath(name))
