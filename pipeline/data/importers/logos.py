"""Reads pictures with a list of boxes, as FlickrLogos-27 comes: `images/` and a line `file class subset x1 y1 x2 y2` a box."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from pipeline.data.importers.boxed import Instance, Picture, Tally, inside, samples_of, size_of
from pipeline.data.source import Source
from pipeline.errors import InputError

LIST = "training_set_annotation.txt"
MISSING = "images of the list are not there and are left out"
TWICE = "boxes are listed twice and count once"


def logos(path: str | Path, *, min_area: float = 0.0) -> Source:
    """The data set of a folder with `images` and `training_set_annotation.txt`, whose lines are `file class subset x1 y1 x2 y2`
    (or the same without the subset, a number that is not looked at) in pixels.

    What is left out is counted in the source's notes: see `boxed.samples_of`; images that are not there, boxes listed twice.

    Raises:
        InputError: the list or the images are missing, or a line is none of these.
    """
    path = Path(path)
    listed = _listed(path / LIST)
    tally, pictures = Tally(), []
    for name, found in sorted(listed.items()):
        file = inside(path / "images", name)
        if not file.is_file():
            tally.add(MISSING)
            continue
        once = list(dict.fromkeys(found))
        tally.add(TWICE, len(found) - len(once))
        pictures.append(Picture(file, *size_of(file), once))
    if not pictures:
        raise InputError(f"{path / 'images'}: none of the {len(listed)} images of {LIST} is there; bring them")
    return Source(path.stem, samples_of(pictures, min_area=min_area, tally=tally), {}, tally.notes())


def _listed(path: Path) -> dict[str, list[Instance]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); --layout logos wants lines file class x1 y1 x2 y2"
        ) from None
    found: dict[str, list[Instance]] = defaultdict(list)
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            continue
        try:
            if len(parts) not in (6, 7):
                raise ValueError
            left, top, right, bottom = (float(part) for part in parts[-4:])
        except ValueError:
            raise InputError(f"{path}: line {number} is {line!r}, not file class subset x1 y1 x2 y2; mend it") from None
        found[parts[0]].append(Instance(parts[1], (left, top, right, bottom)))
    return found
