"""From a config to which classes its training episodes are about."""

from __future__ import annotations

from functools import lru_cache
from typing import assert_never

from pipeline.data.index import Index
from pipeline.data.root import Root
from pipeline.data.sampler import QUARTER_TURNS, UNIFORM, classes_of
from pipeline.data.schedules import ByLikeness, Likeness, Scheduling, likeness_of
from pipeline.errors import InputError
from pipeline.schema.data import DifficultyConfig, DiversityConfig, ScheduledConfig, UniformConfig
from pipeline.schema.run import RunConfig

KEPT = 4
"""Tables that are remembered: a run builds its sampler several times."""


def schedule(config: RunConfig, index: Index) -> Scheduling:
    """What draws the classes of training episodes from this data set.

    Raises:
        InputError: classes are to be compared by features that are not those of this data set's images.
    """
    match config.data.schedule:
        case UniformConfig():
            return UNIFORM
        case DifficultyConfig(kind=kind) | DiversityConfig(kind=kind) as chosen:
            return ByLikeness(kind, _likeness(config, chosen, index), chosen.share, chosen.reach)
        case _ as never:
            assert_never(never)


def check_stream(config: RunConfig) -> None:
    """Raise `InputError` where a schedule is asked for and training reads a stream, which has no episodes."""
    if config.data.schedule != UniformConfig():
        raise InputError(
            f"data.schedule.kind = {config.data.schedule.kind} is about classes of episodes, and learner.kind = supervised "
            "learns from a stream of all; leave it out"
        )


def compared_by(config: RunConfig) -> Root | None:
    """The features by which classes are compared, where these are others than the data themselves."""
    chosen = config.data.schedule
    return chosen.by if isinstance(chosen, ScheduledConfig) else None


def _likeness(config: RunConfig, chosen: ScheduledConfig, index: Index) -> Likeness:
    if chosen.by is None:
        return _table(str(index.root), index.fingerprint, config.data.train, config.data.rotations)
    if config.data.rotations or config.data.mixture:
        key = "rotations" if config.data.rotations else "mixture"
        raise InputError(
            f"data.schedule.by = {chosen.by} holds features of the images of one data set as they are, and data.{key} has more; "
            "leave one of them out"
        )
    other = Index.open(chosen.by)
    made_of = other.manifest.get("origin", {}).get("encoder", {}).get("images_of", "")
    if made_of != index.fingerprint:
        raise InputError(
            f"data.schedule.by = {chosen.by}: holds no features of {index.root}; make them with metashard embed RUN OUT "
            f"--data {index.root}"
        )
    return _table(str(chosen.by), other.fingerprint, config.data.train, False)


@lru_cache(maxsize=KEPT)
def _table(root: str, fingerprint: str, split: str, turns: bool) -> Likeness:
    index = Index.open(root)
    assert index.fingerprint == fingerprint
    return likeness_of(index, classes_of(index, split), QUARTER_TURNS if turns else 1)
