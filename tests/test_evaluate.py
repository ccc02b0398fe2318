"""Evaluation: frozen episodes, the same for any number of workers, intervals, and floors where they belong."""

import math

import pytest
from gloo import work_here
from small import small_config

from pipeline import checkpoint, evaluate
from pipeline.config import dump
from pipeline.errors import InputError
from pipeline.evaluate import Subject
from pipeline.judging import score
from pipeline.learners.learner import Mode


@pytest.fixture(scope="module")
def run(tmp_path_factory, glyphs_root):
    place = tmp_path_factory.mktemp("evaluated")
    config = small_config(
        glyphs_root,
        place,
        learner={"kind": "prototype"},
        model={"kind": "conv4", "width": 16, "downsample": "stride", "features": "flatten"},
        meta={"steps": 40, "optimizer": {"kind": "adam", "lr": 0.005}},
        validation={"every": 20, "episodes": 10},
    )
    work_here(dump(config), str(place / "run"))
    return place / "run"


def test_interval_is_196_standard_errors():
    found = score([0.0, 1.0, 1.0, 0.0])
    assert found.mean == 0.5 and found.interval == pytest.approx(1.96 * math.sqrt(1 / 3) / 2)


def test_evaluation_is_repeatable_and_above_the_untrained_floor(run):
    subject = evaluate.subject_of(evaluate.best(run))
    first, again = (evaluate.evaluate(subject, split="test", episodes=60, workers=1) for _ in range(2))
    floor = evaluate.evaluate(subject._replace(checkpoint=""), split="test", episodes=60, workers=1)
    assert first == again and set(first.scores) == set(Mode)
    assert first.scores[Mode.INDUCTIVE]["accuracy"].mean > floor.scores[Mode.INDUCTIVE]["accuracy"].mean


def test_the_first_episodes_do_not_depend_on_how_many_there_are(run):
    config, index, _ = evaluate.restored(evaluate.subject_of(evaluate.best(run)))
    from pipeline import build

    sampler = build.sampler(config, index, "test")
    other = build.sampler(config.model_copy(update={"seed": 5}), index, "test")
    assert all(sampler.draw(0, n).classes == other.draw(0, n).classes for n in range(20))


@pytest.mark.ray
def test_two_workers_give_the_very_same_figures(cluster, run):
    subject = evaluate.subject_of(evaluate.best(run))
    alone = evaluate.evaluate(subject, split="test", episodes=31, workers=1)
    assert evaluate.evaluate(subject, split="test", episodes=31, workers=2) == alone


def test_a_missing_split_or_run_is_an_input_error(run, tmp_path):
    subject = evaluate.subject_of(evaluate.best(run))
    with pytest.raises(InputError, match="no split 'dev'"):
        evaluate.evaluate(subject, split="dev", episodes=10, workers=1)
    with pytest.raises(InputError, match="at least 2"):
        evaluate.evaluate(subject, split="test", episodes=1, workers=1)
    with pytest.raises(InputError, match="neither a run"):
        evaluate.find(tmp_path / "nothing", tmp_path)


def test_a_run_is_found_by_id_by_folder_and_by_checkpoint(run):
    best = evaluate.best(run)
    found = [evaluate.find(target, run.parent) for target in (run, type(run)(run.name), best)]
    assert found == [best] * 3


def test_a_damaged_best_checkpoint_gives_way_to_the_newest(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path, validation={"every": 2}, checkpoint={"every": 2, "keep": 9})
    work_here(dump(config), str(tmp_path / "run"))
    best = evaluate.best(tmp_path / "run")
    (best / "COMPLETE").unlink()
    assert evaluate.best(tmp_path / "run") != best
    with pytest.raises(InputError, match="COMPLETE"):
        checkpoint.load(best)


def test_a_learner_of_ones_own_is_evaluated_alike(run):
    config, index, learner = evaluate.restored(evaluate.subject_of(evaluate.best(run)))

    def mine(config, index):
        return learner

    subject = Subject(dump(config), "", mine)
    trained = evaluate.subject_of(evaluate.best(run))
    figures = [evaluate.evaluate(s, split="test", episodes=8, workers=1).scores for s in (subject, trained)]
    assert figures[0] == figures[1]
