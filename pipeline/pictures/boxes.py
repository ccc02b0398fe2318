"""Episodes of detection: which objects of a class were found or missed, and what was wrongly taken for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.pictures.canvas import BLUE, GREEN, GREY, ORANGE
from pipeline.pictures.grid import MOST_QUERIES, MOST_SHOTS, Answer, Block, Frame, Key, Part, block, grid, left_out

SURE = 0.3
"""Score from which on a detection is drawn."""
KEYS = (
    Key(BLUE, "labelled, or found", "-"),
    Key(GREEN, "missed", "--"),
    Key(ORANGE, "wrongly taken for it", "-"),
    Key(GREY, "not looked at", ":"),
)


def detection_picture(
    path: Path, support: Part, query: Part, answers: Sequence[Answer], names: Sequence[str], *, title: str
) -> Path:
    """A row per class: its support with the object that is labelled, its queries with the class's objects, found or missed, and
    what was wrongly taken for one, by each answer. Below a query is how many of its objects were found.

    Samples come class by class. Boxes (samples, boxes, 5) are left, top, right, bottom in shares of the sides and 1 + n for class
    n of `names`, negative where they are not looked at; predictions are detections (samples, detections, 6) that end with score
    and class, those below SURE are not drawn.
    """
    most = MOST_QUERIES // len(answers)
    known, asked = (np.repeat(np.arange(len(names)), len(part.images) // len(names)) for part in (support, query))
    labelled = [
        [
            Frame(box, BLUE if code > 0 else GREY, "-" if code > 0 else ":")
            for *box, code in boxes.tolist()
            if abs(code) == 1 + way
        ]
        for boxes, way in zip(np.asarray(support.targets), known, strict=True)
    ]
    blocks = [block("support", support.images, known, MOST_SHOTS, frames=labelled)]
    blocks += [_answered(query, answer, asked, most) for answer in answers]
    title += f"\nbelow: objects that are found by detections that score {SURE:g} or more, framed where one is missed or too many"
    return grid(path, blocks, names, title + left_out(names, known, asked, most), keys=KEYS)


def _answered(query: Part, answer: Answer, ways: np.ndarray, most: int) -> Block:
    parts = (np.asarray(query.targets), np.asarray(answer.predictions), ways)
    told = [judged(boxes, detections, int(way)) for boxes, detections, way in zip(*parts, strict=True)]
    notes = [f"{found} of {there}" for _, found, there in told]
    wrong = [found < there or any(frame.colour == ORANGE for frame in frames) for frames, found, there in told]
    frames = [frames for frames, _, _ in told]
    return block(f"queries: {answer.when}", query.images, ways, most, notes=notes, wrong=wrong, frames=frames)


def judged(boxes: np.ndarray, detections: np.ndarray, way: int) -> tuple[list[Frame], int, int]:
    """What to draw of one class on a query, how many of its objects were found and how many there are: the surest detections
    choose first."""
    truths = [box for *box, code in boxes.tolist() if code == 1 + way]
    ignored = [box for *box, code in boxes.tolist() if code == -1 - way]
    missed, frames = list(truths), [Frame(box, GREY, ":") for box in ignored]
    for *box, score, kind in detections.tolist():
        if kind != way or score < SURE:
            continue
        best = max(missed, key=lambda truth: _overlap(box, truth), default=None)
        if best is not None and _overlap(box, best) >= 0.5:
            missed.remove(best)
            frames.append(Frame(box, BLUE))
        elif not any(_overlap(box, other) >= 0.5 for other in ignored):
            frames.append(Frame(box, ORANGE))
    return frames + [Frame(box, GREEN, "--") for box in missed], len(truths) - len(missed), len(truths)


def _overlap(one: Sequence[float], two: Sequence[float]) -> float:
    """Intersection over union."""
    across = min(one[2], two[2]) - max(one[0], two[0])
    down = min(one[3], two[3]) - max(one[1], two[1])
    shared = max(across, 0) * max(down, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two))
    return shared / max(areas - shared, 1e-12)
