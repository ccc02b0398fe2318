"""A family of tasks: ways and shots drawn evenly from ranges, the same shots for every class of a task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.data.shapes import Counts
from pipeline.errors import InputError
from pipeline.noise import Noise


class Range(NamedTuple):
    """From `least` to `most`, both included."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"

    def holds(self, value: float) -> bool:
        return self.least <= value <= self.most


def range_of(option: str, text: str, *, least: int) -> Range:
    """The range that a person means by "5" or "2-20".

    Raises:
        InputError: it is none, or begins below `least`.
    """
    found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
    if found is None:
        raise InputError(f"{option} {text}: no number and no range; give it as 5 or {least}-20")
    first, last = int(found[1]), int(found[2] or found[1])
    if not least <= first <= last:
        raise InputError(
            f"{option} {text}: give a range that begins at {least} or above and does not end before it begins"
        )
    return Range(first, last)


class Family(NamedTuple):
    """Every task has ways of one range, shots of the other, and so many queries of each class."""

    way_range: Range
    shot_range: Range
    queries: int

    @property
    def ways(self) -> int:
        return self.way_range.most

    @property
    def shots(self) -> int:
        return self.shot_range.most

    @property
    def least_ways(self) -> int:
        return self.way_range.most

    @property
    def needed(self) -> int:
        return self.shots + self.queries

    @property
    def wants(self) -> str:
        return "shots + queries"

    @property
    def cost(self) -> None:
        return None

    def drawn_ways(self, classes: int, noise: Noise) -> int:
        return _drawn(self.way_range, noise)

    def counts(self, sizes: Sequence[int], noise: Noise) -> Counts:
        return Counts((_drawn(self.shot_range, noise),) * len(sizes), self.queries)

    def told(self) -> dict[str, Any]:
        return {"shape": "family", "ways": str(self.way_range), "shots": str(self.shot_range), "queries": self.queries}


def _drawn(between: Range, noise: Noise) -> int:
    return between.least + noise.below(between.most - between.least + 1)
