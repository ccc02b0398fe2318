"""Differences between runs on the same episodes, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from matplotlib.axes import Axes

from pipeline.pictures.canvas import BLUE, GREY, LETTER_IN, LINE_IN, ORANGE, new_figure, save, spelled

LONGEST_LINE = 44


def difference_picture(
    path: Path, names: Sequence[str], panels: Mapping[str, Sequence[tuple[float, float]]], *, metric: str
) -> Path:
    """Differences (0…1) from the first of `names` with the half widths of their 95 % intervals, a row each, a panel by title.

    An interval without zero has another colour, a heavier line and a filled dot.
    """
    labels = ["\n".join(wrap(spelled(name), LONGEST_LINE)) for name in names]
    lines = sum(label.count("\n") + 2 for label in labels)
    longest = max(len(line) for label in labels for line in label.split("\n"))
    height = len(panels) * (LINE_IN * (lines + 3) + 0.2) + 0.6
    figure, rows = new_figure(5.2 + LETTER_IN * longest, height, rows=len(panels))
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
    return save(figure, path)


def _difference(axes: Axes, row: int, mean: float, spread: float) -> None:
    """A row: dot and interval, the figures at the right edge; the first row is what the others are compared with."""
    without_zero = abs(mean) > spread
    colour, width, fill = (ORANGE, 2.2, ORANGE) if without_zero else (BLUE, 1.4, "white")
    look = {"color": colour, "linewidth": width, "markerfacecolor": fill}
    axes.errorbar([mean], [row], xerr=[spread], marker="o", markersize=5, capsize=4, **look)
    text = f"{mean:+.2f} ± {spread:.2f}".replace("-", "−") if row else "reference"
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=colour)
