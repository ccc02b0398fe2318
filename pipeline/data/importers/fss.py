"""Reads FSS-1000's layout: a folder per class of images with a mask beside each, `CLASS/N.jpg` and `CLASS/N.png`."""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.data.images import decode
from pipeline.data.importers.folder import images_of, sample
from pipeline.data.source import Sample, Source, keys_of
from pipeline.errors import InputError

FOREGROUND = 128
"""Grey from which on a mask's pixel is of the class: some masks of FSS-1000 are smooth at their edges."""


def fss(path: str | Path, *, min_area: float = 0.0) -> Source:
    """The data set in a folder or zip of class folders, whose PNG files are the masks of the other images (Li et al., FSS-1000,
    CVPR 2020). White is the class, black is none.

    Images whose mask is empty, or covers less than `min_area` of them, are left out and counted in the source's notes.

    Raises:
        InputError: as `folder`; an image has no mask, a mask no image, or two images one name.
    """
    if not 0 <= min_area < 1:
        raise InputError(f"--min-area {min_area:g} is no share of a picture; choose 0 to below 1")
    path = Path(path)
    names, read = images_of(path)
    images: dict[str, str] = {}
    masks = {_stem(shown): shown for shown in names if _is_mask(shown)}
    for shown in (shown for shown in names if not _is_mask(shown)):
        if (first := images.setdefault(_stem(shown), shown)) != shown:
            raise InputError(f"{path}: {first} and {shown} have one mask; rename one, and give it a mask of its own")
    for one, other, what in ((images, masks, "image"), (masks, images, "mask")):
        if lonely := sorted(one.keys() - other.keys()):
            lacks = "mask" if what == "image" else "image"
            raise InputError(
                f"{path}: {len(lonely)} {what}s have no {lacks}, as {one[lonely[0]]!r}; bring the {lacks}s or remove them"
            )
    samples, empty = [], 0
    stems = sorted(images)
    for stem, key in zip(stems, keys_of([images[stem] for stem in stems]), strict=True):
        mask = partial(_mask, partial(read, names[masks[stem]]), masks[stem])
        share = mask().mean()
        if share == 0 or share < min_area:
            empty += 1
            continue
        shown = images[stem]
        made = sample(key, str(PurePosixPath(shown).parent), partial(read, names[shown]), shown)
        samples.append(Sample(made.key, made.label, made.image, made.extension, mask))
    notes = (f"{empty} images have an empty mask, or one below --min-area, and are left out",) if empty else ()
    return Source(path.stem, samples, {}, notes)


def _mask(read: partial[bytes], name: str) -> np.ndarray:
    """(height, width) uint8: 1 for the class."""
    return (decode(read(), name, channels=1)[..., 0] >= FOREGROUND).astype(np.uint8)


def _is_mask(name: str) -> bool:
    return name.lower().endswith(".png")


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
