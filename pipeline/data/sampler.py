"""Which samples make up an episode: a pure function of (index, sampler settings, seed, step, episode number)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipeline.data.index import Index
from pipeline.data.schedules import Scheduling, Uniform
from pipeline.data.shapes import Counts, Shaping
from pipeline.errors import InputError
from pipeline.noise import Noise, Purpose

QUARTER_TURNS = 4
UNIFORM = Uniform()
ATTEMPTS = 100
"""How often other classes are drawn where those of an episode share too many pictures."""


class Draw(NamedTuple):
    """An episode before anything is read: its classes, the quarter turns of each, and of each the rows of its support samples
    (shots,) and of its query samples (queries,)."""

    classes: tuple[int, ...]
    turns: tuple[int, ...]
    support: tuple[np.ndarray, ...]
    query: tuple[np.ndarray, ...]

    @property
    def rows(self) -> np.ndarray:
        """Of all samples, the support first."""
        return np.concatenate([*self.support, *self.query])


class Pool(NamedTuple):
    """What an episode may draw from: class ids, and the sample rows of class `i` at rows[starts[i]:starts[i + 1]]."""

    classes: np.ndarray
    rows: np.ndarray
    starts: np.ndarray


def classes_of(index: Index, split: str) -> np.ndarray:
    """The class ids of a split; `InputError` if there is no such split."""
    if split not in index.splits:
        raise InputError(f"{index.root} has no split {split!r}; it has {', '.join(sorted(index.splits))}")
    return np.asarray(index.splits[split])


class Sampler:
    """Draws episodes from one split of an index, as large as `shape` says, of the classes that `schedule` says.

    `turns` makes every class four, one per quarter turn (Santoro et al. 2016, section 4.1; Vinyals' Omniglot split).
    With `lanes` > 1, episode n draws only from the shards of lane n mod lanes, dealt anew every `deal_every` steps, so that a
    node needs only the shards of its own lanes.
    """

    def __init__(
        self,
        index: Index,
        split: str,
        shape: Shaping,
        *,
        seed: int,
        turns: bool,
        lanes: int = 1,
        deal_every: int = 1000,
        schedule: Scheduling = UNIFORM,
    ):
        self.index, self.split, self.shape = index, split, shape
        self.seed, self.lanes, self.deal_every, self.schedule = seed, lanes, deal_every, schedule
        self.turns = QUARTER_TURNS if turns else 1
        self.classes = classes_of(index, split)
        self._check()
        # Episodes go round the lanes: a cache with fewer places than lanes would never be hit.
        self._lane_pool = lru_cache(maxsize=lanes)(self._deal)

    def _check(self) -> None:
        ways, needed = self.shape.least_ways, self.shape.needed
        counts = self.index.counts[self.classes]
        short = self.classes[counts < needed]
        where = f"split {self.split!r} of {self.index.root}"
        if len(short):
            name, count = self.index.class_names[int(short[0])], int(self.index.counts[int(short[0])])
            raise InputError(
                f"{where}: {len(short)} classes have fewer than {self.shape.wants} = {needed} samples, "
                f"first {name!r} with {count}; lower shots or queries, or leave those classes out of the split"
            )
        if len(self.classes) * self.turns < ways:
            key = "ways" if ways == self.shape.ways else "shape.least_ways"
            raise InputError(
                f"{where} has {len(self.classes) * self.turns} classes, fewer than {key} = {ways}; lower {key}"
            )
        if self.lanes > len(self.index.shards):
            raise InputError(f"data.lanes = {self.lanes} is more than the {len(self.index.shards)} shards; lower it")

    def costs(self, step: int, batch: int) -> list[float]:
        """What every episode of a meta-step costs; with lanes, which are shared out whole, as if all cost the same."""
        return [1] * batch if self.lanes > 1 else [self.cost(step, number) for number in range(batch)]

    def cost(self, step: int, number: int) -> int:
        """What an episode costs, without lanes: the samples to be read and pushed through the model."""
        same = self.shape.cost
        return self._planned(self._noise(step, number), None)[2].cost if same is None else same

    def _noise(self, step: int, number: int) -> Noise:
        return Noise(self.seed, Purpose.EPISODE, zlib.crc32(self.split.encode()), step, number)

    def draw(self, step: int, number: int) -> Draw:
        """The episode `number` of meta-step `step`.

        Raises:
            InputError: the episode's lane holds too few classes with enough samples, or classes have too few pictures that are
                not in the episode for another one.
        """
        noise = self._noise(step, number)
        pool = None if self.lanes == 1 else self._lane_pool(number % self.lanes, step // self.deal_every)
        candidates = self.classes if pool is None else pool.classes
        for _ in range(ATTEMPTS):
            chosen, owns, (shots, queries) = self._planned(noise, pool)
            drawn = [own[noise.subset(len(own), some + queries)] for own, some in zip(owns, shots, strict=True)]
            rows = self._apart([own.astype(np.int64) for own in drawn], owns, noise)
            if rows is not None:
                return Draw(
                    tuple(int(candidates[pick // self.turns]) for pick in chosen),
                    tuple(pick % self.turns for pick in chosen),
                    tuple(own[:some] for own, some in zip(rows, shots, strict=True)),
                    tuple(own[some:] for own, some in zip(rows, shots, strict=True)),
                )
        raise InputError(
            f"split {self.split!r} of {self.index.root}: no {self.shape.ways} classes were found with {self.shape.wants} = "
            f"{self.shape.needed} pictures each that are not filed under another of them too; lower ways, shots or queries"
        )

    def _planned(self, noise: Noise, pool: Pool | None) -> tuple[list[int], list[np.ndarray], Counts]:
        """The classes of an episode with the rows of each, and how many of them it takes."""
        candidates = self.classes if pool is None else pool.classes
        classes = len(candidates) * self.turns
        chosen = self.schedule.drawn(candidates, self.turns, self.shape.drawn_ways(classes, noise), noise)
        places = [pick // self.turns for pick in chosen]
        owns = [
            self.index.postings(int(candidates[place]))
            if pool is None
            else pool.rows[pool.starts[place] : pool.starts[place + 1]]
            for place in places
        ]
        return chosen, owns, self.shape.counts([len(own) for own in owns], noise)

    def _apart(self, rows: list[np.ndarray], owns: Sequence[np.ndarray], noise: Noise) -> list[np.ndarray] | None:
        """The rows of every class with every picture once, since support and query never share one: what repeats a picture
        gives way to another sample of its class. None where a class has no more."""
        if self.index.pictures is None:
            return rows
        whole = np.concatenate(rows)
        if len(np.unique(self._pictures(whole))) == len(whole):
            return rows
        taken: set[int] = set()
        changed: list[np.ndarray] = []
        for drawn, own in zip(rows, owns, strict=True):
            kept: list[int] = []
            others = np.concatenate([drawn, own[noise.subset(len(own), len(own))]])
            for row, picture in zip(others.tolist(), self._pictures(others).tolist(), strict=True):
                if len(kept) < len(drawn) and picture not in taken:
                    taken.add(picture)
                    kept.append(row)
            if len(kept) < len(drawn):
                return None
            changed.append(np.array(kept, np.int64))
        return changed

    def _pictures(self, rows: np.ndarray) -> np.ndarray:
        """What each row shows, equal where it is the same."""
        assert self.index.pictures is not None
        named = self.index.pictures[rows].astype(np.int64)
        return np.where(named > 0, named, -1 - rows)

    def _deal(self, lane: int, epoch: int) -> Pool:
        """The classes and rows that the shards of one lane hold, with enough samples for an episode."""
        order = Noise(self.seed, Purpose.DEAL, epoch).shuffled(list(range(len(self.index.shards))))
        mine = np.zeros(len(order), bool)
        mine[order[lane :: self.lanes]] = True
        needed = self.shape.needed
        classes, rows = [], []
        for class_id in self.classes:
            own = self.index.postings(int(class_id))
            own = own[mine[self.index.shard_of[own]]]
            if len(own) >= needed:
                classes.append(class_id)
                rows.append(own)
        if len(classes) * self.turns < self.shape.least_ways:
            raise InputError(
                f"data.lanes = {self.lanes}: the {int(mine.sum())} shards of a lane hold only {len(classes)} classes of split "
                f"{self.split!r} with {needed} samples; lower data.lanes or pack into smaller shards"
            )
        starts = np.cumsum([0, *(len(own) for own in rows)])
        return Pool(np.asarray(classes), np.concatenate(rows), starts)


def assign(costs: Sequence[float], world: int, *, lanes: int = 1) -> list[list[int]]:
    """Which episode numbers each rank takes: the costliest first, each to the rank with the least to do.

    With lanes, a whole lane goes to one rank. No rank is left without an episode.

    Raises:
        InputError: there are fewer episodes, or fewer lanes (other than 1), than ranks.
    """
    if len(costs) < world:
        raise InputError(
            f"meta.batch = {len(costs)} is smaller than workers.count = {world}; raise the one or lower the other"
        )
    if 1 < lanes < world:
        raise InputError(
            f"data.lanes = {lanes} is smaller than workers.count = {world}; raise the one or lower the other"
        )
    shares: list[list[int]] = [[] for _ in range(world)]
    if lanes > 1:
        for number in range(len(costs)):
            shares[number % lanes % world].append(number)
        return shares
    load = [0.0] * world
    for number in sorted(range(len(costs)), key=lambda n: (-costs[n], n)):
        rank = min(range(world), key=lambda r: (load[r], r))
        load[rank] += costs[number]
        shares[rank].append(number)
    return [sorted(share) for share in shares]
