"""What past sweeps say of a new one: points of the most similar data first, and only those that the new space has."""

from __future__ import annotations

import json

import pytest
from small import small_config

from pipeline.errors import InputError
from pipeline.schema.sweep import SweepConfig, WarmConfig
from pipeline.shipment import Target, client_of
from pipeline.space import Space
from pipeline.warm import LIKENESS, POINT, SCORE, Past, distance, likeness, past_sweeps, warm_points

SPACE = Space({"learner": {"rule": {"lr": {"loguniform": [0.01, 1]}}}}, "s")
SWEEP = SweepConfig(trials=3)


def rate(value: float) -> dict:
    return {"learner.rule.lr": value}


def test_distance_is_zero_for_the_same_and_grows_with_what_differs():
    one = {"brightness": 0.2, "ways": 5.0}
    assert distance(one, one) == 0
    assert 0 < distance(one, {"brightness": 0.3, "ways": 5.0}) < distance(one, {"brightness": 0.9, "ways": 5.0}) < 1
    assert distance(one, {"brightness": 0.2}) == distance({}, {}) == 1


def test_points_come_from_the_most_similar_data_the_best_first_and_once():
    near = Past("near", {"x": 1.1}, [rate(0.1), rate(5.0), rate(0.1), rate(0.2)])
    far = Past("far", {"x": 9.0}, [rate(0.3), rate(0.2)])
    assert warm_points(SPACE, [far, near], {"x": 1.0}, 3) == [
        (rate(0.1), "near"),
        (rate(0.2), "near"),
        (rate(0.3), "far"),
    ]
    assert warm_points(SPACE, [far, near], {"x": 1.0}, 1) == [(rate(0.1), "near")]
    assert warm_points(SPACE, [], {"x": 1.0}, 3) == []


def test_the_same_data_are_like_themselves_and_scenes_have_no_numbers(glyphs_root, scenes_root, tmp_path):
    one = likeness(small_config(glyphs_root, tmp_path))
    assert one == likeness(small_config(glyphs_root, tmp_path, meta={"batch": 2}))
    inverted = likeness(small_config(glyphs_root, tmp_path, data={"invert": True}))
    assert distance(one, inverted) > 0.05
    unet = {"kind": "unet", "width": 4, "depth": 2}
    learner = {"kind": "prototype"}
    assert (
        likeness(small_config(scenes_root, tmp_path, task={"kind": "segmentation"}, model=unet, learner=learner)) == {}
    )


@pytest.fixture
def store(tmp_path) -> str:
    """An MLflow with two past sweeps, one of another metric."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = client_of(uri)
    experiment = client.create_experiment("metashard", artifact_location=(tmp_path / "artifacts").as_uri())
    for name, metric in (("old", "validation/score"), ("other", "train/loss")):
        parent = client.create_run(experiment, tags={"kind": "sweep", LIKENESS: json.dumps({"x": 1.0})})
        client.log_param(parent.info.run_id, "name", name)
        client.log_param(parent.info.run_id, "metric", metric)
        for number, score in enumerate((0.4, 0.9, None, 0.6)):
            tags = {"mlflow.parentRunId": parent.info.run_id, POINT: json.dumps(rate(0.1 * (number + 1)))}
            child = client.create_run(experiment, tags=tags, run_name=f"{name}-{number}")
            if score is not None:
                client.log_metric(child.info.run_id, SCORE, score, step=30)
    return uri


def test_mlflow_tells_of_past_sweeps_by_the_same_metric(store):
    (found,) = past_sweeps(SWEEP, WarmConfig(), Target(store, "metashard", "new"))
    assert (found.name, found.likeness) == ("old", {"x": 1.0})
    assert [point["learner.rule.lr"] for point in found.points] == pytest.approx([0.2, 0.4, 0.1])
    assert past_sweeps(SWEEP, WarmConfig(), Target(store, "metashard", "old")) == []
    assert past_sweeps(SWEEP, WarmConfig(), Target(store, "elsewhere", "new")) == []


def test_a_sweep_that_is_not_there_and_a_server_that_does_not_answer_are_named(store):
    with pytest.raises(InputError, match="has no sweep gone by validation/score"):
        past_sweeps(SWEEP, WarmConfig(sweeps=("gone", "old")), Target(store, "metashard", "new"))
    with pytest.raises(InputError, match="http://127.0.0.1:9 cannot be read .*leave sweep.warm out"):
        past_sweeps(SWEEP, WarmConfig(uri="http://127.0.0.1:9"), Target(store, "metashard", "new"))
