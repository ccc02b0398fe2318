"""Which candidate to take for a task: regressors from what a support set is like to what each candidate reaches on the task.

tasks: rows of a table; features: numbers about a support set; candidates: columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.adaptation import Held, Settings
from pipeline.candidates import Candidate, Outcome

FOLDS = 5
"""Of the cross-validation by which a kind of chooser is taken."""
KINDS = ("constant", "linear", "trees")
"""Ever more free; the first is always the best on average."""


class Task(NamedTuple):
    """A row: the data set it comes from, meta-features of its support, and what every candidate did on it."""

    data: str
    features: Mapping[str, float]
    outcomes: Sequence[Outcome]

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        rows = [[*own.held, own.settings and list(own.settings), own.accuracy] for own in self.outcomes]
        return {"data": self.data, "features": dict(self.features), "outcomes": rows}


def task_of(told: Mapping[str, Any]) -> Task:
    """A row from its JSON values."""
    rows = [
        Outcome(Held(accuracy, loss), None if settings is None else Settings(*settings), reached)
        for accuracy, loss, settings, reached in told["outcomes"]
    ]
    return Task(told["data"], told["features"], rows)


def described(features: Mapping[str, float], held: Sequence[Held]) -> list[float]:
    """What a chooser looks at: meta-features, and how well each candidate told samples that were left out of the support."""
    return [*features.values(), *(value for own in held for value in (own.accuracy, own.loss))]


def inputs_of(tasks: Sequence[Task]) -> np.ndarray:
    """(tasks, features)."""
    return np.array([described(task.features, [own.held for own in task.outcomes]) for task in tasks])


def accuracies_of(tasks: Sequence[Task]) -> np.ndarray:
    """(tasks, candidates)."""
    return np.array([[own.accuracy for own in task.outcomes] for task in tasks])


def _regressor(kind: str) -> Any:
    """A regressor of scikit-learn, whose targets are one number or several."""
    # scikit-learn takes a second to import, which other verbs need not pay.
    match kind:
        case "constant":
            from sklearn.dummy import DummyRegressor

            return DummyRegressor()
        case "linear":
            from sklearn.linear_model import RidgeCV
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler

            return make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 4, 9)))
        case "trees":
            from sklearn.ensemble import ExtraTreesRegressor

            return ExtraTreesRegressor(100, min_samples_leaf=5, random_state=0)
        case _:
            raise AssertionError(kind)


class Fitted:
    """Expected accuracies of all candidates: the mean over candidates and each one's difference from it are told by regressors of
    their own, since how hard a task is says nothing of who solves it best."""

    def __init__(self, kind: str, inputs: np.ndarray, accuracies: np.ndarray):
        level = accuracies.mean(1, keepdims=True)
        self._level, self._apart = _regressor(kind), _regressor(kind)
        self._level.fit(inputs, level.ravel())
        self._apart.fit(inputs, accuracies - level)

    def expected(self, inputs: np.ndarray) -> np.ndarray:
        """(tasks, features) -> (tasks, candidates)."""
        found = self._level.predict(inputs).reshape(-1, 1) + self._apart.predict(inputs).reshape(len(inputs), -1)
        return found.clip(0, 1)


class Chooser(NamedTuple):
    """A fitted chooser: its kind, what each kind reached in cross-validation, and which candidate is best on average."""

    candidates: Sequence[Candidate]
    kind: str
    reached: Mapping[str, float]
    best: int
    fitted: Fitted

    def expected(self, inputs: np.ndarray) -> np.ndarray:
        """(tasks, features) -> accuracy of every candidate (tasks, candidates)."""
        return self.fitted.expected(inputs)

    def choice(self, inputs: np.ndarray) -> np.ndarray:
        """The candidate to take for every task (tasks,)."""
        return self.expected(inputs).argmax(1)


def fit(candidates: Sequence[Candidate], tasks: Sequence[Task]) -> Chooser:
    """The chooser of the kind that does best in cross-validation; where none gains anything, always the best on average."""
    inputs, accuracies = inputs_of(tasks), accuracies_of(tasks)
    reached = {kind: _cross_validated(kind, inputs, accuracies) for kind in KINDS}
    kind = max(KINDS, key=lambda kind: reached[kind])
    fitted = Fitted(kind, inputs, accuracies)
    return Chooser(candidates, kind, reached, int(accuracies.mean(0).argmax()), fitted)


def _cross_validated(kind: str, inputs: np.ndarray, accuracies: np.ndarray) -> float:
    """Mean accuracy of what is chosen for tasks that were not fitted; a fold is a stretch of them, with all data sets."""
    folds, chosen = np.arange(len(inputs)) * FOLDS // len(inputs), []
    for number in range(FOLDS):
        own = folds == number
        picks = Fitted(kind, inputs[~own], accuracies[~own]).expected(inputs[own]).argmax(1)
        chosen += accuracies[own][np.arange(own.sum()), picks].tolist()
    return math.fsum(chosen) / len(chosen)


def by_held_out(tasks: Sequence[Task], best: int) -> np.ndarray:
    """The candidate with the most hits on samples left out (tasks,), fitted to nothing; `best` where it is among them."""
    hits = np.array([[own.held.accuracy for own in task.outcomes] for task in tasks])
    hits[:, best] += 1e-9
    return hits.argmax(1)
