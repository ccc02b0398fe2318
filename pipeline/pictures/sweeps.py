"""What a sweep found: scores by trial, points as lines over the dimensions, importance, and a front of two objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import LogLocator, MaxNLocator

from pipeline.pictures.canvas import BLUE, GREEN, GREY, LETTER_IN, LINE_IN, ORANGE, legible, new_figure, save, spelled

MARKS = {
    "finished": ("o", BLUE),
    "stopped": ("v", GREEN),
    "interrupted": ("s", GREY),
    "running": ("D", GREY),
    "waiting": (".", GREY),
    "failed": ("x", ORANGE),
}
"""How a trial's score is marked, by its state: told apart without colours too."""
MOST_BARS = 30
AXIS_IN, LONGEST_TICK = 1.5, 14
ABSENT = -0.13
"""Where lines pass an axis that a trial has not, below its lower end at 0."""
NEAR = 0.06
"""How near to an end of an axis no other value is written."""
SPREAD = 0.035
"""How far lines that share an option lie apart from it."""
# The palest end of the map is hard to see on white: the best are dark, the worst still yellow enough to be told from grey.
BETTER_IS_DARK = LinearSegmentedColormap.from_list("better_is_dark", colormaps["cividis_r"](np.linspace(0.12, 1, 256)))


class Trial(NamedTuple):
    """A trial: its number, what became of it (as in MARKS), its score if it has one, and its value for every dimension that
    exists there; of an axis with options the option as text."""

    number: int
    state: str
    score: float | None
    point: Mapping[str, float | str]


