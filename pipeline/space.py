"""A search space: a run config in which some values are dimensions, as `lr: {loguniform: [0.01, 1]}`.

A dimension is a mapping with one key: `uniform` and `loguniform` (of two numbers), `int` and `logint` (of two integers, both
included), `choice` (of a list). An option of a choice may be a mapping, even one with dimensions in it, which then exist where
that option was taken: a MAML trial has an inner rate, a ProtoNet trial none.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.config import FREE
from pipeline.errors import InputError
from pipeline.noise import Noise, Purpose

RANGES = ("uniform", "loguniform", "int", "logint")
CHOICE = "choice"
MOST_CORNERS = 4096
UNSEARCHED = (*FREE, "name")
"""Sections that decide nothing of a run's result."""

Value = str | int | float | bool | None
Point = dict[str, Value]
"""A value for every dimension that exists; of an option that is no plain value its name."""


@dataclass(frozen=True)
class Dimension:
    """A value that is searched: its `name`, which is the config's key unless two options have the same, and its range.

    `low` and `high` bound a range; `options` are those of a choice, as they stand in a `Point`. `when` is empty or the choice
    and the option with which it exists.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    options: tuple[Value, ...] = ()
    when: tuple[str, Value] | None = None

    @property
    def is_log(self) -> bool:
        """Whether it is searched by its logarithm."""
        return self.kind in ("loguniform", "logint")

    def __str__(self) -> str:
        inside = list(self.options) if self.kind == CHOICE else [self.low, self.high]
        return f"{self.kind} {json.dumps(inside)}" + (f" where {self.when[0]} is {self.when[1]}" if self.when else "")

    def at(self, share: float) -> Value:
        """The value at this share, 0 to 1, of the range."""
        if self.kind == CHOICE:
            return self.options[min(int(share * len(self.options)), len(self.options) - 1)]
        # Every integer has the same share of an int's range.
        low, high = (self.low, self.high) if "int" not in self.kind else (self.low - 0.5, self.high + 0.5)
        value = math.exp(_between(math.log(low), math.log(high), share)) if self.is_log else _between(low, high, share)
        return self.clipped(value)

    def share(self, value: Value) -> float:
        """The share of the range, 0 to 1, at which a value lies."""
        if self.kind == CHOICE:
            return self.index(value) / max(1, len(self.options) - 1)
        assert isinstance(value, int | float)
        low, high, at = map(math.log, (self.low, self.high, value)) if self.is_log else (self.low, self.high, value)
        return (at - low) / (high - low) if high > low else 0.0

    def clipped(self, value: float) -> Value:
        """The nearest value that is inside."""
        inside = min(max(value, self.low), self.high)
        return round(inside) if "int" in self.kind else inside

    def index(self, value: Value) -> int:
        """Which option a value is: 1, 1.0 and true are three."""
        return [_typed(option) for option in self.options].index(_typed(value))

    def ends(self) -> tuple[Value, ...]:
        """The values at its ends; all options of a choice."""
        return (
            self.options
            if self.kind == CHOICE
            else tuple(dict.fromkeys((self.clipped(self.low), self.clipped(self.high))))
        )

    def every(self) -> tuple[Value, ...]:
        """All its values, of which there must not be too many.

        Raises:
            InputError: it has as many as there are numbers.
        """
        if self.kind == CHOICE:
            return self.options
        if "int" not in self.kind:
            raise InputError(f"sweep.search.kind = grid: {self.name} is {self}; a grid needs choice or int")
        return tuple(range(round(self.low), round(self.high) + 1))


_Values = Callable[[Dimension], Iterable[Value]]


class _Choice(NamedTuple):
    """A choice with the trees of its options."""

    dimension: Dimension
    trees: tuple[Any, ...]


class Space:
    """The search space of a tree of plain values; `where` names the tree's origin in errors.

    Raises:
        InputError: it has no dimension, or one that is not usable.
    """

    def __init__(self, tree: Mapping[str, Any], where: str):
        self._where = where
        self.dimensions: list[Dimension] = []
        self._tree = self._parsed(dict(tree), (), None)
        if not self.dimensions:
            raise InputError(
                f"{where}: no value is a dimension; write one as learner.rule.lr: {{loguniform: [0.01, 1]}}"
            )

    def config(self, point: Point) -> dict[str, Any]:
        """The plain values of a config at a point.

        Raises:
            InputError: the point has not the dimensions that exist there, or a value outside of one.
        """
        unused = dict(point)
        made = _filled(self._tree, unused)
        if unused:
            raise InputError(f"{self._where}: a point names {', '.join(unused)}, which is no dimension there")
        return made

    def sample(self, seed: int, number: int) -> Point:
        """Point `number` of a random search: a pure function of the seed and the number."""
        return self.walked(lambda dimension: dimension.at(_share(seed, number, dimension)))

    def moved(self, point: Point, seed: int, number: int, *, resample: float) -> Point:
        """A point near this one (Jaderberg et al. 2017): ranges times 0.8 or 1.25, choices to a neighbour; some drawn anew."""

        def move(dimension: Dimension) -> Value:
            noise = Noise(seed, Purpose.TUNE, _digest(dimension.name), number, 1)
            is_new, is_up, share = noise.uniform() < resample, noise.below(2) == 1, noise.uniform()
            value = point.get(dimension.name)
            if dimension.name not in point or is_new:
                return dimension.at(share)
            if dimension.kind == CHOICE:
                at = dimension.index(value) + (1 if is_up else -1)
                return dimension.options[min(max(at, 0), len(dimension.options) - 1)]
            assert isinstance(value, int | float)
            by_factor = dimension.clipped(value * (1.25 if is_up else 0.8))
            # A small integer times a factor is itself.
            return by_factor if by_factor != value else dimension.clipped(value + (1 if is_up else -1))

        return self.walked(move)

    def grid(self) -> list[Point]:
        """All points.

        Raises:
            InputError: a dimension has no end of values.
        """
        return list(self._product(self._tree, Dimension.every))

    def corners(self) -> Iterator[Point]:
        """The points at which every dimension is at an end, or some thousand of them drawn at random where there are more."""
        corners = self._product(self._tree, Dimension.ends)
        first = list(itertools.islice(corners, MOST_CORNERS + 1))
        if len(first) <= MOST_CORNERS:
            yield from first
            return
        for number in range(MOST_CORNERS):
            yield self.walked(lambda d, n=number: d.ends()[int(_share(0, n, d) * len(d.ends()))])

    def fits(self, point: Mapping[str, Any]) -> bool:
        """Whether this is a point of the space."""
        try:
            self.config(dict(point))
        except InputError:
            return False
        return True

    def told(self) -> dict[str, str]:
        """Every dimension in words, by name."""
        return {dimension.name: str(dimension) for dimension in self.dimensions}

    def walked(self, value: Callable[[Dimension], Value]) -> Point:
        """A point, asking for the values of the dimensions that exist, a choice before what hangs on it."""
        point: Point = {}
        for dimension in self.dimensions:
            if dimension.when is None or point.get(dimension.when[0], _ABSENT) == dimension.when[1]:
                point[dimension.name] = value(dimension)
        return point

    def _parsed(self, node: Any, key: tuple[str, ...], when: tuple[str, Value] | None) -> Any:
        if not isinstance(node, dict):
            return node
        kind = next(iter(node), None)
        if len(node) == 1 and kind in (*RANGES, CHOICE):
            if key[0] in UNSEARCHED:
                raise InputError(f"{self._where}: {'.'.join(key)} decides nothing of a result; give it one value")
            return self._dimension(kind, node[kind], key, when)
        return {name: self._parsed(value, (*key, str(name)), when) for name, value in node.items()}

    def _dimension(self, kind: str, given: Any, key: tuple[str, ...], when: tuple[str, Value] | None) -> Any:
        path = ".".join(key)
        if kind != CHOICE:
            low, high = _ends(kind, given, f"{self._where}: {path}")
            dimension = Dimension(self._unused(path, when), kind, low, high, when=when)
            self.dimensions.append(dimension)
            return dimension
        if not isinstance(given, list) or not given:
            raise InputError(f"{self._where}: {path}: choice of {given!r}; give a list of at least one option")
        options, by_kind = _labels(given)
        if len(set(map(_typed, options))) < len(options):
            raise InputError(f"{self._where}: {path}: choice has an option twice; name each once")
        name = self._unused(f"{path}.kind" if by_kind else path, when)
        dimension = Dimension(name, CHOICE, options=options, when=when)
        self.dimensions.append(dimension)
        return _Choice(dimension, tuple(self._parsed(o, key, (name, at)) for o, at in zip(given, options, strict=True)))

    def _unused(self, path: str, when: tuple[str, Value] | None) -> str:
        """A name that no dimension has: the key, with the option where that is another one's too."""
        if all(dimension.name != path for dimension in self.dimensions):
            return path
        assert when is not None
        return f"{path} ({when[1]})"

    def _product(self, node: Any, values: _Values) -> Iterator[Point]:
        """The points of all combinations of `values(dimension)` below a node."""
        match node:
            case Dimension():
                yield from ({node.name: value} for value in values(node))
            case _Choice():
                for option, tree in zip(node.dimension.options, node.trees, strict=True):
                    for rest in self._product(tree, values):
                        yield {node.dimension.name: option, **rest}
            case dict():
                yield from self._combined([child for child in node.values() if isinstance(child, _NODES)], values)
            case _:
                yield {}

    def _combined(self, children: Sequence[Any], values: _Values) -> Iterator[Point]:
        if not children:
            yield {}
            return
        for first in self._product(children[0], values):
            for rest in self._combined(children[1:], values):
                yield {**first, **rest}


