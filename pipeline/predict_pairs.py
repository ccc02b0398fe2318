"""The verb `predict` for pairs: whether two images show one class, by a threshold from the support's own pairs."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from pipeline import answer_files
from pipeline.answer_files import Entry
from pipeline.errors import InputError
from pipeline.image_files import ImageFile, one_file
from pipeline.predict import Done, Wanted, batches, check, refuse_overwriting, sinks
from pipeline.session import Progress, silent
from pipeline.teaching import adapted, pairs
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.answers import Asked

COLUMNS: tuple[str, str] = ("image_a", "image_b")

Pair = tuple[ImageFile, ImageFile]


def compare(
    place: Path, asked: Sequence[Pair], wanted: Wanted, *, least: float | None = None, progress: Progress = silent
) -> Done:
    """Say of every pair whether both show one class. Each image is read once, however many pairs it is in; `least` in the place
    of the support's own threshold.

    Raises:
        InputError: there is no such model, it compares nothing, or its support has no two samples of a class.
    """
    model = adapted.load(place)
    least = _least(model, least)
    check(model, wanted)
    files = {file.path: file for pair in asked for file in pair}
    refuse_overwriting(place, list(files.values()), wanted)
    features, errors = _features(model, files, progress), []
    head = {"task": model.learner.config.task.kind, "threshold": least}
    with ExitStack() as open_files:
        takers = sinks(open_files, wanted, [*COLUMNS, "same", "likeness", "threshold", "error"], head)
        for pair in asked:
            entry = _entry(pair, features, least)
            if entry.error:
                errors.append(entry)
            for take in takers:
                take(entry)
    return Done(len(asked), errors)


def named(names: Sequence[str]) -> list[Pair]:
    """The pair of two names. Raises InputError for other numbers of them."""
    if len(names) != 2:
        raise InputError(f"--compare takes two images, and {len(names)} are named; name two, or give --pairs FILE.csv")
    return [(one_file(names[0]), one_file(names[1]))]


def listed(path: Path) -> list[Pair]:
    """The pairs of a CSV file of two columns, or of others too if its first line names `image_a` and `image_b`. Images lie where
    they say, relative to the file's folder.

    Raises:
        InputError: it cannot be read, a line is no pair, or there is none.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            lines = csv.reader(file)
            rows = [(lines.line_num, row) for row in lines if row]
    except (OSError, csv.Error) as error:
        raise InputError(f"--pairs {path}: cannot be read ({error}); give a CSV file of two columns") from error
    places, width = (0, 1), 2
    if rows and set(COLUMNS) <= set(head := [name.strip() for name in rows[0][1]]):
        places, width, rows = (head.index(COLUMNS[0]), head.index(COLUMNS[1])), len(head), rows[1:]
    if not rows:
        raise InputError(f"--pairs {path}: holds no pair; give a line IMAGE,IMAGE for each")
    found = []
    for number, row in rows:
        if len(row) != width or not all(row[place].strip() for place in places) or "\0" in "".join(row):
            raise InputError(
                f"--pairs {path}, line {number}: {len(row)} values are no pair; give two paths, or a first line that names "
                f"{' and '.join(COLUMNS)}"
            )
        one, other = (one_file(row[place].strip(), below=path.parent) for place in places)
        found.append((one, other))
    return found


def _least(model: Adapted, least: float | None) -> float:
    found = pairs.threshold_of(model)
    if least is not None:
        if math.isnan(least):
            raise InputError("--threshold nan: is no cosine; choose one from -1 to 1")
        return least
    if found is None:
        raise InputError(
            "the support has no two images of one class, or of two classes, so that nobody knows how alike they are; give "
            "--threshold (a cosine), or adapt with more images"
        )
    return found


def _features(model: Adapted, files: Mapping[Path, ImageFile], progress: Progress) -> dict[Path, Tensor | str]:
    """The features (dim,) of every file, or why there are none."""
    found: dict[Path, Tensor | str] = {}
    for batch in batches(model, files.values()):
        for file, told in zip((file for file, _ in batch), _of_batch(model, batch), strict=True):
            found[file.path] = told
        progress(len(found), len(files))
    return found


def _of_batch(model: Adapted, batch: Sequence[tuple[ImageFile, Asked | str]]) -> list[Tensor | str]:
    """Where an image spoils those that it comes with, each is taken alone."""
    whole = [read for _, read in batch if isinstance(read, Asked)]
    if not whole:
        return [str(read) for _, read in batch]
    try:
        return list(model.features(model.learner.inputs.tensor([read.arrays for read in whole])).cpu())
    except InputError as error:
        if len(batch) == 1:
            return [f"image {batch[0][0].name!r}: {error}"]
        return [told for one in batch for told in _of_batch(model, [one])]


def _entry(pair: Pair, features: Mapping[Path, Tensor | str], least: float) -> Entry:
    titles = dict(zip(COLUMNS, (file.name for file in pair), strict=True))
    one, other = (features[file.path] for file in pair)
    if isinstance(one, str) or isinstance(other, str):
        return answer_files.failed(titles, one if isinstance(one, str) else other)
    (found,) = pairs.compared(one[None], other[None], least=least)
    if not math.isfinite(found.likeness):
        return answer_files.failed(titles, f"images {pair[0].name!r} and {pair[1].name!r}: features are not finite")
    return Entry(titles, found._asdict(), found)
