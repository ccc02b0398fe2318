"""Episodes of segmentation: what of a class was found, missed and wrongly taken for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb

from pipeline.labels import IGNORED
from pipeline.pictures.canvas import BLUE, ORANGE
from pipeline.pictures.grid import MOST_QUERIES, MOST_SHOTS, Answer, Block, Key, Part, block, drawable, grid, left_out

WHITE, BLACK = "#ffffff", "#000000"
KEYS = (Key(BLUE, "found"), Key(WHITE, "missed"), Key(ORANGE, "wrongly taken for it"), Key(BLACK, "not looked at"))


def segmentation_picture(
    path: Path, support: Part, query: Part, answers: Sequence[Answer], names: Sequence[str], *, title: str
) -> Path:
    """A row per class: its support with what belongs to it, its queries with what was found of it, by each answer. Below a query
    is its intersection over union.

    Samples come class by class. Masks and predictions (samples, height, width) are 0 for the ground, 1 + n for class n of
    `names`, 255 for what is not looked at.
    """
    most = MOST_QUERIES // len(answers)
    known, asked = (np.repeat(np.arange(len(names)), len(part.images) // len(names)) for part in (support, query))
    masks = np.asarray(support.targets)
    given = [
        tinted(image, mask == 1 + way, unseen=mask == IGNORED)
        for image, mask, way in zip(support.images, masks, known, strict=True)
    ]
    blocks = [block("support", given, known, MOST_SHOTS)]
    blocks += [_answered(query, answer, asked, most) for answer in answers]
    title += "\nbelow: intersection over union of a query, framed where less than half"
    return grid(path, blocks, names, title + left_out(names, known, asked, most), keys=KEYS)


def _answered(query: Part, answer: Answer, ways: np.ndarray, most: int) -> Block:
    shown, overlaps = [], []
    parts = (query.images, np.asarray(query.targets), np.asarray(answer.predictions), ways)
    for image, mask, said, way in zip(*parts, strict=True):
        unseen = mask == IGNORED
        true, found = mask == 1 + way, (said == 1 + way) & ~unseen
        shown.append(tinted(image, true & found, true & ~found, found & ~true, unseen=unseen))
        overlaps.append((true & found).sum() / max(1, (true | found).sum()))
    notes = [f"{100 * overlap:.0f} %" for overlap in overlaps]
    wrong = [overlap < 0.5 for overlap in overlaps]
    return block(f"queries: {answer.when}", shown, ways, most, notes=notes, wrong=wrong)


def tinted(image: np.ndarray, *areas: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """The image in grey, its areas (height, width) in blue, white and orange, and darkened what is not looked at."""
    plain = drawable(image)
    grey = plain.mean(-1) if plain.ndim == 3 else plain
    shown = np.repeat(0.75 * grey[..., None], 3, axis=2)
    for area, colour in [*zip(areas, (BLUE, WHITE, ORANGE), strict=False), (unseen, BLACK)]:
        shown[area] = 0.35 * shown[area] + 0.65 * np.array(to_rgb(colour))
    return shown