_ABSENT = object()
_NODES = (dict, Dimension, _Choice)


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _typed(value: Value) -> tuple[type, Value]:
    """What tells 1, 1.0 and true apart."""
    return type(value), value


def _ends(kind: str, given: Any, where: str) -> tuple[float, float]:
    """The two ends of a range."""
    said = f"{where}: {kind} of {given!r}"
    is_int = "int" in kind
    if not isinstance(given, list) or len(given) != 2 or any(isinstance(end, bool) for end in given):
        raise InputError(f"{said}; give its two ends, as [0.01, 1]")
    try:
        # YAML 1.1 reads 1e-4 as a text.
        low, high = (float(end) for end in given)
    except (TypeError, ValueError) as error:
        raise InputError(f"{said}; its ends are numbers") from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{said}; the first end must be below the second")
    if is_int and (low != int(low) or high != int(high)):
        raise InputError(f"{said}; its ends are integers")
    if "log" in kind and low <= 0:
        raise InputError(f"{said}; of what is searched by its logarithm both ends are above 0")
    return (int(low), int(high)) if is_int else (low, high)


def _labels(options: Sequence[Any]) -> tuple[tuple[Value, ...], bool]:
    """What options are called in a point, and whether by their `kind`: plain values as they are, others by kind or as JSON."""
    kinds = [option.get("kind") for option in options if isinstance(option, dict)]
    if len(kinds) == len(options) and all(isinstance(k, str) for k in kinds) and len(set(kinds)) == len(kinds):
        return tuple(kinds), True
    return tuple(
        json.dumps(option, default=str) if isinstance(option, dict | list) else option for option in options
    ), False


def _filled(node: Any, point: Point) -> Any:
    """The plain values below a node; what is taken from the point leaves it."""
    match node:
        case Dimension():
            return _taken(node, point)
        case _Choice():
            option = _taken(node.dimension, point)
            return _filled(node.trees[node.dimension.index(option)], point)
        case dict():
            return {name: _filled(child, point) for name, child in node.items()}
        case _:
            return node


def _taken(dimension: Dimension, point: Point) -> Value:
    if dimension.name not in point:
        raise InputError(f"a point has no value for {dimension.name}, which is {dimension}")
    value = point.pop(dimension.name)
    if dimension.kind == CHOICE:
        is_inside = any(_typed(value) == _typed(option) for option in dimension.options)
    else:
        is_inside = isinstance(value, int | float) and dimension.low <= value <= dimension.high
        is_inside = is_inside and (isinstance(value, int) or "int" not in dimension.kind)
    if not is_inside:
        raise InputError(f"{dimension.name} = {value!r} of a point is not inside {dimension}")
    return value


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _share(seed: int, number: int, dimension: Dimension) -> float:
    """A dimension's own stream: another one that comes or goes moves nothing."""
    return Noise(seed, Purpose.TUNE, _digest(dimension.name), number).uniform()
