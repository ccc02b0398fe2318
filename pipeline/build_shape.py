"""From a config to how large its episodes are, and what of the config that does not fit."""

from __future__ import annotations

from typing import assert_never

from pipeline.data.shapes import LongTailed, Shape, Shaping, Varied
from pipeline.errors import InputError
from pipeline.schema.data import FixedConfig, LongTailedConfig, ShapeConfig, VariedConfig
from pipeline.schema.run import RunConfig
from pipeline.schema.task import ClassificationConfig


def training_shape(config: RunConfig) -> Shaping:
    """Ways, shots and queries of the episodes trained on.

    Raises:
        InputError: they do not fit each other, or the task.
    """
    data = config.data
    if isinstance(data.shape, VariedConfig) and config.engine.mode == "compiled":
        raise InputError(
            "engine.mode = compiled: with data.shape.kind = varied every episode is of another shape, for which all would be "
            "compiled anew; set engine.mode = auto"
        )
    return _shape(config, "data", data.shape, data.ways, data.shots, data.queries)


def evaluation_shape(config: RunConfig) -> Shaping:
    """Ways, shots and queries of the episodes measured on.

    Raises:
        InputError: as `training_shape`.
    """
    data, asked = config.data, config.evaluate
    sizes = asked.ways or data.ways, asked.shots or data.shots, asked.queries or data.queries
    return _shape(config, "evaluate", asked.shape or data.shape, *sizes)


def is_varied(config: RunConfig) -> bool:
    """Whether ways differ from one episode to another, in training or where it is measured."""
    return any(isinstance(shape, VariedConfig) for shape in (config.data.shape, config.evaluate.shape))


def _shape(config: RunConfig, section: str, chosen: ShapeConfig, ways: int, shots: int, queries: int) -> Shaping:
    if not isinstance(chosen, FixedConfig) and not isinstance(config.task, ClassificationConfig):
        raise InputError(
            f"{section}.shape.kind = {chosen.kind} is for task.kind = classification; "
            f"with {config.task.kind} set {section}.shape.kind = fixed"
        )
    match chosen:
        case FixedConfig():
            return Shape(ways, shots, queries)
        case VariedConfig(least_ways=least, support=support):
            if least > ways:
                raise InputError(
                    f"{section}.shape.least_ways = {least} is more than ways = {ways}, the most there may be; "
                    "lower the one or raise the other"
                )
            if support < ways:
                raise InputError(
                    f"{section}.shape.support = {support} is less than a sample of each of ways = {ways} classes; raise it"
                )
            return Varied(ways, shots, queries, least, support)
        case LongTailedConfig(imbalance=imbalance):
            if ways < 3:
                raise InputError(
                    f"{section}.shape.kind = long_tailed: ways = {ways} are a head without a tail; set ways to 3 or more"
                )
            found = LongTailed(ways, shots, queries, imbalance)
            if found.tail[-1] < 1:
                raise InputError(
                    f"{section}.shape.imbalance = {imbalance:g} leaves the smallest of {ways} classes nothing of "
                    f"{ways * shots} support samples; raise shots or lower imbalance"
                )
            return found
        case _ as never:
            assert_never(never)
