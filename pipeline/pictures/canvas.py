"""What all pictures share: colours, letters, a figure, a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

# Okabe and Ito's colours, which those who see no red and green can tell apart too.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"
MARGIN_IN, LETTER_IN, LINE_IN = 0.12, 0.083, 0.17
LONGEST_NAME = 34


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def spelled(name: str) -> str:
    """The name as far as the font has its letters, others by their code point."""
    return "".join(c if ord(c) in _characters() else f"\\u{ord(c):04x}" for c in name)


def legible(name: str) -> str:
    """The name as it can be spelled; its end where it is long."""
    name = spelled(name)
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def new_figure(width: float, height: float, *, rows: int, tight: bool = True) -> tuple[Figure, Sequence[Axes]]:
    """A figure of its own, in inches; without pyplot, so that no window system and no other thread is touched."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained" if tight else None)
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, panels


def save(figure: Figure, path: Path) -> Path:
    """Write the PNG and replace `path` in one move: a sender may be reading it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)
    return path
