"""The verb `predict`: what an adapted model says of image files, one bad file or not."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import answer_files
from pipeline.answer_files import Entry, Sink
from pipeline.data.files import make_folder, write_file
from pipeline.errors import InputError
from pipeline.image_files import ImageFile, files_of
from pipeline.session import Progress, silent
from pipeline.teaching import adapted
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.answers import Answer, Asked, Boxes, Mask, answers, as_json, opened
from pipeline.teaching.overlays import areas_png, boxes_png, mask_png

BATCH = 32
"""Images that are asked about at once, as long as they have no more pixels than this together:"""
MOST_PIXELS = 1 << 25
TABLES = (".json", ".csv")
"""Ends of the names of files; what is called otherwise is a folder."""


class Wanted(NamedTuple):
    """Where answers go.

    out: a file, by its end .json (of detection COCO's) or .csv; or a folder for both, with masks and overlays. csv: a table
    beside that. is_json: a document on standard output. pictures: boxes drawn on the images, in the folder.
    """

    out: Path | None = None
    csv: Path | None = None
    is_json: bool = False
    pictures: bool = False

    @property
    def folder(self) -> Path | None:
        return self.out if self.out is not None and self.out.suffix.lower() not in TABLES else None

    @property
    def files(self) -> list[Path]:
        """Every table and document that is written, each by its end."""
        own = (
            []
            if self.out is None
            else [self.out]
            if self.folder is None
            else [self.out / f"answers{end}" for end in TABLES]
        )
        return own + ([self.csv] if self.csv is not None else [])


class Done(NamedTuple):
    """How many images there were, and which of them have no answer."""

    total: int
    errors: list[Entry]


def predict(
    place: Path,
    asked: Sequence[str],
    wanted: Wanted,
    *,
    least: float | None = None,
    is_closed: bool = False,
    progress: Progress = silent,
) -> Done:
    """Ask the model of a file about every image that `asked` names: files, folders, patterns.

    `least` in the place of the model's threshold: the likeness below which an image is unknown, or the score from which on an
    object is told. `is_closed`: no image is unknown. A file that cannot be answered stops nothing.

    Raises:
        InputError: there is no such model, nothing is named, or an answer would be written over something that was asked about.
    """
    model = adapted.load(place)
    least = _least(model, least, is_closed)
    check(model, wanted)
    files = files_of(asked, but=wanted.folder)
    refuse_overwriting(place, files, wanted)
    errors: list[Entry] = []
    with ExitStack() as open_files:
        sinks = _sinks(open_files, model, wanted, least)
        for done, reply in enumerate(_replies(model, files, least), 1):
            entry = _entry(reply, model, wanted)
            if entry.error:
                errors.append(entry)
            for sink in sinks:
                sink(entry)
            progress(done, len(files))
    return Done(len(files), errors)


class _Reply(NamedTuple):
    """A file, what was read of it, and the answer or why there is none."""

    file: ImageFile
    asked: Asked | None
    answer: Answer | str


def _replies(model: Adapted, files: Sequence[ImageFile], least: float | None) -> Iterator[_Reply]:
    """An answer for every file, in their order."""
    for batch in batches(model, files):
        whole = [(file, read) for file, read in batch if isinstance(read, Asked)]
        if whole:
            yield from _answered(model, whole, least)
        else:
            yield from (_Reply(file, None, str(read)) for file, read in batch)


def batches(model: Adapted, files: Iterable[ImageFile]) -> Iterator[list[tuple[ImageFile, Asked | str]]]:
    """The files as the model is asked about them, in their order: so many images at once as may be held, or one that cannot be
    read, with the reason."""
    waiting: list[tuple[ImageFile, Asked | str]] = []
    pixels = 0
    for file in files:
        read = _read(model, file)
        size = 0 if isinstance(read, str) else math.prod(read.size)
        if waiting and (not size or len(waiting) == BATCH or pixels + size > MOST_PIXELS):
            yield waiting
            waiting, pixels = [], 0
        waiting.append((file, read))
        pixels += size
        if not size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _read(model: Adapted, file: ImageFile) -> Asked | str:
    try:
        return opened(model, file.read(), file.name)
    except InputError as error:
        return str(error)
    except MemoryError:
        return f"image {file.name!r}: takes more memory than there is; make the image smaller"


def _answered(model: Adapted, waiting: Sequence[tuple[ImageFile, Asked]], least: float | None) -> list[_Reply]:
    """Where an image spoils the answers of all it is asked with, each is asked alone."""
    try:
        found = answers(model, [asked for _, asked in waiting], threshold=least)
    except InputError as error:
        if len(waiting) == 1:
            return [_Reply(*waiting[0], f"image {waiting[0][0].name!r}: {error}")]
        return [reply for one in waiting for reply in _answered(model, [one], least)]
    return [_Reply(*one, answer) for one, answer in zip(waiting, found, strict=True)]


def _entry(reply: _Reply, model: Adapted, wanted: Wanted) -> Entry:
    """What is written of an answer, whose pictures are written here."""
    file, asked, answer = reply
    named = {"name": file.name}
    if asked is None or isinstance(answer, str):
        return answer_files.failed(named, answer)
    try:
        drawn = _drawn(file, asked, answer, model, wanted)
    except OSError as error:
        return answer_files.failed(named, f"image {file.name!r}: its picture cannot be written ({error.strerror})")
    return Entry(named, {**as_json(answer, model), **drawn}, answer, asked.size)


def _drawn(file: ImageFile, asked: Asked, answer: Answer, model: Adapted, wanted: Wanted) -> dict[str, str]:
    """The pictures of an answer, by what they are: where in the folder they lie."""
    folder, classes = wanted.folder, model.support.classes
    if folder is None:
        return {}
    image = next(array for array in asked.arrays if array is not None)
    match answer:
        case Mask():
            mask = _kept(folder, f"masks/{file.place}.png", mask_png(answer.mask))
            return {
                "mask": mask,
                "overlay": _kept(folder, f"overlays/{file.place}.png", areas_png(image, answer.mask, classes)),
            }
        case Boxes() if wanted.pictures:
            return {"picture": _kept(folder, f"pictures/{file.place}.png", boxes_png(image, answer.boxes, classes))}
    return {}


def _kept(folder: Path, place: str, data: bytes) -> str:
    """Write a file of the folder."""
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path.parent}: is a link out of --out {folder}; remove it")
    write_file(path, data)
    return place


def _least(model: Adapted, least: float | None, is_closed: bool) -> float | None:
    """What `answers` takes."""
    kind = model.learner.config.task.kind
    if kind == "segmentation" and least is not None:
        raise InputError(f"--threshold {least:g}: a pixel is of the likeliest class, whatever it is like; leave it out")
    if kind in ("segmentation", "detection") and is_closed:
        raise InputError(
            f"--no-unknown: task.kind = {kind} says what is where, and calls no image unknown; leave it out"
        )
    if is_closed and least is not None:
        raise InputError(f"--threshold {least:g}: with --no-unknown nothing is unknown; leave one out")
    if least is not None and (math.isnan(least) or (kind == "detection" and not 0 <= least <= 1)):
        raise InputError(
            f"--threshold {least:g}: is no {'score from 0 to 1' if kind == 'detection' else 'likeness'}; choose another"
        )
    return -math.inf if is_closed else least


def check(model: Adapted, wanted: Wanted) -> None:
    """Raises InputError where answers of this model cannot go where they are wanted."""
    kind, needed = model.learner.config.task.kind, model.learner.inputs.reader.modalities
    if len(needed) > 1:
        raise InputError(
            f"this learner takes {', '.join(needed)} of every sample, and a file is one image; ask the learner in MLflow, which "
            "takes all of them (metashard export CHECKPOINT --mlflow DIR)"
        )
    if wanted.pictures and (kind != "detection" or wanted.folder is None):
        raise InputError(
            "--pictures draws the boxes of detection into the folder --out; "
            + ("name a folder" if kind == "detection" else f"leave it out of {kind}")
        )
    if wanted.out is not None and (wanted.folder is None) == wanted.out.is_dir() and wanted.out.exists():
        what = (
            "is a folder; a name that ends so is that of a file"
            if wanted.folder is None
            else "is a file; name a folder"
        )
        raise InputError(f"--out {wanted.out}: {what}")
    if wanted.csv is not None and (wanted.csv.is_dir() or wanted.csv.suffix.lower() != ".csv"):
        raise InputError(f"--csv {wanted.csv}: name a file that ends with .csv")
    if len(set(map(Path.absolute, wanted.files))) < len(wanted.files):
        raise InputError(f"--csv {wanted.csv}: is written by --out already; leave it out")


def refuse_overwriting(place: Path, files: Sequence[ImageFile], wanted: Wanted) -> None:
    """No answer takes the place of what it is an answer to."""
    read = {place.resolve(), *(file.path.resolve() for file in files)}
    made = list(wanted.files)
    if wanted.folder is not None:
        made += [
            wanted.folder / kind / f"{file.place}.png" for kind in ("masks", "overlays", "pictures") for file in files
        ]
    for path in made:
        if path.resolve() in read:
            raise InputError(f"{path}: was asked about, and would be written over; choose another --out")


def _sinks(open_files: ExitStack, model: Adapted, wanted: Wanted, least: float | None) -> list[Sink]:
    """Everything that takes answers about images."""
    kind, classes = model.learner.config.task.kind, model.support.classes
    columns, head = answer_files.columns_of(kind, classes), _head(model, least)
    if kind != "detection" or wanted.out is None:
        found = sinks(open_files, wanted, columns, head)
    else:
        # A file of detection is COCO's; a folder has both.
        path = wanted.out if wanted.folder is None else wanted.out / "coco.json"
        is_coco = path.suffix.lower() == ".json"
        others = wanted._replace(out=None) if is_coco and wanted.folder is None else wanted
        found = sinks(open_files, others, columns, head, is_kept=True)
        if is_coco:
            file = open_files.enter_context(answer_files.whole(path))
            found.append(open_files.enter_context(answer_files.coco(file, classes)))
    if wanted.folder is not None and kind == "segmentation":
        make_folder(wanted.folder)
        names = {str(1 + way): name for way, name in enumerate(classes)}
        write_file(wanted.folder / "classes.json", json.dumps(names).encode())
    return found


def sinks(
    open_files: ExitStack,
    wanted: Wanted,
    columns: Sequence[str],
    head: Mapping[str, Any],
    *,
    is_kept: bool = False,
) -> list[Sink]:
    """A table for every .csv and a document for every .json; what people read goes to standard output unless a file has it, or
    it is kept elsewhere."""
    found = []
    for path in wanted.files:
        file = open_files.enter_context(answer_files.whole(path))
        is_table = path.suffix.lower() == ".csv"
        sink = answer_files.csv_table(file, columns) if is_table else answer_files.json_document(file, head)
        found.append(open_files.enter_context(sink))
    if wanted.is_json:
        found.append(open_files.enter_context(answer_files.json_document(sys.stdout, head)))
    elif not wanted.files and not is_kept:
        found.append(open_files.enter_context(answer_files.lines()))
    return found


def _head(model: Adapted, least: float | None) -> dict[str, Any]:
    """What all answers have in common, as JSON values."""
    used = model.calibration.threshold if least is None else least
    used = None if used is None or math.isinf(used) else used
    told = {"task": model.learner.config.task.kind, "classes": list(model.support.classes), "threshold": used}
    if least is None and model.learner.config.task.kind == "detection":
        told["score_thresholds"] = dict(zip(model.support.classes, model.sure, strict=True))
    return told
