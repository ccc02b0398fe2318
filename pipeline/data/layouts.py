"""How a source of images is read: the layouts by name, each with its importer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, assert_never, get_args

from pipeline.data.importers.cifar_fs import cifar_fs
from pipeline.data.importers.coco import coco
from pipeline.data.importers.csv_files import csv_files
from pipeline.data.importers.folder import folder
from pipeline.data.importers.fss import fss
from pipeline.data.importers.glyphs import glyphs
from pipeline.data.importers.identities import identities
from pipeline.data.importers.logos import logos
from pipeline.data.importers.masks import MIN_AREA, masks
from pipeline.data.importers.omniglot import omniglot
from pipeline.data.importers.scenes import scenes
from pipeline.data.importers.voc import voc
from pipeline.data.source import Source
from pipeline.errors import InputError

Layout = Literal[
    "folder", "csv", "omniglot", "omniglot_lake", "cifar_fs", "masks", "fss", "coco", "voc", "logos", "identities", "glyphs",
    "scenes",
]  # fmt: skip
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
HAVE_AREAS = ("masks", "fss", "coco", "voc", "logos")
"""Layouts whose classes cover a part of a picture."""
HAVE_MODALITIES = ("folder", "glyphs")
GLYPH_PIXELS, SCENE_PIXELS = 28, 64


def read(
    source: str,
    layout: Layout,
    *,
    size: int | None,
    seed: int,
    min_area: float | None,
    pairs: Path | None,
    modalities: Sequence[str],
) -> Source:
    """The data set under `source`; see `prepare.pack`.

    Raises:
        InputError: an option is for other layouts, or as the layout's importer says.
    """
    if pairs is not None and layout != "identities":
        raise InputError(f"--pairs {pairs} is for --layout identities; leave it out, or choose that layout")
    if min_area is not None and layout not in HAVE_AREAS:
        raise InputError(f"--min-area {min_area:g} is for --layout {', '.join(HAVE_AREAS)}; leave it out")
    if modalities and layout not in HAVE_MODALITIES:
        raise InputError(
            f"--modalities is for --layout {', '.join(HAVE_MODALITIES)}; leave it out, or metashard index tars"
        )
    match layout:
        case "folder":
            return folder(source, modalities=modalities)
        case "csv":
            return csv_files(source)
        case "omniglot":
            return omniglot(source)
        case "omniglot_lake":
            return omniglot(source, is_lakes=True)
        case "cifar_fs":
            return cifar_fs(source)
        case "masks":
            return masks(source, min_area=MIN_AREA if min_area is None else min_area)
        case "fss":
            return fss(source, min_area=min_area or 0.0)
        case "coco":
            return coco(source, min_area=min_area or 0.0)
        case "voc":
            return voc(source, min_area=min_area or 0.0)
        case "logos":
            return logos(source, min_area=min_area or 0.0)
        case "identities":
            return identities(source, pairs=pairs)
        case "scenes":
            return scenes(size=size or SCENE_PIXELS, seed=seed)
        case "glyphs":
            return glyphs(size=size or GLYPH_PIXELS, seed=seed, modalities=modalities)
        case _ as never:
            assert_never(never)


def named(layout: str) -> Layout:
    """The layout of this name; raises `InputError` if there is none."""
    for known in LAYOUTS:
        if known == layout:
            return known
    raise InputError(f"--layout {layout!r} is not one of {', '.join(LAYOUTS)}")
