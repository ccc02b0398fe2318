"""How much each dimension of a sweep matters for the score, by random forests on trials that they have not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LEAST = 4
"""Trials with a score, below which nothing is said."""
DOUBTFUL = 0.5
"""Explained less than this, chance may look like a cause, as it did in 17 of 90 sweeps of 8 to 20 trials whose scores were noise;
2 of them came above (docs/decisions.md)."""
FOLDS, TREES, SEED = 5, 100, 0
ABSENT = object()
"""The value of a dimension that a trial has not; None may be an option."""
MOST_DONORS = 50
"""Of the trials whose value is put in place of another's; spread evenly over all of them."""

Point = Mapping[str, Any]


class Importance(NamedTuple):
    """What each dimension contributes, the shares summing to 1 (all 0 where none is known to contribute); empty with a `reason`.

    `explained` is the share of the variance of scores that forests foretell of trials they have not seen, at least 0.
    """

    shares: dict[str, float]
    explained: float
    trials: int
    reason: str = ""


def importance(
    points: Sequence[Point], scores: Sequence[float], *, logarithmic: frozenset[str] = frozenset()
) -> Importance:
    """The importance of every dimension that a point has, from the finite score of each point.

    A forest learns from four fifths of the trials, and on the others a dimension's value is exchanged for those of all trials
    that have the dimension: how much the squared error grows by it, over all fifths, is its importance (permutation importance,
    Breiman 2001, section 10; held out, so that what a forest learned by heart does not count). For a sum of functions of one
    dimension each, shares are shares of the variance. A conditional dimension counts where it exists; whether it exists is the
    matter of the choice it hangs on.
    `logarithmic` names dimensions, positive numbers, that are searched by their logarithm. The same trials give the same shares.
    """
    kept = [(point, score) for point, score in zip(points, scores, strict=True) if math.isfinite(score)]
    names = sorted({name for point, _ in kept for name in point})
    values = np.array([score for _, score in kept], float)
    if len(kept) < LEAST:
        return Importance({}, 0.0, len(kept), f"this takes {LEAST} trials with a score; so many there are: {len(kept)}")
    none = dict.fromkeys(names, 0.0)
    if np.ptp(values) == 0:
        return Importance(none, 0.0, len(kept), "all scores are equal")
    columns = {name: _encoded([point.get(name, ABSENT) for point, _ in kept], name in logarithmic) for name in names}
    there = {name: np.array([name in point for point, _ in kept]) for name in names}
    error, growth = _held_out(columns, there, (values - values.mean()) / values.std())
    shares = {name: max(0.0, grown) for name, grown in growth.items()}
    total, explained = sum(shares.values()), max(0.0, 1 - error)
    if total == 0 or explained == 0:
        return Importance(none, 0.0, len(kept), f"{len(kept)} trials do not foretell the score of another one")
    return Importance({name: share / total for name, share in shares.items()}, explained, len(kept))


def _encoded(values: Sequence[Any], is_log: bool) -> np.ndarray:
    """(trials, columns) of a dimension: a number as it is or its logarithm, what else there is as one column for each option.

    A trial without the dimension has the median of the others, which tells nothing of whether it has it.
    """
    some = [value for value in values if value is not ABSENT]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in some):
        numbers = np.array([math.nan if v is ABSENT else math.log(v) if is_log else v for v in values], float)
        return np.where(np.isnan(numbers), np.nanmedian(numbers), numbers)[:, None]
    texts = [str(value) for value in some]
    usual = max(sorted(set(texts)), key=texts.count)
    options = sorted(set(texts))
    return np.array([[float((usual if v is ABSENT else str(v)) == option) for option in options] for v in values])


def _held_out(
    columns: Mapping[str, np.ndarray], there: Mapping[str, np.ndarray], scores: np.ndarray
) -> tuple[float, dict[str, float]]:
    """The mean squared error on trials that were held out, and by dimension how much it grows; scores have mean 0, variance 1."""
    # A second, of which only those who ask for importance should know.
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    inputs = np.hstack(list(columns.values()))
    ends = np.cumsum([own.shape[1] for own in columns.values()])
    places = {name: slice(end - columns[name].shape[1], end) for name, end in zip(columns, ends, strict=True)}
    error, growth = 0.0, dict.fromkeys(columns, 0.0)
    folds = KFold(min(FOLDS, len(scores)), shuffle=True, random_state=SEED)
    for seen, unseen in folds.split(inputs):
        forest = RandomForestRegressor(TREES, random_state=SEED).fit(inputs[seen], scores[seen])
        wrong = (forest.predict(inputs[unseen]) - scores[unseen]) ** 2
        error += float(wrong.sum()) / len(scores)
        for name, place in places.items():
            rows, donors = unseen[there[name][unseen]], np.flatnonzero(there[name])
            donors = donors[np.linspace(0, len(donors) - 1, min(len(donors), MOST_DONORS)).round().astype(int)]
            if not len(rows):
                continue
            exchanged = np.repeat(inputs[rows], len(donors), axis=0)
            exchanged[:, place] = np.tile(inputs[donors, place], (len(rows), 1))
            after = (forest.predict(exchanged) - np.repeat(scores[rows], len(donors))) ** 2
            growth[name] += float(after.mean() * len(rows) - wrong[there[name][unseen]].sum()) / len(scores)
    return error, growth
