"""Reads COCO's annotations: boxes, and outlines as polygons or run lengths, which become masks."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.data.importers.boxed import Instance, Picture, Tally, inside, samples_of
from pipeline.data.source import Source
from pipeline.errors import InputError
from pipeline.labels import IGNORED

FILE = "instances.json"
MISSING = "images that {} lists are not there and are left out"
UNTOLD = "images have no annotation and are left out"
STRAY = "annotations are of images that the file does not list and are left out"
BROKEN = "outlines are broken: their boxes stay, their masks do not look at them"

FARTHEST = 1e5
"""Largest coordinate of an outline: the code that draws it takes memory by its length."""


class Outlined(NamedTuple):
    """An object with its outline as COCO writes it: polygons, run lengths, or none."""

    instance: Instance
    outline: Any


def coco(path: str | Path, *, min_area: float = 0.0) -> Source:
    """The data set of a folder with `images` and `instances.json`, or of such a JSON file beside its images.

    Crowds are not looked at. If any object of the file has an outline, every sample has a mask; in it the boxes of crowds
    without an outline, of objects without one and of broken ones (fewer than three points, an odd number of coordinates,
    numbers that are none, run lengths of another size) are not looked at, and smaller objects lie on top of larger ones.
    What is left out is counted in the source's notes: see `boxed.samples_of`; images that are listed but not there, images
    without annotations, annotations of images that are not listed, broken outlines.

    Raises:
        InputError: the file is no COCO annotation, all its images are missing, or an annotation has no known class.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    told = _told(file)
    folder, tally = _images(file), Tally()
    try:
        names = {int(kind["id"]): str(kind["name"]) for kind in told["categories"]}
        listed = {int(image["id"]): image for image in told["images"]}
        found: dict[int, list[Outlined]] = defaultdict(list)
        for number, annotation in enumerate(told["annotations"]):
            if int(annotation["image_id"]) not in listed:
                tally.add(STRAY)
                continue
            found[int(annotation["image_id"])].append(_object(annotation, names, f"{file}: annotation {number}"))
        sizes = {key: (int(image["width"]), int(image["height"])) for key, image in listed.items()}
        files = {key: inside(folder, str(image["file_name"])) for key, image in listed.items()}
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{file}: is no COCO annotation ({type(error).__name__}: {error}); mend it") from None
    there = [key for key in sorted(listed) if files[key].is_file()]
    if not there:
        raise InputError(f"{file}: none of its {len(listed)} images is in {folder}; bring them")
    tally.add(MISSING.format(file.name), len(listed) - len(there))
    tally.add(UNTOLD, sum(not found[key] for key in there))
    has_masks = any(thing.outline for things in found.values() for thing in things)
    pictures = []
    for key in (key for key in there if found[key]):
        things, (width, height) = found[key], sizes[key]
        if has_masks:
            tally.add(BROKEN, sum(bool(t.outline) and not _is_whole(t.outline, width, height) for t in things))
        mask = partial(_mask, tuple(things), width, height) if has_masks else None
        pictures.append(Picture(files[key], width, height, [thing.instance for thing in things], mask))
    return Source(path.stem, samples_of(pictures, min_area=min_area, tally=tally), {}, tally.notes())


def _told(file: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as COCO's JSON ({error}); --layout coco wants {FILE}") from None
    if not isinstance(told, dict):
        raise InputError(f"{file}: is no COCO annotation, which is an object with images, annotations and categories")
    return told


def _images(file: Path) -> Path:
    """The folder of the images: `images` beside the file, or, as COCO itself is laid out, the part's name (`val2017` of
    `annotations/instances_val2017.json`) one above."""
    part = file.parent.parent / file.stem.removeprefix("instances_")
    return next((folder for folder in (file.parent / "images", part) if folder.is_dir()), file.parent / "images")


def _object(annotation: Mapping[str, Any], names: Mapping[int, str], what: str) -> Outlined:
    kind = int(annotation["category_id"])
    if kind not in names:
        raise InputError(f"{what} is of category {kind}, which the file does not name; add it to categories")
    left, top, width, height = (float(side) for side in annotation["bbox"])
    box = (left, top, left + width, top + height)
    return Outlined(Instance(names[kind], box, bool(annotation.get("iscrowd"))), annotation.get("segmentation"))


def _is_whole(outline: Any, width: int, height: int) -> bool:
    """Whether an outline can be drawn."""
    if isinstance(outline, dict):
        counts = outline.get("counts")
        if outline.get("size") != [height, width]:
            return False
        if isinstance(counts, list):
            is_counted = all(isinstance(count, int) and count >= 0 for count in counts)
            return is_counted and sum(counts) == height * width
        # Packed run lengths are drawn by C code that trusts them.
        return isinstance(counts, str) and _packed_length(counts) == height * width
    return isinstance(outline, list) and all(
        isinstance(ring, list)
        and len(ring) >= 6
        and len(ring) % 2 == 0
        and all(isinstance(n, int | float) and math.isfinite(n) and abs(n) <= FARTHEST for n in ring)
        for ring in outline
    )


def _packed_length(counts: str) -> int:
    """How many pixels COCO's packed run lengths stand for; −1 where they cannot be unpacked.

    Numbers of five bits a character, the least first, with a bit for more to come; from the fourth on they are differences
    from the last but one (`rleFrString` of COCO's maskApi).
    """
    lengths: list[int] = []
    at = 0
    while at < len(counts):
        number = shift = 0
        while True:
            if at == len(counts) or not 48 <= ord(counts[at]) < 48 + 64 or shift > 30:
                return -1
            code, at = ord(counts[at]) - 48, at + 1
            number |= (code & 31) << shift
            shift += 5
            if not code & 32:
                break
        if code & 16:
            number |= -1 << shift
        if len(lengths) > 2:
            number += lengths[-2]
        if number < 0:
            return -1
        lengths.append(number)
    return sum(lengths)


def _mask(things: Sequence[Outlined], width: int, height: int, classes: tuple[str, ...]) -> np.ndarray:
    from pycocotools import mask as runs

    mask = np.zeros((height, width), np.uint8)
    drawn = []
    for (label, box, is_crowd), outline in things:
        value = IGNORED if is_crowd or label not in classes else 1 + classes.index(label)
        if outline and _is_whole(outline, width, height):
            pixels = runs.decode(_runs(outline, height, width)).astype(bool)
        else:
            value, pixels = IGNORED, np.zeros_like(mask, bool)
            low, high = np.floor(box[:2]), np.ceil(box[2:])
            pixels[max(0, int(low[1])) : max(0, int(high[1])), max(0, int(low[0])) : max(0, int(high[0]))] = True
        drawn.append((int(pixels.sum()), value, pixels))
    for _, value, pixels in sorted(drawn, key=lambda each: -each[0]):
        mask[pixels] = value
    return mask


def _runs(outline: Any, height: int, width: int) -> Any:
    """An outline as packed run lengths, whichever of COCO's three ways it is written in."""
    from pycocotools import mask as runs

    if isinstance(outline, dict) and isinstance(outline["counts"], str):
        return outline
    pack: Any = runs.frPyObjects  # its stubs know polygons as lists of whole numbers alone
    made = pack(outline, height, width)
    return runs.merge(made) if isinstance(outline, list) else made
