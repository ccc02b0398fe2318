"""How large episodes are: the same every time, drawn anew for each, or with a long tail of classes that have few samples.

ways: classes in the episode; shots, queries: support and query samples of a class; size: samples that a class has in the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pipeline.noise import Noise

LEAST_WEIGHT, MOST_WEIGHT = 0.5, 2.0
"""Between these a class's share of a varied support is multiplied, evenly in the logarithm."""


class Counts(NamedTuple):
    """Support samples of every class of an episode, in the order of its classes, and query samples of each."""

    shots: tuple[int, ...]
    queries: int

    @property
    def cost(self) -> int:
        """Samples to be read and pushed through the model, the measure by which episodes are shared out."""
        return sum(self.shots) + len(self.shots) * self.queries


class Shaping(Protocol):
    """What says how large an episode is, from the data and its own noise alone (law 1)."""

    @property
    def ways(self) -> int: ...
    @property
    def shots(self) -> int: ...
    @property
    def queries(self) -> int: ...

    @property
    def least_ways(self) -> int:
        """Classes that the data must have."""
        ...

    @property
    def needed(self) -> int:
        """Samples that a class must have."""
        ...

    @property
    def wants(self) -> str:
        """Of which keys `needed` is made, and which to lower where there are fewer."""
        ...

    @property
    def cost(self) -> int | None:
        """What every episode costs; None: that differs."""
        ...

    def drawn_ways(self, classes: int, noise: Noise) -> int:
        """Ways of an episode where there are so many classes."""
        ...

    def counts(self, sizes: Sequence[int], noise: Noise) -> Counts:
        """What is taken of classes of these sizes."""
        ...

    def told(self) -> dict[str, Any]:
        """The settings as JSON values; `shape` is among them where episodes are not all the same."""
        ...


class Shape(NamedTuple):
    """Every episode has so many classes, and so many support and query samples of each."""

    ways: int
    shots: int
    queries: int

    @property
    def least_ways(self) -> int:
        return self.ways

    @property
    def needed(self) -> int:
        return self.shots + self.queries

    @property
    def wants(self) -> str:
        return "shots + queries"

    @property
    def cost(self) -> int:
        return self.ways * self.needed

    def drawn_ways(self, classes: int, noise: Noise) -> int:
        return self.ways

    def counts(self, sizes: Sequence[int], noise: Noise) -> Counts:
        return Counts((self.shots,) * self.ways, self.queries)

    def told(self) -> dict[str, Any]:
        return self._asdict()


class Varied(NamedTuple):
    """Ways and shots are drawn anew for every episode, and differ from class to class (Triantafillou et al. 2020, Meta-Dataset,
    section 3.2 and appendix A, for data sets without a hierarchy of classes).

    Ways are uniform in [`least_ways`, min(`ways`, classes)]. Each class has q = min(`queries`, half of the smallest class)
    queries. The support has min(`support`, Σ ⌈β min(`shots`, size − q)⌉) samples, β uniform in (0, 1]. What it has beyond one
    sample of every class is shared out in proportion to exp(α) · size, α of every class uniform in [log ½, log 2), rounded down,
    and no class gives more than size − q. The paper has 5, 50, 10, 500 and 100.
    """

    ways: int
    shots: int
    queries: int
    least_ways: int
    support: int

    @property
    def needed(self) -> int:
        return 2

    @property
    def wants(self) -> str:
        return "a shot and a query"

    @property
    def cost(self) -> None:
        return None

    def drawn_ways(self, classes: int, noise: Noise) -> int:
        return self.least_ways + noise.below(min(self.ways, classes) - self.least_ways + 1)

    def counts(self, sizes: Sequence[int], noise: Noise) -> Counts:
        queries = min(self.queries, min(sizes) // 2)
        left = [size - queries for size in sizes]
        beta = 1 - noise.uniform()
        support = min(self.support, sum(math.ceil(beta * min(self.shots, own)) for own in left))
        low, high = math.log(LEAST_WEIGHT), math.log(MOST_WEIGHT)
        weights = [math.exp(noise.uniform(low, high)) * size for size in sizes]
        spare, whole = support - len(sizes), math.fsum(weights)
        shots = (min(int(weight / whole * spare) + 1, own) for weight, own in zip(weights, left, strict=True))
        return Counts(tuple(shots), queries)

    def told(self) -> dict[str, Any]:
        return {"shape": "varied", **self._asdict()}


class LongTailed(NamedTuple):
    """Fixed ways and a support of ways · `shots` samples, of which the classes have ever fewer: geometrically, the first of them
    `imbalance` times as many as the last (Cui et al. 2019, section 5.1; Cao et al. 2019, section 4), as near as whole numbers
    come. Queries are as many for each. Which class has how many is drawn for every episode, so that labels tell nothing of it.
    """

    ways: int
    shots: int
    queries: int
    imbalance: float

    @property
    def least_ways(self) -> int:
        return self.ways

    @property
    def needed(self) -> int:
        return self.tail[0] + self.queries

    @property
    def wants(self) -> str:
        return "the most shots + queries"

    @property
    def cost(self) -> int:
        return self.ways * (self.shots + self.queries)

    @property
    def tail(self) -> tuple[int, ...]:
        """Shots by class, the most first: rounded down, and what that leaves over to the largest remainders."""
        falling = [self.imbalance ** (-place / (self.ways - 1)) for place in range(self.ways)]
        ideal = [self.ways * self.shots * own / math.fsum(falling) for own in falling]
        shots = [int(own) for own in ideal]
        by_remainder = sorted(range(self.ways), key=lambda place: (shots[place] - ideal[place], place))
        for place in by_remainder[: self.ways * self.shots - sum(shots)]:
            shots[place] += 1
        return tuple(sorted(shots, reverse=True))

    def drawn_ways(self, classes: int, noise: Noise) -> int:
        return self.ways

    def counts(self, sizes: Sequence[int], noise: Noise) -> Counts:
        return Counts(tuple(noise.shuffled(list(self.tail))), self.queries)

    def told(self) -> dict[str, Any]:
        return {"shape": "long_tailed", **self._asdict()}


def in_words(told: Mapping[str, Any], *, of_each: str = "queries per class") -> str:
    """What episodes are like, from the settings in a result: `told` of a shape, and of varied ones `mean_ways` and `mean_shots`
    where they were drawn."""
    ways, shots, queries = told["ways"], told["shots"], told["queries"]
    match told.get("shape"):
        case "varied":
            words = (
                f"{told['least_ways']}- to {ways}-way, up to {told['support']} support samples and {queries} {of_each}"
            )
            if "mean_ways" in told:
                words += f", on average {told['mean_ways']:.1f} ways of {told['mean_shots']:.1f} shots"
            return words
        case "long_tailed":
            return f"{ways}-way, {ways * shots} support samples falling {told['imbalance']:g} to 1, {queries} {of_each}"
        case _:
            return f"{ways}-way {shots}-shot, {queries} {of_each}"
