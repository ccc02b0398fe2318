"""Rows of images, a row per class: support on the left, queries on the right, once or before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pipeline.pictures.canvas import GREY, LETTER_IN, LINE_IN, MARGIN_IN, ORANGE, legible, new_figure, save

MOST_WAYS, MOST_SHOTS, MOST_QUERIES = 10, 5, 8
CELL_IN, GAP = 0.8, 0.4
"""Width of a cell in inches, and of the room between two blocks in cells."""

Images = np.ndarray | Sequence[np.ndarray]
Labels = np.ndarray | Sequence[int]
"""Numbers of classes (samples,)."""


class Part(NamedTuple):
    """Support or queries of an episode: images, (height, width, channels) or (channels, height, width) in 0…1, and targets."""

    images: Images
    targets: Labels


class Answer(NamedTuple):
    """What was predicted for every query, and what was known by then, as "after 5 inner steps"."""

    when: str
    predictions: Labels


class Frame(NamedTuple):
    """A box on an image: left, top, right, bottom as shares of its sides."""

    box: Sequence[float]
    colour: str
    style: str = "-"


class Cell(NamedTuple):
    """One image of a grid, with a line below it, marked or not, and with boxes on it."""

    row: int
    column: float
    image: np.ndarray
    note: str
    is_wrong: bool
    frames: Sequence[Frame] = ()


class Key(NamedTuple):
    """What a colour means: a filled area, or (with a style) a line."""

    colour: str
    meaning: str
    style: str = ""


class Block(NamedTuple):
    """Cells that lie together below a heading, and how many columns they take."""

    heading: str
    cells: Sequence[Cell]
    columns: int


def block(
    heading: str,
    images: Images,
    labels: Labels,
    most: int,
    *,
    notes: Sequence[str] = (),
    wrong: np.ndarray | Sequence[bool] = (),
    frames: Sequence[Sequence[Frame]] = (),
) -> Block:
    """The first `most` images of each class, a row per class, with what is said of each image."""
    cells: list[Cell] = []
    used: dict[int, int] = {}
    for number, label in enumerate(int(label) for label in labels):
        place = used.get(label, 0)
        if place == most or label >= MOST_WAYS:
            continue
        used[label] = place + 1
        # Where one image has a line below it all leave the room, so that they are of one size.
        note = (notes[number] or " ") if any(notes) else ""
        is_wrong = bool(wrong[number]) if len(wrong) else False
        cells.append(
            Cell(label, place, drawable(images[number]), note, is_wrong, frames[number] if len(frames) else ())
        )
    return Block(heading, cells, max(used.values(), default=0))


def left_out(names: Sequence[str], support: Labels, query: Labels, most_queries: int) -> str:
    """What the grid has no room for, in words; of labels of the support and of the queries."""
    parts = [f"{len(names) - MOST_WAYS} classes"] if len(names) > MOST_WAYS else []
    for what, labels, most in (("support", support, MOST_SHOTS), ("queries", query, most_queries)):
        more = int(np.maximum(np.bincount(np.asarray(labels, int))[:MOST_WAYS] - most, 0).sum())
        parts += [f"{more} {what}"] if more else []
    return f"\nnot shown: {', '.join(parts)}" if parts else ""


def drawable(image: np.ndarray) -> np.ndarray:
    """The image as (height, width) or (height, width, 3), whatever its axis order and channels."""
    if image.shape[-1] > 4 and image.shape[0] <= 4:
        image = np.moveaxis(image, 0, -1)
    image = np.clip(np.asarray(image, float), 0, 1)
    if image.ndim == 2:
        return image
    return image[..., :3] if image.shape[-1] >= 3 else image[..., 0]


def grid(path: Path, blocks: Sequence[Block], names: Sequence[str], title: str, *, keys: Sequence[Key] = ()) -> Path:
    """Draw blocks beside one another, the class names on the left, the title and what colours mean above."""
    rows = min(len(names), MOST_WAYS)
    labels = [f"{legible(name)}  {number}" for number, name in enumerate(names[:rows], 1)]
    name_in = LETTER_IN * max(len(label) for label in labels) + 2 * MARGIN_IN
    lines = title.count("\n") + (3 if keys else 2)
    head_in = LINE_IN * lines + 2 * MARGIN_IN + (MARGIN_IN / 2 if keys else 0)
    widest_line = max(LETTER_IN * max(len(line) for line in title.split("\n")), _key_widths(keys)) + 2 * MARGIN_IN
    columns = [max(part.columns, len(part.heading) * LETTER_IN / CELL_IN) for part in blocks]
    width = max(name_in + CELL_IN * (sum(columns) + GAP * (len(blocks) - 1)) + MARGIN_IN, widest_line)
    figure, (axes,) = new_figure(width, head_in + CELL_IN * rows + MARGIN_IN, rows=1, tight=False)
    # One pair of axes in units of a cell, so that hundreds of images cost no hundreds of axes.
    axes.set_position((0, 0, 1, 1))
    axes.set_xlim(-name_in / CELL_IN, (width - name_in) / CELL_IN)
    axes.set_ylim(rows + MARGIN_IN / CELL_IN, -head_in / CELL_IN)
    axes.axis("off")
    text = {"fontsize": 9, "parse_math": False}
    left, top = (MARGIN_IN - name_in) / CELL_IN, (MARGIN_IN - head_in) / CELL_IN
    axes.text(left, top, title, va="top", **text)
    _explain(axes, keys, left, top + LINE_IN / CELL_IN * (title.count("\n") + 1.6))
    for row, label in enumerate(labels):
        axes.text(-MARGIN_IN / CELL_IN, row + 0.5, label, ha="right", va="center", **text)
    start = 0.0
    for part, used in zip(blocks, columns, strict=True):
        axes.text(start + 0.04, -0.05, part.heading, va="bottom", color=GREY, **text)
        for cell in part.cells:
            _place(axes, cell._replace(column=start + cell.column))
        start += used + GAP
    return save(figure, path)


def _key_widths(keys: Sequence[Key]) -> float:
    """Inches that a line of keys takes."""
    return sum(_key_width(key) for key in keys)


def _key_width(key: Key) -> float:
    return 0.42 + LETTER_IN * len(key.meaning)


def _explain(axes: Axes, keys: Sequence[Key], left: float, middle: float) -> None:
    """What colours mean, on one line around `middle`."""
    for key in keys:
        if key.style:
            axes.plot([left, left + 0.22], [middle, middle], color=key.colour, linestyle=key.style, linewidth=1.8)
        else:
            outline = {"edgecolor": GREY, "linewidth": 0.5, "clip_on": False}
            axes.add_patch(Rectangle((left, middle - 0.07), 0.22, 0.14, facecolor=key.colour, **outline))
        axes.text(left + 0.28, middle, key.meaning, va="center", fontsize=9, parse_math=False)
        left += _key_width(key) / CELL_IN


def _place(axes: Axes, cell: Cell) -> None:
    height, width = cell.image.shape[:2]
    room = 0.72 if cell.note else 0.92
    scale = room / max(height, width)
    x, y = cell.column + (1 - width * scale) / 2, cell.row + 0.04
    y += 0 if cell.note else (0.92 - height * scale) / 2
    box = (x, x + width * scale, y + height * scale, y)
    colours = {"cmap": "gray", "vmin": 0, "vmax": 1} if cell.image.ndim == 2 else {}
    axes.imshow(cell.image, extent=box, aspect="auto", interpolation="nearest", **colours)
    line = {"color": ORANGE, "linewidth": 2.2} if cell.is_wrong else {"color": "#bbbbbb", "linewidth": 0.5}
    axes.add_patch(Rectangle((x, y), width * scale, height * scale, fill=False, clip_on=False, **line))
    for (left, top, right, bottom), colour, style in cell.frames:
        corner, across, down = (x + left * width * scale, y + top * height * scale), right - left, bottom - top
        look = {"color": colour, "linestyle": style, "linewidth": 1.4, "fill": False}
        axes.add_patch(Rectangle(corner, across * width * scale, down * height * scale, **look))
    colour = ORANGE if cell.is_wrong else GREY
    axes.text(cell.column + 0.5, cell.row + 0.99, cell.note, ha="center", va="bottom", fontsize=8, color=colour)