class Axis(NamedTuple):
    """A dimension: from `low` to `high`, perhaps by its logarithm, or one of the `options`, which are evenly spaced."""

    name: str
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    options: tuple[str, ...] = ()

    def at(self, value: float | str) -> float:
        """Where a value lies, from 0 at the lower end to 1."""
        if self.options:
            return (self.options.index(str(value)) + 0.5) / len(self.options)
        low, high, here = (math.log(v) if self.is_log else v for v in (self.low, self.high, float(value)))
        return (here - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Where which values are written."""
        if self.options:
            return [(self.at(option), _short(option)) for option in self.options]
        locator = LogLocator(10, numticks=6) if self.is_log else MaxNLocator(4)
        ends = (self.low, self.high) if self.low < self.high else (self.low,)
        inside = [float(v) for v in locator.tick_values(self.low, self.high) if self.low <= v <= self.high]
        # Between the ends what is not so near to one of them that their letters would meet.
        between = [v for v in inside if all(abs(self.at(v) - self.at(end)) > NEAR for end in ends)]
        return [(self.at(value), f"{value:.4g}") for value in sorted({*ends, *between})]


class Outcome(NamedTuple):
    """A trial by two objectives, and whether no other trial is as good in both and better in one."""

    number: int
    x: float
    y: float
    is_best: bool


def history_picture(path: Path, trials: Sequence[Trial], *, mode: str, metric: str) -> Path:
    """The score of every trial by number, marked by what became of it, and the best so far as a line.

    `mode` is "max" or "min". Trials without a score are marked on the lower edge.
    """
    figure, (axes,) = new_figure(6.8, 4.2, rows=1)
    scored = [(trial.number, trial.score) for trial in trials if trial.score is not None and trial.state != "failed"]
    if scored:
        numbers, scores = zip(*sorted(scored), strict=True)
        best = (np.maximum if mode == "max" else np.minimum).accumulate(np.asarray(scores, float))
        until = [*numbers, max(trial.number for trial in trials)]
        axes.step(until, [*best, best[-1]], where="post", color=BLUE, linewidth=1.4, alpha=0.6, label="best so far")
    size = 6 if len(trials) <= 60 else 3.5
    for state in dict.fromkeys((*MARKS, *(trial.state for trial in trials))):
        mark, colour = MARKS.get(state, MARKS["waiting"])
        own = [trial for trial in trials if trial.state == state]
        some = [(trial.number, trial.score) for trial in own if trial.score is not None]
        none = [trial.number for trial in own if trial.score is None]
        look = {"linestyle": "", "marker": mark, "color": colour, "markersize": size, "markerfacecolor": colour}
        if some:
            axes.plot(*zip(*some, strict=True), **look, label=f"{state} ({len(some)})")
        if none:
            hollow = {**look, "markerfacecolor": "none", "transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot(none, [0.0] * len(none), **hollow, label=f"{state}, no score ({len(none)})")
    if not scored:
        axes.text(0.5, 0.5, "no trial has a score that counts", transform=axes.transAxes, ha="center", color=GREY)
    if all(trial.score is None for trial in trials):
        axes.set_yticks([])
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{spelled(metric)}, {'more' if mode == 'max' else 'less'} is better")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)
    figure.legend(frameon=False, fontsize=9, loc="outside upper left", ncols=3)
    return save(figure, path)


def parallel_picture(path: Path, trials: Sequence[Trial], axes: Sequence[Axis], *, mode: str, metric: str) -> Path:
    """A line for every trial over the dimensions and its score, the darker the better; grey and dashed without a score.

    Where a trial has no such dimension, its line is dotted and passes below the axis.
    """
    scores = [trial.score for trial in trials if trial.score is not None]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    last = Axis(metric, low, high)
    figure, (panel,) = new_figure(AXIS_IN * (len(axes) + 1) + 1.2, 4.6, rows=1)
    sign = 1 if mode == "max" else -1
    norm, colours = Normalize(low, high), BETTER_IS_DARK if mode == "max" else BETTER_IS_DARK.reversed()
    # The best are drawn last, above all others; those without a score first.
    order = sorted(trials, key=lambda trial: -math.inf if trial.score is None else sign * trial.score)
    shift = {trial.number: SPREAD * (2 * n / max(1, len(trials) - 1) - 1) for n, trial in enumerate(trials)}
    for place, trial in enumerate(order):
        is_best = place == len(order) - 1 and trial.score is not None
        colour = GREY if trial.score is None else BLUE if low == high else colours(norm(trial.score))
        width = 2.6 if is_best else 1.3 if len(trials) <= 60 else 0.7
        alpha = 1.0 if is_best or len(trials) <= 60 else 0.6
        _line(panel, trial, axes, last, shift[trial.number], colour=colour, width=width, alpha=alpha)
    is_lane = any(axis.name not in trial.point for trial in trials for axis in axes)
    _frame(panel, [*axes, last] if scores else axes, is_lane=is_lane)
    said = ["dark: better", "wide: the best"] if low < high and scores else []
    if said:
        figure.colorbar(ScalarMappable(norm, colours), ax=panel, label=metric, shrink=0.8, pad=0.02)
    said += ["dotted: the trial has no such dimension"] if is_lane else []
    said += ["grey, dashed: no score"] if len(scores) < len(trials) else []
    panel.set_xlabel("; ".join(said), fontsize=9)
    return save(figure, path)


def _line(
    panel: Axes, trial: Trial, axes: Sequence[Axis], last: Axis, shift: float, *, colour, width: float, alpha: float
) -> None:
    """A trial's line: drawn through between axes that it has, dotted to and from those that it has not."""
    heights = [
        (axis.at(trial.point[axis.name]) + (shift if axis.options else 0.0), True)
        if axis.name in trial.point
        else (ABSENT, False)
        for axis in axes
    ]
    if trial.score is not None:
        heights.append((last.at(trial.score), True))
    look = {"color": colour, "linewidth": width, "alpha": alpha}
    for place, ((left, is_left), (right, is_right)) in enumerate(zip(heights, heights[1:], strict=False)):
        style = ":" if not (is_left and is_right) else "--" if trial.score is None else "-"
        panel.plot([place, place + 1], [left, right], **look, linestyle=style)
    there = [(place, height) for place, (height, is_there) in enumerate(heights) if is_there]
    panel.plot(*zip(*there, strict=True), color=colour, alpha=alpha, linestyle="", marker="o", markersize=width + 1.5)


def _frame(panel: Axes, axes: Sequence[Axis], *, is_lane: bool) -> None:
    """The axes themselves, with their names above and values beside them."""
    for place, axis in enumerate(axes):
        panel.plot([place, place], [0, 1], color="black", linewidth=1.0, zorder=1)
        for height, text in axis.ticks():
            panel.plot([place - 0.02, place], [height, height], color="black", linewidth=0.8, zorder=1)
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
            look = {"ha": "right", "va": "center", "fontsize": 7.5, "bbox": box, "parse_math": False, "zorder": 5}
            panel.text(place - 0.04, height, text, **look)
    names = ["\n".join(legible(part) for part in _parts(axis.name)) for axis in axes]
    panel.set_xticks(range(len(axes)), names, fontsize=8.5, parse_math=False)
    panel.xaxis.tick_top()
    panel.xaxis.set_label_position("bottom")
    panel.tick_params(axis="x", length=0)
    panel.set_yticks([ABSENT] if is_lane else [], ["not there"] if is_lane else [], fontsize=7.5)
    panel.tick_params(axis="y", length=0)
    panel.spines[:].set_visible(False)
    panel.grid(visible=False)
    panel.set_xlim(-0.45, len(axes) - 0.9)
    panel.set_ylim(ABSENT - 0.05 if is_lane else -0.05, 1.05)


def importance_picture(path: Path, shares: Mapping[str, float], *, title: str) -> Path:
    """A bar for every dimension by its importance (0…1), the highest first; of more than MOST_BARS those that matter most."""
    order = sorted(shares, key=lambda name: (-shares[name], name))
    if len(order) > MOST_BARS:
        title += f"\nof {len(order)} dimensions the {MOST_BARS} that matter most"
        order = order[:MOST_BARS]
    labels = [legible(name) for name in order]
    width, height = 4.6 + LETTER_IN * max(map(len, labels)), 0.28 * len(order) + LINE_IN * (title.count("\n") + 1) + 1.0
    figure, (axes,) = new_figure(width, height, rows=1)
    values = [100 * shares[name] for name in order]
    axes.barh(range(len(order)), values, height=0.7, color=BLUE, alpha=0.75)
    for row, value in enumerate(values):
        axes.text(1.01, row, f"{value:.1f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_yticks(range(len(order)), labels, fontsize=8, parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel("importance (% of all dimensions together)")
    axes.set_title(title, fontsize=10, loc="left")
    return save(figure, path)


def front_picture(path: Path, outcomes: Sequence[Outcome], *, x: str, y: str) -> Path:
    """Trials by two objectives, which `x` and `y` name; those of the front are filled, joined and numbered."""
    figure, (axes,) = new_figure(6.4, 4.4, rows=1)
    front = sorted((o for o in outcomes if o.is_best), key=lambda o: (o.x, o.y))
    others = [(o.x, o.y) for o in outcomes if not o.is_best]
    if others:
        look = {"linestyle": "", "marker": "o", "markersize": 5, "color": GREY, "markerfacecolor": "none"}
        axes.plot(*zip(*others, strict=True), **look, label="another trial is better")
    if front:
        xs, ys = [o.x for o in front], [o.y for o in front]
        axes.plot(
            xs, ys, color=BLUE, marker="o", markersize=6, linewidth=1.4, drawstyle="steps-post", label="the front"
        )
        for outcome in front[:: max(1, len(front) // 15)]:
            look = {"xytext": (5, -9), "textcoords": "offset points", "fontsize": 8}
            axes.annotate(str(outcome.number), (outcome.x, outcome.y), **look)
    every = [o.x for o in outcomes]
    if every and min(every) > 0 and max(every) > 30 * min(every):
        axes.set_xscale("log")
    axes.margins(0.08)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    figure.legend(frameon=False, fontsize=9, loc="outside upper left", ncols=2)
    return save(figure, path)


def _short(text: str) -> str:
    text = spelled(text)
    return text if len(text) <= LONGEST_TICK else text[: LONGEST_TICK - 1] + "…"


def _parts(name: str) -> list[str]:
    """A key in lines: its last part by itself, as names of neighbours are long and begin alike."""
    head, dot, tail = name.rpartition(".")
    return [f"{head}.", tail] if dot else [tail]
