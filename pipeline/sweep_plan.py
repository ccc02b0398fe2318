"""What a sweep is asked to do: its file read, its search space checked, and the config of each of its trials."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import train
from pipeline.build import MakeLearner
from pipeline.config import checked, differences, dump, parse, read, settled, without_rates
from pipeline.data.index import Index
from pipeline.errors import InputError
from pipeline.schema.run import RunConfig
from pipeline.schema.sweep import PbtConfig, SweepConfig
from pipeline.schema.values import Config
from pipeline.space import Point, Space
from pipeline.swept import SECTION
from pipeline.tracking import TRIALS

MOST_BUILT = 32
"""Corners of different shapes for which a learner is built and an episode drawn before the first trial."""
MAY_CHANGE = ("trials", "meta_steps", "hours", "concurrent", "retries", "storage")
"""Keys of `sweep` in which a sweep that goes on may differ: how long it goes on, and by what means."""


class _File(Config):
    sweep: SweepConfig


class Plan(NamedTuple):
    """A sweep file: `tree` is all of it as plain values, `where` names it in errors."""

    tree: dict[str, Any]
    sweep: SweepConfig
    space: Space
    where: str

    def config(self, point: Point) -> RunConfig:
        """The run at a point of the space.

        Raises:
            InputError: a value is not usable there.
        """
        return settled(parse(self.space.config(point), self.where))

    def trial(self, point: Point, sweep: Path) -> RunConfig:
        """As `config`, for a trial of the sweep in this folder: where it is kept, and how it shares the machine."""
        config = self.config(point)
        changed: dict[str, Any] = {"runs": sweep.absolute() / TRIALS, "mirror": None}
        if config.workers.is_alone and config.workers.threads is None:
            # Beside it run others: what it is given is what it may use.
            changed["workers"] = config.workers.model_copy(update={"threads": config.workers.cpus})
        if isinstance(self.sweep.scheduler, PbtConfig):
            # What is judged is what another one goes on from.
            changed["checkpoint"] = config.checkpoint.model_copy(update={"every": config.validation.every})
        return config.model_copy(update=changed)


def load(path: Path, overrides: list[str]) -> Plan:
    """Read a sweep file, and check what can be checked without data.

    Raises:
        InputError: it is no sweep file, its space is not usable, or the config refuses a corner of it.
    """
    return plan_of(read(path, overrides), str(path))


def plan_of(tree: dict[str, Any], where: str) -> Plan:
    """As `load`, of the plain values of a file."""
    if SECTION not in tree:
        raise InputError(f"{where}: no section {SECTION}; a sweep needs one, as {SECTION}: {{trials: 12}}")
    sweep = checked(_File, {SECTION: tree[SECTION]}, where).sweep
    plan = Plan(tree, sweep, Space({key: value for key, value in tree.items() if key != SECTION}, where), where)
    if sweep.search.kind == "grid":
        plan.space.grid()
    for point in sweep.start:
        try:
            plan.config(dict(point))
        except InputError as error:
            raise InputError(f"{where}: sweep.start: {error}") from error
    for config in corners(plan):
        if config.meta.steps == 0:
            raise InputError(f"{where}: meta.steps = 0: nothing is trained, so that trials cannot differ; give steps")
    return plan


def corners(plan: Plan) -> Iterator[RunConfig]:
    """The configs at the corners of the space.

    Raises:
        InputError: the config refuses one; the point is named.
    """
    for point in plan.space.corners():
        try:
            yield plan.config(point)
        except InputError as error:
            at = ", ".join(f"{name} = {value}" for name, value in point.items())
            raise InputError(f"{error} (in a corner of the search space: {at})") from error


def check(plan: Plan, make_learner: MakeLearner) -> RunConfig:
    """Find out with the data at hand whether every kind of trial can be made; one of their configs comes back.

    Raises:
        InputError: as `train.check`, or a population would take over weights of other shapes.
    """
    kinds: dict[str, RunConfig] = {}
    for config in corners(plan):
        kinds.setdefault(json.dumps(without_rates(dump(config)), sort_keys=True), config)
    configs = list(kinds.values())[:MOST_BUILT]
    for config in configs:
        train.check(config, make_learner)
    if isinstance(plan.sweep.scheduler, PbtConfig):
        shapes = [_shapes(config, make_learner) for config in configs]
        if any(own != shapes[0] for own in shapes):
            raise InputError(
                f"{plan.where}: sweep.scheduler.kind = pbt: trials go on from one another's weights, whose shapes differ over "
                "this space; search rates and steps alone, or take another scheduler"
            )
    return configs[0]


def _shapes(config: RunConfig, make_learner: MakeLearner) -> dict[str, tuple[int, ...]]:
    learner = make_learner(config, Index.open(config.data.root))
    return {name: tuple(value.shape) for name, value in learner.state_dict().items()}


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In what two sweep files differ that decides what a sweep finds, as `key: old -> new`."""
    lines = differences(before, now)
    return [line for line in lines if not line.startswith(tuple(f"{SECTION}.{key}" for key in MAY_CHANGE))]
