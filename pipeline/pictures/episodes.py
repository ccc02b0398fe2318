"""Episodes of images that have one class each: as they are, or with what they were taken for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.pictures.canvas import ORANGE
from pipeline.pictures.grid import MOST_QUERIES, MOST_SHOTS, Answer, Key, Part, block, grid, left_out

RIGHT, WRONG = "✓", "✗"


def sample_picture(path: Path, support: Part, query: Part, names: Sequence[str], *, title: str) -> Path:
    """An episode before anybody has looked at it: a row per class, its support images and its queries.

    Targets are numbers of classes (samples,); `names` by number.
    """
    blocks = [
        block("support", support.images, support.targets, MOST_SHOTS),
        block("queries", query.images, query.targets, MOST_QUERIES),
    ]
    return grid(path, blocks, names, title + left_out(names, support.targets, query.targets, MOST_QUERIES))


def episode_picture(
    path: Path, support: Part, query: Part, answers: Sequence[Answer], names: Sequence[str], *, title: str
) -> Path:
    """An episode with what was predicted, by one answer or by one before and one after. Below a query is what it was taken for,
    "✗ n" for class n; one that is wrong in the end is framed.

    Targets and predictions are numbers of classes (samples,); `names` by number.
    """
    true = np.asarray(query.targets)
    said = [np.asarray(answer.predictions) for answer in answers]
    notes = [note([int(each[number]) for each in said], int(label)) for number, label in enumerate(true)]
    told = [f"{int((each == true).sum())} {answer.when}" for answer, each in zip(answers, said, strict=True)]
    title += f"\nqueries that are right, of {len(true)}: {', '.join(told)}"
    title += left_out(names, support.targets, query.targets, MOST_QUERIES)
    heading = f"queries: {' → '.join(answer.when for answer in answers)}"
    blocks = [
        block("support", support.images, support.targets, MOST_SHOTS),
        block(heading, query.images, true, MOST_QUERIES, notes=notes, wrong=said[-1] != true),
    ]
    return grid(path, blocks, names, title, keys=[Key(ORANGE, f"wrong; {WRONG} n: taken for class n", "-")])


def note(said: Sequence[int], true: int) -> str:
    """What a query was taken for, one answer after the other; nothing where all are right."""
    if all(each == true for each in said):
        return ""
    return " → ".join(RIGHT if each == true else f"{WRONG} {each + 1}" for each in said)
