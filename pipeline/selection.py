"""Which samples of an unlabelled pool to label, by their features alone: k-centre, herding, typicality, or chance.

pool: samples that may be chosen; dim: features. A choice is a list of different rows of the pool, the most wanted first, and a
pure function of (features, budget, seed); who wants it not to depend on where samples lie orders the rows by what is in them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

import numpy as np

from pipeline.errors import InputError
from pipeline.noise import Noise, Purpose

STARTS = 10
"""How often k-means begins anew; the clustering with the least spread is taken."""
ROUNDS = 100
"""Of one k-means at most: it has settled long before, or moves a sample or two."""
NEIGHBOURS = 20
"""Of a sample in its cluster, to which its distance counts (TypiClust, section 3.2)."""
LEAST_CLUSTER = 5
"""Clusters of fewer samples come last: they are outliers (TypiClust's published code). Where half of their mean size is less,
that counts instead: in a small pool all clusters are small."""
MOST_CLUSTERS = 500
"""A larger budget takes several samples of a cluster (TypiClust, section 3.2)."""


class Strategy(StrEnum):
    """How the samples to be labelled are chosen."""

    K_CENTRE = "k_centre"
    HERDING = "herding"
    TYPICALITY = "typicality"
    RANDOM = "random"


GREEDY = (Strategy.K_CENTRE, Strategy.HERDING, Strategy.RANDOM)
"""Of these a smaller budget's choice is the beginning of a larger one's."""


def choose(features: np.ndarray, budget: int, strategy: Strategy, *, seed: int) -> list[int]:
    """The `budget` rows of features (pool, dim) to be labelled.

    Raises:
        InputError: the budget is not between 1 and the size of the pool, or a feature is not finite.
    """
    check_budget(budget, len(features))
    points = features.astype(np.float64)
    if not np.isfinite(points).all():
        raise InputError("features are not finite, so that no sample is nearer than another; look at the encoder")
    noise = Noise(seed, Purpose.CHOICE)
    match strategy:
        case Strategy.K_CENTRE:
            return k_centre(points, budget, noise)
        case Strategy.HERDING:
            return herding(points, budget)
        case Strategy.TYPICALITY:
            return typical(points, budget, noise)
        case Strategy.RANDOM:
            return noise.shuffled(list(range(len(points))))[:budget]
        case _ as never:
            assert_never(never)


def check_budget(budget: int, pool: int) -> None:
    """Raise `InputError` for a budget that a pool of so many samples does not allow."""
    if not 1 <= budget <= pool:
        raise InputError(f"--budget {budget}: there are {pool} samples to choose from; give 1 to {pool}")


def k_centre(points: np.ndarray, budget: int, noise: Noise) -> list[int]:
    """Each time the sample farthest from all chosen ones; the first is drawn (Gonzalez 1985; Sener, Savarese 2018, algorithm 1).

    No sample of the pool is farther from a chosen one than twice what the best choice of as many could reach.
    """
    chosen = [noise.below(len(points))]
    nearest = squared_distances(points, points[chosen])[:, 0]
    while len(chosen) < budget:
        # Where all that is left lies on a chosen sample, it is still another one.
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, squared_distances(points, points[chosen[-1:]])[:, 0])
    return chosen


def herding(points: np.ndarray, budget: int) -> list[int]:
    """Each time the sample that brings the mean of the chosen ones nearest to that of the pool; nothing is drawn.

    Rebuffi et al. 2017 ("iCaRL"), algorithm 4; for features of length one it is Welling's herding (2009), which adds the sample
    along which the pool's mean has been served the least.
    """
    mean, total = points.mean(0), np.zeros(points.shape[1])
    lengths = np.einsum("nd,nd->n", points, points)
    chosen: list[int] = []
    while len(chosen) < budget:
        # ‖mean − (total + x) / n‖² n², without what is the same for all x.
        gap = lengths - 2 * points @ ((len(chosen) + 1) * mean - total)
        gap[chosen] = np.inf
        chosen.append(int(gap.argmin()))
        total += points[chosen[-1]]
    return chosen


def typical(points: np.ndarray, budget: int, noise: Noise) -> list[int]:
    """Of each of `budget` clusters of the features' directions the most typical sample, the largest cluster first.

    Typicality is one over the mean distance to the NEIGHBOURS nearest samples of the cluster, or to half of them where it has
    fewer (Hacohen et al. 2022, "TypiClust", equation 1 and algorithm 1). What small clusters leave open, larger ones fill with
    their next.
    """
    unit = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    labels = k_means(unit, min(budget, MOST_CLUSTERS), noise)
    members = [np.flatnonzero(labels == cluster) for cluster in range(labels.max() + 1)]
    members.sort(key=lambda own: (-len(own), own[0]))
    queues = [own[np.argsort(_distance_within(unit[own]), kind="stable")].tolist() for own in members]
    least = min(LEAST_CLUSTER, len(points) / len(members) / 2)
    large = [queue for queue in queues if len(queue) >= least]
    small = [queue for queue in queues if len(queue) < least]
    return [*_in_turns(large), *_in_turns(small)][:budget]


def _distance_within(points: np.ndarray) -> np.ndarray:
    """The mean distance of every sample of a cluster to its nearest ones there, one over its typicality."""
    count = min(NEIGHBOURS, len(points) // 2)
    distances = np.sort(np.sqrt(squared_distances(points, points)), axis=1)
    # The first is the distance to itself.
    return distances[:, 1 : 1 + count].mean(1) if count else np.zeros(len(points))


def _in_turns(queues: list[list[int]]) -> list[int]:
    """The first of every queue, then the second of every queue that has one, and so on."""
    longest = max(map(len, queues), default=0)
    return [queue[place] for place in range(longest) for queue in queues if place < len(queue)]


def k_means(points: np.ndarray, clusters: int, noise: Noise) -> np.ndarray:
    """The cluster of every sample, none of them empty: the best of STARTS, each begun by k-means++ (Arthur and others 2007)."""
    found = [_settled(points, _spread_out(points, clusters, noise)) for _ in range(STARTS)]
    return min(found, key=lambda pair: pair[0])[1]


def _spread_out(points: np.ndarray, clusters: int, noise: Noise) -> np.ndarray:
    """Samples to begin with, each drawn in proportion to its squared distance from those before."""
    chosen = [noise.below(len(points))]
    nearest = squared_distances(points, points[chosen])[:, 0]
    while len(chosen) < clusters:
        nearest[chosen] = 0
        ends = np.cumsum(nearest)
        place = int(np.searchsorted(ends, noise.uniform(0, float(ends[-1])), side="right"))
        # Fewer different samples than clusters: any other one will do.
        others = np.setdiff1d(np.arange(len(points)), chosen)
        chosen.append(place if place < len(points) and place not in chosen else int(others[0]))
        nearest = np.minimum(nearest, squared_distances(points, points[chosen[-1:]])[:, 0])
    return points[chosen]


def _settled(points: np.ndarray, centres: np.ndarray) -> tuple[float, np.ndarray]:
    """Spread (sum of squared distances to centres) and clusters, once no sample changes its cluster any more."""
    before = None
    for _ in range(ROUNDS):
        distances = squared_distances(points, centres)
        labels = _none_empty(distances.argmin(1), distances)
        if before is not None and np.array_equal(labels, before):
            break
        members = (labels == np.arange(len(centres))[:, None]).astype(points.dtype)
        centres, before = members @ points / members.sum(1, keepdims=True), labels
    own = squared_distances(points, centres)[np.arange(len(points)), labels]
    return float(own.sum()), labels


def _none_empty(labels: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Give every empty cluster the sample that is farthest from its centre, of those that are not alone in theirs."""
    own = distances[np.arange(len(labels)), labels]
    for cluster in np.setdiff1d(np.arange(distances.shape[1]), labels):
        is_alone = np.bincount(labels, minlength=distances.shape[1])[labels] == 1
        labels[np.where(is_alone, -1, own).argmax()] = cluster
        own[labels == cluster] = 0
    return labels


def squared_distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (points, others), none below 0."""
    lengths = np.einsum("nd,nd->n", points, points)[:, None] + np.einsum("nd,nd->n", others, others)
    return np.maximum(lengths - 2 * points @ others.T, 0)
