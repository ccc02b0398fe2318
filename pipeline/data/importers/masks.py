"""Reads pictures with a mask beside each: `images/NAME.*` and `masks/NAME.png`, whose values are numbers of classes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.data.images import EXTENSIONS, decode_mask
from pipeline.data.importers.folder import sample as sample_of
from pipeline.data.source import Sample, Source, keys_of
from pipeline.errors import InputError
from pipeline.labels import IGNORED

MIN_AREA = 0.01
"""Share of a picture that a class must cover to be drawn for: less is hardly seen in a small picture."""
NAMES = ("classes.json", "instances.json")


def masks(path: str | Path, *, min_area: float = MIN_AREA) -> Source:
    """The data set of a folder of `images` and `masks`, a sample for each picture and class that covers `min_area` of it.

    Samples of one picture name it as `picture` in their meta, so that no episode has it twice.

    Names of the values come from `classes.json` ({"1": "bird"}) or the categories of a COCO file `instances.json`. 0 is no
    class, 255 is not looked at, and neither is what covers less than `min_area`: it is there, but nothing to learn from.
    Pictures without a mask, or with none but small areas, are left out and counted in the source's notes.

    Raises:
        InputError: a folder is missing, a mask has no picture or a value without a name.
    """
    path = Path(path)
    if not 0 <= min_area < 1:
        raise InputError(f"--min-area {min_area:g} is no share of a picture; choose 0 to below 1")
    names, images, truths = _names(path), _files(path / "images", EXTENSIONS), _files(path / "masks", ("png",))
    if lonely := sorted(truths.keys() - images.keys()):
        raise InputError(
            f"{path}: {len(lonely)} masks have no image, as {lonely[0]!r}; bring the images or remove the masks"
        )
    samples, empty = [], 0
    stems = sorted(truths)
    for stem, key in zip(stems, keys_of([images[stem].name for stem in stems]), strict=True):
        values, counts = np.unique(_mask(truths[stem]), return_counts=True)
        areas = {int(value): int(n) for value, n in zip(values, counts, strict=True) if value not in (0, IGNORED)}
        if unknown := sorted(areas.keys() - names.keys()):
            raise InputError(
                f"{truths[stem]}: value {unknown[0]} has no name in {path}; name it in {NAMES[0]}, 0 is none, {IGNORED} is "
                "left out"
            )
        chosen = [value for value in sorted(areas) if areas[value] >= min_area * counts.sum()]
        empty += not chosen
        for value in chosen:
            order = [value, *(other for other in chosen if other != value)]
            made = sample_of(f"{key}/{value}", names[value], partial(images[stem].read_bytes), images[stem].name)
            samples.append(
                Sample(
                    made.key,
                    made.label,
                    made.image,
                    made.extension,
                    partial(_renumbered, truths[stem], tuple(order)),
                    partial(
                        dict,
                        classes=[names[other] for other in order],
                        **({"picture": key} if len(chosen) > 1 else {}),
                    ),
                )
            )
    notes = [f"{len(images) - len(truths)} images have no mask and are left out"] if len(images) > len(truths) else []
    if empty:
        notes.append(
            f"{empty} images show no class on {100 * min_area:g} % of them and are left out (0 is no class, {IGNORED} is not "
            "looked at)"
        )
    return Source(path.stem, samples, {}, tuple(notes))


def _renumbered(path: Path, order: tuple[int, ...]) -> np.ndarray:
    """The mask with the n-th value of `order` as n, and all others but 0 as not to be looked at."""
    meaning = np.full(IGNORED + 1, IGNORED, np.uint8)
    meaning[0] = 0
    meaning[list(order)] = np.arange(1, 1 + len(order))
    return meaning[_mask(path)]


def _mask(path: Path) -> np.ndarray:
    return decode_mask(path.read_bytes(), str(path))


def _files(folder: Path, extensions: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder by name without extension."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; --layout masks reads images/NAME.jpg and masks/NAME.png")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix[1:].lower() in extensions and not path.name.startswith("."):
            if (first := found.setdefault(path.stem, path)) != path:
                raise InputError(f"{folder}: {first.name} and {path.name} have one name; rename one")
    return found


def _names(path: Path) -> dict[int, str]:
    """The classes by their value."""
    found = next((path / name for name in NAMES if (path / name).is_file()), None)
    if found is None:
        raise InputError(f'{path}: no {NAMES[0]} that names the masks\' values, as {{"1": "bird"}}')
    try:
        told = json.loads(found.read_bytes())
        named = {c["id"]: c["name"] for c in told["categories"]} if "categories" in told else told
        return {int(value): str(name) for value, name in named.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{found}: names no classes ({type(error).__name__}: {error}); as {{"1": "bird"}}') from None
