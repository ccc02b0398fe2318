"""What differs from class to class: bars with intervals, and which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.pictures.canvas import BLUE, GREY, LETTER_IN, LINE_IN, legible, new_figure, save

MOST_BARS, MOST_CONFUSED = 40, 24
ROW_IN = 0.2


class Bar(NamedTuple):
    """A class, its figure (0…1), half its 95 % interval (none where that is not known) and in how many episodes it was."""

    name: str
    value: float
    interval: float | None
    episodes: int


def classes_picture(path: Path, bars: Sequence[Bar], mean: float, *, metric: str, title: str) -> Path:
    """A bar for every class, the best first, with its interval, and the mean over all classes as a line.

    Of more than MOST_BARS classes only the best and the worst are drawn, as many of both, and the title says so.
    """
    order = sorted(bars, key=lambda bar: (-bar.value, bar.name))
    if len(order) > MOST_BARS:
        title += f"\nof {len(order)} classes the {MOST_BARS // 2} best and the {MOST_BARS // 2} worst"
        order = [*order[: MOST_BARS // 2], *order[-(MOST_BARS // 2) :]]
    labels = [f"{legible(bar.name)}  ({bar.episodes})" for bar in order]
    width = 5.6 + LETTER_IN * max(map(len, labels))
    figure, (axes,) = new_figure(width, ROW_IN * len(order) + LINE_IN * (title.count("\n") + 1) + 1.0, rows=1)
    rows = range(len(order))
    values = [100 * bar.value for bar in order]
    axes.barh(rows, values, height=0.72, color=BLUE, alpha=0.75)
    known = [row for row in rows if order[row].interval is not None]
    spreads = [100 * (order[row].interval or 0) for row in known]
    whiskers = axes.errorbar(
        [values[row] for row in known], known, xerr=spreads, fmt="none", ecolor="black", elinewidth=1, capsize=2
    )
    line = axes.axvline(100 * mean, color=GREY, linestyle="--", linewidth=1.2)
    for row in rows:
        axes.text(1.01, row, f"{values[row]:.1f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_yticks(rows, labels, fontsize=8, parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{metric} (%); behind a class: how many episodes are about it")
    axes.set_title(title, fontsize=10, loc="left")
    handles = {f"mean of all classes, {100 * mean:.1f} %": line, "95 % interval": whiskers}
    figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=9, loc="outside lower right", ncols=2)
    return save(figure, path)


def confusion_picture(path: Path, names: Sequence[str], shares: np.ndarray, *, title: str) -> Path:
    """How often a query of the class of a row was taken for that of a column (classes, classes), in episodes with both: shares,
    nan for two that never met.

    Of more than MOST_CONFUSED classes those are drawn that are least often right, and the title says so.
    """
    order = list(range(len(names)))
    if len(names) > MOST_CONFUSED:
        order = sorted(np.argsort(np.diag(shares), kind="stable")[:MOST_CONFUSED].tolist())
        title += f"\nof {len(names)} classes the {MOST_CONFUSED} that are least often right"
    labels = [legible(names[number]) for number in order]
    shown = np.ma.masked_invalid(100 * shares[np.ix_(order, order)])
    longest = LETTER_IN * max(map(len, labels))
    side = max(2.4, 0.3 * len(order))
    figure, (axes,) = new_figure(side + longest + 1.6, side + longest + 0.6 + LINE_IN * title.count("\n"), rows=1)
    image = axes.imshow(shown, cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
    axes.set_facecolor("#dddddd")
    for row, column in zip(*np.nonzero(~np.ma.getmaskarray(shown)), strict=True):
        share = float(shown[row, column])
        look = {"color": "black" if share > 55 else "white", "fontsize": 6, "ha": "center", "va": "center"}
        axes.text(column, row, f"{share:.0f}", **look)
    ticks = range(len(order))
    axes.set_xticks(ticks, labels, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(ticks, labels, fontsize=8, parse_math=False)
    axes.grid(visible=False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    axes.set_title(title, fontsize=10, loc="left")
    figure.colorbar(image, ax=axes, label="share of the queries (%); grey: never together", shrink=0.8)
    return save(figure, path)
