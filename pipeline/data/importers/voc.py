"""Reads the layout of Pascal VOC: `JPEGImages`, `Annotations/NAME.xml` with boxes, `SegmentationClass/NAME.png` with masks."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from pipeline.data.images import EXTENSIONS, decode_mask
from pipeline.data.importers.boxed import Instance, Picture, Tally, samples_of, size_of
from pipeline.data.source import Source
from pipeline.errors import InputError
from pipeline.labels import IGNORED

VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa "
    "train tvmonitor"
).split()
"""What the values of Pascal VOC's masks mean from 1 on."""
NAMES = "classes.json"
UNTOLD = "images have no annotation and are left out"
LONELY = "annotations have no image and are left out"
UNMASKED = "images have no mask, others have: leave them out for task.kind = segmentation"
LARGEST = 1 << 22
"""Most bytes of an annotation file."""


def voc(path: str | Path, *, min_area: float = 0.0) -> Source:
    """The data set of a folder in VOC's layout. Objects that are `difficult` are not looked at, as in VOC's own evaluation.

    Pixels are counted from 1 and a box holds its last ones, as in VOC. Values of masks are VOC's classes, unless
    `classes.json` ({"1": "bird"}) names others; classes without a box in the picture are not looked at in its mask.
    What is left out is counted in the source's notes: see `boxed.samples_of`; images without an annotation, annotations
    without an image.

    Raises:
        InputError: a folder is missing, or an annotation or mask cannot be understood.
    """
    path = Path(path)
    images, told = path / "JPEGImages", path / "Annotations"
    for folder in (images, told):
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder; --layout voc reads JPEGImages/NAME.jpg and Annotations/NAME.xml"
            )
    files = {file.stem: file for file in sorted(images.iterdir()) if file.suffix[1:].lower() in EXTENSIONS}
    notes = {file.stem: file for file in sorted(told.glob("*.xml"))}
    masks = {file.stem: file for file in sorted((path / "SegmentationClass").glob("*.png"))}
    names = _names(path) if masks else {}
    tally = Tally()
    tally.add(UNTOLD, len(files.keys() - notes.keys()))
    tally.add(LONELY, len(notes.keys() - files.keys()))
    tally.add(UNMASKED, len(files.keys() & notes.keys() - masks.keys()) if masks else 0)
    pictures = []
    for stem in sorted(files.keys() & notes.keys()):
        mask = partial(_mask, masks[stem], names) if stem in masks else None
        pictures.append(Picture(files[stem], *size_of(files[stem]), _instances(notes[stem]), mask))
    return Source(path.stem, samples_of(pictures, min_area=min_area, tally=tally), {}, tally.notes())


def _instances(path: Path) -> list[Instance]:
    root = _parsed(path)
    found = []
    for number, thing in enumerate(root.iter("object"), 1):
        name, frame = thing.findtext("name", "").strip(), thing.find("bndbox")
        try:
            if frame is None or not name:
                raise ValueError("it has no name or no bndbox")
            left, top, right, bottom = (float(frame.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError as error:
            raise InputError(f"{path}: object {number} cannot be understood ({error}); mend it") from None
        is_difficult = thing.findtext("difficult", "0").strip() == "1"
        found.append(Instance(name, (left - 1, top - 1, right, bottom), is_difficult))
    return found


def _parsed(path: Path) -> ElementTree.Element:
    """The annotation's tree. A document type is refused before it is parsed: its entities could grow without end."""
    try:
        data = path.read_bytes()
        if len(data) > LARGEST:
            raise InputError(f"{path}: {len(data)} bytes are more than an annotation has; remove it")
        # As text: in another encoding a document type would not be seen.
        text = data.decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise InputError(f"{path}: has a document type, which annotations do not need and is not read; take it out")
        return ElementTree.fromstring(text)
    except InputError:
        raise
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: is no XML that can be read ({error}); mend or remove it") from None


def _mask(path: Path, names: dict[int, str], classes: tuple[str, ...]) -> np.ndarray:
    mask = decode_mask(path.read_bytes(), str(path))
    meaning = np.full(IGNORED + 1, IGNORED, np.uint8)
    meaning[0] = 0
    for value in np.unique(mask).tolist():
        if value in (0, IGNORED):
            continue
        if value not in names:
            raise InputError(f'{path}: value {value} has no name; give {NAMES}, as {{"1": "bird"}}')
        if names[value] in classes:
            meaning[value] = 1 + classes.index(names[value])
    return meaning[mask]


def _names(path: Path) -> dict[int, str]:
    file = path / NAMES
    if not file.is_file():
        return dict(enumerate(VOC, 1))
    try:
        return {int(value): str(name) for value, name in json.loads(file.read_bytes()).items()}
    except (ValueError, AttributeError) as error:
        raise InputError(f'{file}: names no classes ({error}); as {{"1": "bird"}}') from None
