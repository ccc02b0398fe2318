"""Draws what a run looks like: arrays in, a PNG file out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pipeline.labels import IGNORED

# Okabe and Ito's colours, which those who see no red and green can tell apart too.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"
MOST_WAYS, MOST_SHOTS, MOST_QUERIES = 10, 5, 8
SURE = 0.3
"""Score from which on a detection is drawn."""
CELL_IN, MARGIN_IN, LETTER_IN, LINE_IN = 0.8, 0.12, 0.083, 0.17
LONGEST_NAME, LONGEST_LINE = 34, 44


Images = np.ndarray | Sequence[np.ndarray]


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


def sample_picture(
    path: Path,
    support: Images,
    support_labels: Sequence[int],
    query: Images,
    query_labels: Sequence[int],
    names: Sequence[str],
    *,
    title: str,
) -> Path:
    """An episode before anybody has looked at it: a row per class, its support images and its queries.

    Images are (height, width, channels) or (channels, height, width) in 0…1; `names` by label.
    """
    support_cells, shots = _block(support, support_labels, MOST_SHOTS)
    query_cells, queries = _block(query, query_labels, MOST_QUERIES, column=shots + 0.4)
    notes = _left_out(names, support_labels, query_labels)
    return _grid(path, support_cells + query_cells, names, shots, queries, title + notes)


def episode_picture(
    path: Path,
    support: Images,
    support_labels: Sequence[int],
    query: Images,
    query_labels: Sequence[int],
    predictions: Sequence[int],
    names: Sequence[str],
) -> Path:
    """An episode with what was predicted: a wrong one is framed and has a cross with the number of the class it was taken for.

    Images are (height, width, channels) or (channels, height, width) in 0…1; `names` by label.
    """
    support_cells, shots = _block(support, support_labels, MOST_SHOTS)
    query_cells, queries = _block(query, query_labels, MOST_QUERIES, column=shots + 0.4, predictions=predictions)
    right = int((np.asarray(predictions) == np.asarray(query_labels)).sum())
    notes = _left_out(names, support_labels, query_labels)
    title = f"{right} of {len(query)} queries right; ✗ n: taken for class n{notes}"
    return _grid(path, support_cells + query_cells, names, shots, queries, title)


def segmentation_picture(
    path: Path,
    support: Images,
    support_masks: np.ndarray,
    query: Images,
    query_masks: np.ndarray,
    predictions: np.ndarray,
    names: Sequence[str],
) -> Path:
    """An episode of segmentation, a row per class: its support with what belongs to the class, its queries with what was found of
    it, what was missed and what was wrongly taken for it. Below a query is its intersection over union.

    Samples come class by class. Masks and predictions (samples, height, width) are 0 for the ground, 1 + n for class n of
    `names`, 255 for what is not looked at; images as in `episode_picture`.
    """
    shots, queries = len(support) // len(names), len(query) // len(names)
    cells = []
    for row in range(min(len(names), MOST_WAYS)):
        for place in range(min(shots, MOST_SHOTS)):
            number = row * shots + place
            cells.append(Cell(row, place, _tinted(support[number], support_masks[number] == 1 + row), "", False))
        for place in range(min(queries, MOST_QUERIES)):
            number = row * queries + place
            true, seen = query_masks[number] == 1 + row, query_masks[number] != IGNORED
            said = (predictions[number] == 1 + row) & seen
            overlap = (true & said).sum() / max(1, (true | said).sum())
            shown = _tinted(query[number], true & said, true & ~said, said & ~true)
            column = min(shots, MOST_SHOTS) + 0.4 + place
            cells.append(Cell(row, column, shown, f"{100 * overlap:.0f} %", overlap < 0.5))
    title = "blue: found; white: missed; orange: wrongly taken for it; below: intersection over union"
    return _grid(path, cells, names, min(shots, MOST_SHOTS), min(queries, MOST_QUERIES), title)


def detection_picture(
    path: Path,
    support: Images,
    support_boxes: np.ndarray,
    query: Images,
    query_boxes: np.ndarray,
    detections: np.ndarray,
    names: Sequence[str],
) -> Path:
    """An episode of detection, a row per class: its support with the object that is looked at, its queries with the class's
    objects, found or missed, and what was wrongly taken for one. Below a query is how many of its objects were found.

    Samples come class by class. Boxes (samples, boxes, 5) are left, top, right, bottom in shares of the sides and 1 + n for class
    n of `names`, negative where they are not looked at; detections (samples, detections, 6) end with score and class, those
    below SURE are not drawn; images as in `episode_picture`.
    """
    shots, queries = len(support) // len(names), len(query) // len(names)
    cells = []
    for row in range(min(len(names), MOST_WAYS)):
        for place in range(min(shots, MOST_SHOTS)):
            number = row * shots + place
            frames = [
                Frame(box, BLUE if code > 0 else GREY, "-" if code > 0 else ":")
                for *box, code in support_boxes[number].tolist()
                if abs(code) == 1 + row
            ]
            cells.append(Cell(row, place, _drawable(support[number]), "", False, frames))
        for place in range(min(queries, MOST_QUERIES)):
            number = row * queries + place
            frames, found, there = _judged(query_boxes[number], detections[number], row)
            column = min(shots, MOST_SHOTS) + 0.4 + place
            wrong = any(frame.colour == ORANGE for frame in frames)
            note = f"{found} of {there}"
            cells.append(Cell(row, column, _drawable(query[number]), note, wrong or found < there, frames))
    title = "blue: found; green: missed; orange: wrongly taken for it; grey: not looked at\n"
    title += f"detections that score {SURE:g} or more; below: how many were found"
    return _grid(path, cells, names, min(shots, MOST_SHOTS), min(queries, MOST_QUERIES), title)


def _judged(boxes: np.ndarray, detections: np.ndarray, way: int) -> tuple[list[Frame], int, int]:
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


def _tinted(image: np.ndarray, *areas: np.ndarray) -> np.ndarray:
    """The image in grey, its areas (height, width) in blue, white and orange."""
    drawable = _drawable(image)
    grey = drawable.mean(-1) if drawable.ndim == 3 else drawable
    shown = np.repeat(0.75 * grey[..., None], 3, axis=2)
    for area, colour in zip(areas, (BLUE, "#ffffff", ORANGE), strict=False):
        shown[area] = 0.35 * shown[area] + 0.65 * np.array(to_rgb(colour))
    return shown


def adaptation_curve(
    path: Path, steps: Sequence[int], values: Sequence[float], intervals: Sequence[float], floor: float, *, metric: str
) -> Path:
    """A metric (0…1) against inner steps with its 95 % intervals, over the untrained floor."""
    figure, (axes,) = _figure(6.4, 4.0, rows=1)
    _scores(axes, steps, values, intervals, label="after adapting", metric=metric)
    axes.axhline(100 * floor, color=GREY, linestyle="--", linewidth=1.2, label=f"untrained, {100 * floor:.1f} %")
    axes.set_xlabel("inner steps")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def roc_picture(
    path: Path, curve: tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray], *, title: str
) -> Path:
    """A receiver operating characteristic: false and true acceptance rates (0…1), the former on a logarithmic scale.

    The dashed line has as many false acceptances as false rejections.
    """
    far, tar = (np.asarray(side, float) for side in curve)
    figure, (axes,) = _figure(6.4, 4.4, rows=1)
    lowest = max(1e-5, min(1e-2, float(far[far > 0].min(initial=1))))
    line = np.geomspace(lowest, 1, 200)
    axes.plot(100 * line, 100 * (1 - line), color=GREY, linestyle="--", linewidth=1.2, label="equal errors")
    axes.step(100 * np.maximum(far, lowest), 100 * tar, where="post", color=BLUE, linewidth=1.8, label="accepted")
    axes.set_xscale("log")
    axes.set_xlim(100 * lowest, 100)
    axes.set_ylim(0, 101)
    axes.set_xlabel("impostors that are accepted (%)")
    axes.set_ylabel("genuine pairs that are accepted (%)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9, loc="center left")
    return _save(figure, path)


def loss_curve(
    path: Path,
    steps: Sequence[int],
    train_loss: Sequence[float],
    validation: tuple[Sequence[int], Sequence[float], Sequence[float]],
    *,
    metric: str,
) -> Path:
    """Training loss by meta-step, with its running median, above a metric (0…1) in validation with 95 % intervals.

    `validation` is (steps, values, intervals) and may be empty; losses that are not finite leave gaps.
    """
    at, values, intervals = validation
    figure, panels = _figure(6.4, 5.6 if len(at) else 3.6, rows=2 if len(at) else 1)
    losses = np.asarray(train_loss, float)
    losses = np.where(np.isfinite(losses), losses, np.nan)
    panels[0].plot(steps, losses, color=BLUE, alpha=0.3, linewidth=0.8, label="each meta-step")
    if (width := max(1, len(losses) // 40)) > 1:
        panels[0].plot(steps, _running_median(losses, width), color=BLUE, linewidth=1.8, label=f"median of {width}")
    else:
        panels[0].plot(steps, losses, color=BLUE, linewidth=0, marker=".", markersize=4)
    panels[0].set_ylabel("training loss (nats)")
    panels[0].legend(frameon=False, fontsize=9)
    if len(at):
        _scores(panels[1], at, values, intervals, label="validation", metric=metric)
        panels[1].sharex(panels[0])
        panels[1].legend(frameon=False, fontsize=9, loc="lower right")
        panels[0].tick_params(labelbottom=False)
    panels[-1].set_xlabel("meta-steps")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return _save(figure, path)


def difference_picture(
    path: Path, names: Sequence[str], panels: Mapping[str, Sequence[tuple[float, float]]], *, metric: str
) -> Path:
    """Differences (0…1) from the first of `names` with the half widths of their 95 % intervals, a row each, a panel by title.

    An interval without zero has another colour, a heavier line and a filled dot.
    """
    labels = ["\n".join(wrap(_spelled(name), LONGEST_LINE)) for name in names]
    lines = sum(label.count("\n") + 2 for label in labels)
    longest = max(len(line) for label in labels for line in label.split("\n"))
    height = len(panels) * (LINE_IN * (lines + 3) + 0.2) + 0.6
    figure, rows = _figure(5.2 + LETTER_IN * longest, height, rows=len(panels))
    # Before anything is drawn: a panel that shares later takes the limits of the first as they are.
    for axes in rows[1:]:
        axes.sharex(rows[0])
    for axes, (title, differences) in zip(rows, panels.items(), strict=True):
        axes.axvline(0, color=GREY, linestyle="--", linewidth=1.2, zorder=0)
        for row, (mean, spread) in enumerate(differences):
            _difference(axes, row, 100 * mean, 100 * spread)
        axes.set_yticks(range(len(labels)), labels, fontsize=9, parse_math=False)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(visible=False, axis="y")
    rows[-1].set_xlabel(
        f"{metric} minus the first run's on the same episodes (points ± 95 % interval)\nfilled: the interval is without zero",
        fontsize=9,
    )
    return _save(figure, path)


def _difference(axes: Axes, row: int, mean: float, spread: float) -> None:
    """A row: dot and interval, the figures at the right edge; the first row is what the others are compared with."""
    without_zero = abs(mean) > spread
    colour, width, fill = (ORANGE, 2.2, ORANGE) if without_zero else (BLUE, 1.4, "white")
    look = {"color": colour, "linewidth": width, "markerfacecolor": fill}
    axes.errorbar([mean], [row], xerr=[spread], marker="o", markersize=5, capsize=4, **look)
    text = f"{mean:+.2f} ± {spread:.2f}".replace("-", "−") if row else "reference"
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=colour)


def _scores(
    axes: Axes, steps: Sequence[int], values: Sequence[float], intervals: Sequence[float], *, label: str, metric: str
) -> None:
    percent, spread = 100 * np.asarray(values, float), 100 * np.asarray(intervals, float)
    axes.errorbar(
        steps, percent, yerr=spread, color=ORANGE, marker="o", markersize=4, capsize=3, label=f"{label} ± 95 % interval"
    )
    axes.set_ylabel(f"{metric} (%)")


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    """The median of the finite values among the `width` around each; nan where there is none."""
    padded = np.pad(values, (width // 2, width - 1 - width // 2), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    some = np.isfinite(windows).any(1)
    medians = np.full(len(values), np.nan)
    medians[some] = np.nanmedian(windows[some], axis=1)
    return medians


def _block(
    images: Images,
    labels: Sequence[int],
    most: int,
    *,
    column: float = 0,
    predictions: Sequence[int] = (),
) -> tuple[list[Cell], int]:
    """Cells of the first `most` images of each class, a row per class, and how many columns they take."""
    cells: list[Cell] = []
    used: dict[int, int] = {}
    for number, label in enumerate(int(label) for label in labels):
        place = used.get(label, 0)
        if place == most or label >= MOST_WAYS:
            continue
        used[label] = place + 1
        is_wrong = len(predictions) > 0 and int(predictions[number]) != label
        note = f"✗ {int(predictions[number]) + 1}" if is_wrong else ""
        cells.append(Cell(label, column + place, _drawable(images[number]), note, is_wrong))
    return cells, max(used.values(), default=0)


def _left_out(names: Sequence[str], support_labels: Sequence[int], query_labels: Sequence[int]) -> str:
    """What the grid has no room for, in words."""
    parts = [f"{len(names) - MOST_WAYS} classes"] if len(names) > MOST_WAYS else []
    for what, labels, most in (("support", support_labels, MOST_SHOTS), ("queries", query_labels, MOST_QUERIES)):
        more = int(np.maximum(np.bincount(np.asarray(labels, int))[:MOST_WAYS] - most, 0).sum())
        parts += [f"{more} {what}"] if more else []
    return f"\nnot shown: {', '.join(parts)}" if parts else ""


def _drawable(image: np.ndarray) -> np.ndarray:
    """The image as (height, width) or (height, width, 3), whatever its axis order and channels."""
    if image.shape[-1] > 4 and image.shape[0] <= 4:
        image = np.moveaxis(image, 0, -1)
    image = np.clip(np.asarray(image, float), 0, 1)
    return image[..., :3] if image.shape[-1] >= 3 else image[..., 0]


def _grid(path: Path, cells: list[Cell], names: Sequence[str], shots: int, queries: int, title: str) -> Path:
    """Rows of images under the headings "support" and "queries", the class names on the left."""
    rows = min(len(names), MOST_WAYS)
    labels = [f"{_legible(name)}  {number}" for number, name in enumerate(names[:rows], 1)]
    name_in = LETTER_IN * max(len(label) for label in labels) + 2 * MARGIN_IN
    head_in = LINE_IN * (title.count("\n") + 2) + 2 * MARGIN_IN
    widest_line = LETTER_IN * max(len(line) for line in title.split("\n")) + 2 * MARGIN_IN
    width = max(name_in + CELL_IN * (shots + 0.4 + queries) + MARGIN_IN, widest_line)
    figure, (axes,) = _figure(width, head_in + CELL_IN * rows + MARGIN_IN, rows=1, tight=False)
    # One pair of axes in units of a cell, so that hundreds of images cost no hundreds of axes.
    axes.set_position((0, 0, 1, 1))
    axes.set_xlim(-name_in / CELL_IN, (width - name_in) / CELL_IN)
    axes.set_ylim(rows + MARGIN_IN / CELL_IN, -head_in / CELL_IN)
    axes.axis("off")
    text = {"fontsize": 9, "parse_math": False}
    axes.text((MARGIN_IN - name_in) / CELL_IN, (MARGIN_IN - head_in) / CELL_IN, title, va="top", **text)
    for start, heading in ((0.0, "support"), (shots + 0.4, "queries")):
        axes.text(start + 0.04, -0.05, heading, va="bottom", color=GREY, **text)
    for row, label in enumerate(labels):
        axes.text(-MARGIN_IN / CELL_IN, row + 0.5, label, ha="right", va="center", **text)
    for cell in cells:
        _place(axes, cell)
    return _save(figure, path)


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
    axes.text(cell.column + 0.5, cell.row + 0.99, cell.note, ha="center", va="bottom", fontsize=8, color=ORANGE)


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def _spelled(name: str) -> str:
    """The name as far as the font has its letters, others by their code point."""
    return "".join(c if ord(c) in _characters() else f"\\u{ord(c):04x}" for c in name)


def _legible(name: str) -> str:
    """The name as it can be spelled; its end where it is long."""
    name = _spelled(name)
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def _figure(width: float, height: float, *, rows: int, tight: bool = True) -> tuple[Figure, Sequence[Axes]]:
    """A figure of its own, in inches; without pyplot, so that no window system and no other thread is touched."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained" if tight else None)
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, panels


def _save(figure: Figure, path: Path) -> Path:
    """Write the PNG and replace `path` in one move: a sender may be reading it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)
    return path
