"""Curves: a loss, a metric by steps, what is found against what is wrongly found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pipeline.pictures.canvas import BLUE, GREEN, GREY, ORANGE, new_figure, save

Points = Sequence[float] | np.ndarray
LOOKS = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."))
"""Of curves that share a picture: told apart without colours too."""


class Line(NamedTuple):
    """A curve of precision over recall, points in 0…1, and what it is called."""

    name: str
    recall: Points
    precision: Points


def adaptation_curve(
    path: Path, steps: Sequence[int], values: Sequence[float], intervals: Sequence[float], floor: float, *, metric: str
) -> Path:
    """A metric (0…1) against inner steps with its 95 % intervals, over the untrained floor."""
    figure, (axes,) = new_figure(6.4, 4.0, rows=1)
    _scores(axes, steps, values, intervals, label="after adapting", metric=metric)
    axes.axhline(100 * floor, color=GREY, linestyle="--", linewidth=1.2, label=f"untrained, {100 * floor:.1f} %")
    axes.set_xlabel("inner steps")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    return save(figure, path)


def roc_picture(path: Path, curve: tuple[Points, Points], *, title: str) -> Path:
    """A receiver operating characteristic: false and true acceptance rates (0…1), the former on a logarithmic scale.

    The dashed line has as many false acceptances as false rejections.
    """
    far, tar = (np.asarray(side, float) for side in curve)
    figure, (axes,) = new_figure(6.4, 4.4, rows=1)
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
    return save(figure, path)


def precision_recall_picture(path: Path, lines: Sequence[Line], *, title: str, floor: float | None = None) -> Path:
    """Up to three curves of precision over recall; the grey line is the precision, if given, of taking everything."""
    figure, (axes,) = new_figure(6.4, 4.4, rows=1)
    if floor is not None:
        axes.axhline(
            100 * floor, color=GREY, linestyle=":", linewidth=1.2, label=f"everything taken, {100 * floor:.1f} %"
        )
    for (name, recall, precision), (colour, style) in zip(lines, LOOKS, strict=False):
        axes.plot(
            *(100 * np.asarray(side, float) for side in (recall, precision)),
            color=colour,
            linestyle=style,
            linewidth=1.8,
            label=name,
        )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 101)
    axes.set_xlabel("recall: what is found of what is there (%)")
    axes.set_ylabel("precision: what is right of what is found (%)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9, loc="best")
    return save(figure, path)


def scores_picture(
    path: Path, edges: Points, genuine: Points, impostor: Points, threshold: float, *, title: str
) -> Path:
    """Shares (0…1) of the genuine trials and of the impostors whose scores lie between edges, and a threshold between both."""
    figure, (axes,) = new_figure(6.4, 4.0, rows=1)
    looks = (
        (impostor, "impostors: scores for other classes", ORANGE, "--"),
        (genuine, "genuine: scores for the own class", BLUE, "-"),
    )
    for side, name, colour, style in looks:
        shares = 100 * np.asarray(side, float)
        axes.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.6, label=name)
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.2)
    axes.axvline(threshold, color=GREY, linestyle=":", linewidth=1.4, label=f"as many of both wrong: {threshold:.3g}")
    axes.set_xlabel("score")
    axes.set_ylabel("share of the trials of their kind (%)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9, loc="best")
    return save(figure, path)


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
    figure, panels = new_figure(6.4, 5.6 if len(at) else 3.6, rows=2 if len(at) else 1)
    losses = np.asarray(train_loss, float)
    losses = np.where(np.isfinite(losses), losses, np.nan)
    panels[0].plot(steps, losses, color=BLUE, alpha=0.3, linewidth=0.8, label="each meta-step")
    if (width := max(1, len(losses) // 40)) > 1:
        panels[0].plot(steps, running_median(losses, width), color=BLUE, linewidth=1.8, label=f"median of {width}")
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
    return save(figure, path)


def _scores(
    axes: Axes, steps: Sequence[int], values: Sequence[float], intervals: Sequence[float], *, label: str, metric: str
) -> None:
    percent, spread = 100 * np.asarray(values, float), 100 * np.asarray(intervals, float)
    axes.errorbar(
        steps, percent, yerr=spread, color=ORANGE, marker="o", markersize=4, capsize=3, label=f"{label} ± 95 % interval"
    )
    axes.set_ylabel(f"{metric} (%)")


def running_median(values: np.ndarray, width: int) -> np.ndarray:
    """The median of the finite values among the `width` around each; nan where there is none."""
    padded = np.pad(values, (width // 2, width - 1 - width // 2), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    some = np.isfinite(windows).any(1)
    medians = np.full(len(values), np.nan)
    medians[some] = np.nanmedian(windows[some], axis=1)
    return medians
