"""Which classes an episode is about: any with the same chance, those that are alike (hard), or those that are unlike (diverse).

How alike classes are is known before training: a pure function of the bytes of the data set, in integers that float64 holds
exactly. So every process on every machine finds the same neighbours, and an episode stays a pure function of its numbers (law 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from pipeline.data.images import resize
from pipeline.data.index import Index
from pipeline.data.shards import Shards
from pipeline.errors import InputError
from pipeline.noise import Noise

SAMPLES = 10
"""Of a class, spread evenly over it, whose mean stands for it; of all as many as the smallest class has, if that is fewer."""
SIDE = 16
"""Pixels to which larger images are resized before they are compared."""
LEVELS = 255
"""Steps between the smallest and the largest value of the samples, to which values are rounded."""
KEPT = 1024
"""Classes whose distances to all others are remembered."""


class Scheduling(Protocol):
    """What says which classes are in an episode, from the data and its own noise alone."""

    def drawn(self, candidates: np.ndarray, turns: int, ways: int, noise: Noise) -> list[int]:
        """`ways` different numbers below len(candidates) · turns: number // turns is the place of a class among the candidates
        (class ids), number % turns its quarter turns."""
        ...

    def told(self) -> dict[str, Any]:
        """The settings as JSON values; none where every class has the same chance."""
        ...


class Uniform(NamedTuple):
    """Every set of classes has the same chance."""

    def drawn(self, candidates: np.ndarray, turns: int, ways: int, noise: Noise) -> list[int]:
        return noise.subset(len(candidates) * turns, ways)

    def told(self) -> dict[str, Any]:
        return {}


class Likeness:
    """Squared distances between the classes of `ids` in each of their turns, by `means` (ids, turns, dim), which are integers."""

    def __init__(self, ids: np.ndarray, means: np.ndarray):
        self._ids, self.means = ids, means
        flat = means.reshape(-1, means.shape[2])
        self._flat, self._lengths = flat, np.einsum("nd,nd->n", flat, flat)
        self._row = lru_cache(maxsize=KEPT)(self._distances)

    def of(self, candidates: np.ndarray, place: int, turn: int) -> np.ndarray:
        """Distances (candidates, turns) of all from one of them in one of its turns."""
        places = np.searchsorted(self._ids, candidates)
        return self._row(int(places[place]), turn)[places]

    def _distances(self, place: int, turn: int) -> np.ndarray:
        own = place * self.means.shape[1] + turn
        return (self._lengths + self._lengths[own] - 2 * self._flat @ self._flat[own]).reshape(self.means.shape[:2])


Distances = Callable[[int], np.ndarray]
"""Those of all candidates in each of their turns from the one of this number as `drawn` gives: a new (candidates, turns)."""


class ByLikeness(NamedTuple):
    """A share of the episodes has a class, drawn evenly, and others by how alike they are to it: `alike` or `unlike`."""

    kind: Literal["difficulty", "diversity"]
    likeness: Likeness
    share: float
    reach: float

    def drawn(self, candidates: np.ndarray, turns: int, ways: int, noise: Noise) -> list[int]:
        if noise.uniform() >= self.share:
            return noise.subset(len(candidates) * turns, ways)
        if ways > len(candidates):
            raise InputError(
                f"data.schedule: {ways} ways of {len(candidates)} classes, each of which comes in one of its turns; lower ways "
                "or data.lanes, or set data.schedule.kind = uniform"
            )
        first = noise.below(len(candidates) * turns)
        others = alike if self.kind == "difficulty" else unlike
        found = others(
            lambda number: self.likeness.of(candidates, *divmod(number, turns)), first, ways, self.reach, noise
        )
        # In random order: no label is that of the class that the others were chosen for.
        return noise.shuffled([first, *found])

    def told(self) -> dict[str, Any]:
        return {"kind": self.kind, "share": self.share, "reach": self.reach}


def alike(distances: Distances, first: int, ways: int, reach: float, noise: Noise) -> list[int]:
    """Those of a hard episode besides its first: out of the classes that are most like that one.

    Of the classes left, these are the `reach` nearest (a share of them, at least as many as are needed), each in the turn that is
    nearest; among them each has the same chance. Hard tasks help in Sun et al. 2019 (hard-task meta-batches) and Liu et al. 2020
    (class pairs), who find them while training; here they are known before.
    """
    near = distances(first)
    turns = near.shape[1]
    order = np.argsort(near.min(1), kind="stable")
    order = order[order != first // turns]
    reached = max(ways - 1, math.ceil(reach * len(order)))
    places = [int(order[rank]) for rank in noise.subset(reached, ways - 1)]
    return [place * turns + int(near[place].argmin()) for place in places]


def unlike(distances: Distances, first: int, ways: int, reach: float, noise: Noise) -> list[int]:
    """Those of a diverse episode besides its first: each time one of the classes that are least like any so far.

    Of the classes left, these are the `reach` farthest from the nearest class of the episode (at least one), each in the turn
    that is farthest; among them each has the same chance. With a reach of 0 that is k-centre greedy; determinantal processes do
    alike (Kumar, Deleu and Bengio 2023, who find little use in it).
    """
    chosen, nearest = [first], distances(first)
    turns = nearest.shape[1]
    while len(chosen) < ways:
        nearest[chosen[-1] // turns] = -1
        order = np.argsort(-nearest.max(1), kind="stable")
        left = len(nearest) - len(chosen)
        place = int(order[noise.below(max(1, math.ceil(reach * left)))])
        chosen.append(place * turns + int(nearest[place].argmax()))
        nearest = np.minimum(nearest, distances(chosen[-1]))
    return chosen[1:]


def likeness_of(index: Index, ids: np.ndarray, turns: int) -> Likeness:
    """How alike the classes of these ids, in order, are: by the means of their images or features as stored.

    Raises:
        InputError: a sample cannot be read, or they do not all have the same channels.
    """
    shards = Shards(index)
    each = min(SAMPLES, int(index.counts[ids].min()))
    # (ids, each) rows
    rows = np.stack([index.postings(int(own))[np.linspace(0, index.counts[own] - 1, each).astype(int)] for own in ids])
    shards.bring(rows.ravel().tolist())
    arrays = [_small(shards.image(int(row))) for row in rows.ravel()]
    if odd := [place for place, array in enumerate(arrays) if array.shape != arrays[0].shape]:
        raise InputError(
            f"{index.root}: sample {index.key(rows.flat[odd[0]])!r} is {arrays[odd[0]].shape}, the first {arrays[0].shape} "
            "(height, width, channels): classes cannot be compared; pack with --size and --channels"
        )
    stored = np.stack(arrays).astype(np.float64)
    low, high = stored.min(), stored.max()
    # Each value is rounded by itself and sums of integers are exact: no order of additions changes a bit.
    levels = np.rint((stored - low) / max(high - low, np.finfo(np.float64).tiny) * LEVELS)
    sums = levels.reshape(len(ids), each, *arrays[0].shape).sum(1)
    turned = [np.rot90(sums, turn, axes=(1, 2)).reshape(len(ids), -1) for turn in range(turns)]
    return Likeness(np.asarray(ids), np.stack(turned, 1))


def _small(image: np.ndarray) -> np.ndarray:
    """An image of at most SIDE × SIDE pixels; features as they are."""
    is_image = image.dtype.kind in "iu"
    return resize(image, SIDE) if is_image and image.shape[:2] != (SIDE, SIDE) else image
