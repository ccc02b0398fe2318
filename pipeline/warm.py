"""What past sweeps say of a new one: their best points, those on the most similar data first (Feurer et al. 2015)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch

from pipeline import build
from pipeline.data.index import Index
from pipeline.data.loader import frozen
from pipeline.errors import InputError
from pipeline.meta_features import meta_features
from pipeline.schema.run import RunConfig
from pipeline.schema.sweep import SweepConfig, WarmConfig
from pipeline.shipment import Target, client_of, first_line, plain_uri
from pipeline.space import Point, Space
from pipeline.spool import KIND

EPISODES = 20
LIKENESS, POINT, SCORE = "data.likeness", "sweep.point", "sweep/score"
"""Under which a sweep and its trials tell MLflow what is read here."""
MOST = 1000


class Past(NamedTuple):
    """A past sweep: its data in numbers, and its trials' points, the best first."""

    name: str
    likeness: Mapping[str, float]
    points: Sequence[Point]


def likeness(config: RunConfig) -> dict[str, float]:
    """The data that a run trains on, in numbers: means of the meta-features of its first validation episodes' supports.

    Validation classes, since these are what trials are judged on. Empty for what is no episode of images and labels.
    """
    index = Index.open(config.data.root)
    if index.encoder or config.task.kind not in ("classification", "verification"):
        return {}
    sampler, reader = build.validation(config, index)
    bring, rows = build.place(config, torch.device("cpu")), []
    for _, episode in frozen(sampler, reader, range(EPISODES)):
        here = bring(episode)
        rows.append(meta_features(here.support, here.ways, size=float(index.shape(0)[0])))
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """How unlike two data sets are, 0 to 1: the Canberra distance of their numbers, which have no common scale."""
    if one.keys() != other.keys() or not one:
        return 1.0
    parts = [abs(one[k] - other[k]) / size if (size := abs(one[k]) + abs(other[k])) else 0.0 for k in one]
    return fmean(parts)


def past_sweeps(sweep: SweepConfig, asked: WarmConfig, target: Target) -> list[Past]:
    """The sweeps that MLflow has of the target's experiment and of the same metric, with what their trials came to.

    Raises:
        InputError: MLflow cannot be read, or has not the sweeps that are named.
    """
    where = asked.uri or target.uri
    try:
        found = _read(client_of(where), target.experiment, sweep)
    except Exception as error:  # whatever its client raises
        raise InputError(
            f"sweep.warm: {plain_uri(where)} cannot be read ({first_line(error)}); bring it back, or leave sweep.warm out"
        ) from error
    found = [past for past in found if past.name != target.name]
    if lacking := set(asked.sweeps) - {past.name for past in found}:
        names = ", ".join(sorted(lacking))
        raise InputError(
            f"sweep.warm.sweeps: {plain_uri(where)} has no sweep {names} by {sweep.metric} in {target.experiment}"
        )
    return [past for past in found if past.name in asked.sweeps or not asked.sweeps]


def _read(client: Any, experiment: str, sweep: SweepConfig) -> list[Past]:
    known = client.get_experiment_by_name(experiment)
    if known is None:
        return []
    found = []
    for parent in client.search_runs([known.experiment_id], f"tags.{KIND} = 'sweep'", max_results=MOST):
        if parent.data.params.get("metric") != sweep.metric:
            continue
        of_parent = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
        children = client.search_runs([known.experiment_id], of_parent, max_results=MOST)
        judged = [run for run in children if SCORE in run.data.metrics and POINT in run.data.tags]
        judged.sort(key=lambda run: (run.data.metrics[SCORE], run.info.run_name), reverse=sweep.mode == "max")
        points = [json.loads(run.data.tags[POINT]) for run in judged]
        like = json.loads(parent.data.tags.get(LIKENESS, "{}"))
        found.append(Past(parent.data.params.get("name", parent.info.run_name), like, points))
    return found


def warm_points(space: Space, pasts: Sequence[Past], own: Mapping[str, float], count: int) -> list[tuple[Point, str]]:
    """So many points to try first, each with the sweep it is from: the best of that on the most similar data, then of the next.

    Points that are not of this space are passed over.
    """
    chosen: list[tuple[Point, str]] = []
    for past in sorted(pasts, key=lambda past: distance(own, past.likeness)):
        fitting = [point for point in past.points if space.fits(point)]
        for point in fitting:
            if len(chosen) < count and all(point != other for other, _ in chosen):
                chosen.append((point, past.name))
    return chosen
