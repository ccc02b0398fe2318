"""Evaluation: frozen episodes, the same for any number of workers, intervals, and floors where they belong."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gloo import work_here
from small import small_config

from pipeline import build, checkpoint, conclude, evaluate, prepare, restore, tracking
from pipeline.config import dump
from pipeline.errors import InputError
from pipeline.judging import Judgement, pooled, score, worst_decile
from pipeline.learners.learner import Mode
from pipeline.restore import Subject
from pipeline.spool import history
from pipeline.tasks.classification import Classification


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


def test_evaluation_is_repeatable_on_any_number_of_threads_and_above_the_untrained_floor(run, threads):
    subject, found = restore.subject_of(checkpoint.best(run)), []
    for count in (1, 3):
        threads(count)
        found.append(evaluate.evaluate(subject, split="test", episodes=60, workers=1))
    first, again = found
    floor = evaluate.evaluate(subject._replace(checkpoint=""), split="test", episodes=60, workers=1)
    assert first == again and set(first.scores) == set(Mode)
    assert first.scores[Mode.INDUCTIVE]["accuracy"].mean > floor.scores[Mode.INDUCTIVE]["accuracy"].mean


def test_the_first_episodes_do_not_depend_on_how_many_there_are(run):
    config, index, *_ = restore.restored(restore.subject_of(checkpoint.best(run)))
    sampler = build.sampler(config, index, "test")
    other = build.sampler(config.model_copy(update={"seed": 5}), index, "test")
    assert all(sampler.draw(0, n).classes == other.draw(0, n).classes for n in range(20))


def confident(*rows: tuple[float, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two classes and targets, for (confidence, predicted class, true class)."""
    logits = torch.zeros(len(rows), 2, dtype=torch.float64)
    for row, (confidence, predicted, _) in enumerate(rows):
        logits[row, predicted] = math.log(confidence / (1 - confidence))
    return logits, torch.tensor([true for _, _, true in rows])


def calibration_error(*episodes) -> float:
    task = Classification()
    judgements = [Judgement({"accuracy": 0.0}, task.tally(*episode)) for episode in episodes]
    return pooled(task, judgements, [(0, 1)] * len(episodes))["calibration_error"].mean


def test_calibration_error_by_hand():
    """Bins of a fifteenth: 0.61 and 0.65 share the tenth (0.6, 0.667], 0.9 and 0.92 the fourteenth (0.867, 0.933]."""
    queries = [(0.61, 0, 0), (0.65, 1, 0), (0.9, 0, 0), (0.92, 1, 1), (0.99, 0, 1)]
    gaps = [abs(0.5 - 0.63), abs(1 - 0.91), abs(0 - 0.99)]
    expected = (2 * gaps[0] + 2 * gaps[1] + gaps[2]) / 5
    assert calibration_error(confident(*queries)) == pytest.approx(expected)
    # Pooled, not averaged: the same queries in two episodes, in whatever order, have the same error.
    parts = confident(*queries[:1]), confident(*queries[1:])
    assert calibration_error(*parts) == calibration_error(*parts[::-1]) == pytest.approx(expected)
    assert calibration_error((torch.tensor([[20.0, -20.0]]), torch.tensor([0]))) == pytest.approx(0, abs=1e-9)
    assert math.isnan(calibration_error((torch.full((2, 2), math.nan), torch.tensor([0, 1]))))


def test_the_order_of_episodes_changes_no_bit():
    generator = torch.Generator().manual_seed(0)
    episodes = [(torch.randn(15, 5, generator=generator), torch.arange(5).repeat(3)) for _ in range(40)]
    assert calibration_error(*episodes) == calibration_error(*episodes[::-1])


@pytest.mark.parametrize("predicted", [[0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 0], [2, 1, 1, 0, 1, 0]])
def test_macro_figures_are_those_of_scikit_learn(predicted):
    from sklearn.metrics import precision_recall_fscore_support

    targets = torch.tensor([0, 0, 1, 1, 2, 2])
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 3).float()
    found = Classification().details(logits, targets)
    expected = precision_recall_fscore_support(targets, predicted, average="macro", zero_division=0)
    assert list(found) == ["precision", "recall", "f1"]
    assert [value.item() for value in found.values()] == pytest.approx(list(expected[:3]))


def test_the_worst_decile_is_the_mean_of_the_lowest_tenth():
    assert worst_decile([0.9] * 18 + [0.1, 0.3]) == pytest.approx(0.2)
    assert worst_decile([1.0] * 10 + [0.2]) == pytest.approx(0.6) and worst_decile([0.7, 0.4]) == 0.4


def test_an_evaluation_as_json(run):
    found = evaluate.evaluate(restore.subject_of(checkpoint.best(run)), split="test", episodes=20, workers=1).as_json()
    for mode in Mode:
        told = found[mode.value]
        assert set(told["accuracy"]) == {"mean", "interval", "episodes"}
        # Every class has as many queries, so macro recall is accuracy.
        assert told["recall"]["mean"] == pytest.approx(told["accuracy"]["mean"])
        assert set(told["calibration_error"]) == set(told["worst_decile"]) == {"mean", "episodes"}
        assert told["worst_decile"]["mean"] <= told["accuracy"]["mean"] and 0 <= told["calibration_error"]["mean"] <= 1
    assert found["inner_steps"] is None and found["step"] and found["ways"] == 3


def test_the_end_of_a_run_is_told_in_the_tasks_own_figures(tmp_path):
    """Whatever its headline; figures without an interval, and a loss, which is no share."""
    found = {
        "iou": {"mean": 0.5, "interval": 0.01, "episodes": 9},
        "worst_decile": {"mean": 0.25},
        "loss": {"mean": 1.5},
    }
    test = {"ways": 2, "shots": 1, "queries": 3, "metric": "iou", **{mode.value: found for mode in Mode}}
    result = {"test": test, "untrained": test, "mode": "inductive"}
    told = conclude.finished_text(tmp_path, result, "sqlite:///x", is_sent=True).splitlines()
    assert "9 episodes" in told[1] and told[2] == "inductive      iou 50.00 ± 1.00 %   (untrained 50.00 ± 1.00 %)"
    assert told[4] == "inductive:     worst decile 25.00 %, loss 1.50"
    alone = {**test, **{mode.value: {"iou": found["iou"]} for mode in Mode}}
    assert len(conclude.finished_text(tmp_path, {**result, "test": alone}, "", is_sent=True).splitlines()) == 6


@pytest.mark.ray
def test_two_workers_give_the_very_same_figures(cluster, run):
    subject = restore.subject_of(checkpoint.best(run))
    alone = evaluate.evaluate(subject, split="test", episodes=31, workers=1)
    assert evaluate.evaluate(subject, split="test", episodes=31, workers=2) == alone


def test_a_missing_split_or_run_is_an_input_error(run, tmp_path):
    subject = restore.subject_of(checkpoint.best(run))
    with pytest.raises(InputError, match="no split 'dev'"):
        evaluate.evaluate(subject, split="dev", episodes=10, workers=1)
    with pytest.raises(InputError, match="at least 2"):
        evaluate.evaluate(subject, split="test", episodes=1, workers=1)
    with pytest.raises(InputError, match="neither a run"):
        restore.find(tmp_path / "nothing", tmp_path)


def test_a_run_is_found_by_id_by_folder_and_by_checkpoint(run):
    best = checkpoint.best(run)
    found = [restore.find(target, run.parent) for target in (run, type(run)(run.name), best)]
    assert found == [best] * 3


def test_a_damaged_best_checkpoint_gives_way_to_the_newest(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path, validation={"every": 2}, checkpoint={"every": 2, "keep": 9})
    work_here(dump(config), str(tmp_path / "run"))
    best = checkpoint.best(tmp_path / "run")
    (best / "COMPLETE").unlink()
    assert checkpoint.best(tmp_path / "run") != best
    with pytest.raises(InputError, match="COMPLETE"):
        checkpoint.load(best)


def test_a_learner_of_ones_own_is_evaluated_alike(run):
    config, _, learner, _ = restore.restored(restore.subject_of(checkpoint.best(run)))

    def mine(config, index):
        return learner

    subject = Subject(dump(config), "", mine)
    trained = restore.subject_of(checkpoint.best(run))
    figures = [evaluate.evaluate(s, split="test", episodes=8, workers=1).scores for s in (subject, trained)]
    assert figures[0] == figures[1]


@pytest.fixture(scope="module")
def maml(tmp_path_factory, glyphs_root):
    place = tmp_path_factory.mktemp("maml")
    work_here(dump(small_config(glyphs_root, place)), str(place / "run"))
    return checkpoint.best(place / "run")


def test_inner_steps_at_test_time(maml, run):
    usual, more = (restore.subject_of(maml, test_steps=steps) for steps in (None, 4))
    found = [evaluate.evaluate(subject, split="test", episodes=12, workers=1) for subject in (usual, more)]
    assert [each.inner_steps for each in found] == [1, 4] and found[0].pooled != found[1].pooled
    with pytest.raises(InputError, match="--test-steps 4: learner.kind = prototype .* takes no inner steps"):
        restore.subject_of(checkpoint.best(run), test_steps=4)
    with pytest.raises(InputError, match="learner.test_steps = 0"):
        restore.subject_of(maml, test_steps=0)


def test_what_is_measured_otherwise_is_kept_under_another_name(maml, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "sync", lambda run, uri: None)
    shutil.copytree(maml.parent.parent, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / maml.name
    for steps in (None, 1, 4):
        subject = restore.subject_of(path, test_steps=steps)
        kept = evaluate.keep(evaluate.evaluate(subject, split="test", episodes=2, workers=1), path)
        assert kept and json.loads(kept.read_text())["inner_steps"] == (steps or 1)
    series = [key for key in history(tmp_path / "run").series if key.endswith("inductive/worst_decile")]
    shape = "evaluate/test-3way-1shot-2query-2episodes"
    assert series == [f"{shape}/inductive/worst_decile", f"{shape}-4steps/inductive/worst_decile"]


@pytest.fixture(scope="module")
def other_data(tmp_path_factory, glyphs_root):
    """Packs the test classes once more, as (size, channels)."""
    place = tmp_path_factory.mktemp("other")
    (place / "splits").mkdir()
    names = Path(shutil.copy(glyphs_root.parent / "splits" / "test.txt", place / "splits")).read_text().split()
    for name in names:
        shutil.copytree(glyphs_root.parent / "images" / name, place / "images" / name)

    def pack(size: int, channels: int) -> Path:
        options = {"size": size, "channels": channels, "splits": place / "splits"}
        return prepare.pack(str(place / "images"), place / f"{size}x{channels}", layout="folder", **options).root

    return pack


def first_episode(subject: Subject):
    config, index, _, channels = restore.restored(subject)
    drawn = build.sampler(config, index, "test").draw(0, 0)
    return build.reader(config, index, channels).episode(drawn)


@pytest.mark.parametrize(("size", "within"), [(16, 1e-6), (20, 0.05)])
def test_other_sizes_and_channels_come_as_the_model_takes_them(run, other_data, size, within):
    """The same samples in colour are the same images; at 20 pixels they are made 16 again, and look alike."""
    path, data = checkpoint.best(run), other_data(size, 3)
    subjects = restore.subject_of(path), restore.subject_of(path, data=data)
    assert restore.restored(subjects[1]).index.shape(0) == (size, size, 3)
    own, other = (first_episode(subject).query.inputs for subject in subjects)
    assert other.shape == own.shape == (6, 1, 16, 16) and (other - own).abs().mean() < within
    scores = [evaluate.evaluate(subject, split="test", episodes=60, workers=1).scores for subject in subjects]
    means = [found[Mode.TRANSDUCTIVE]["accuracy"].mean for found in scores]
    assert means[1] == pytest.approx(means[0], abs=0.1)


def test_grey_images_for_a_model_of_colour_ones(tmp_path, glyphs_root, other_data):
    colour = other_data(16, 3)
    splits = {"train": "test", "validation": "test"}
    work_here(dump(small_config(colour, tmp_path, data=splits, learner={"kind": "prototype"})), str(tmp_path / "run"))
    path = checkpoint.best(tmp_path / "run")
    own, grey = (restore.subject_of(path, data=data, asked={"ways": 4}) for data in (None, glyphs_root))
    assert restore.restored(grey).channels == 3
    figures = [evaluate.evaluate(s, split="test", episodes=20, workers=1).scores[Mode.INDUCTIVE] for s in (own, grey)]
    assert figures[0]["accuracy"].mean == pytest.approx(figures[1]["accuracy"].mean, abs=0.2)


def test_where_the_training_data_are_gone_the_checkpoint_says_what_images_they_had(
    run, glyphs_root, other_data, tmp_path
):
    subject = restore.subject_of(checkpoint.best(run))
    gone = {**subject.config, "data": {**subject.config["data"], "root": "/nowhere"}}
    moved = subject._replace(config=gone, data=str(glyphs_root))
    found = [evaluate.evaluate(each, split="test", episodes=8, workers=1) for each in (subject, moved)]
    assert found[0] == found[1]
    # In colour and of another size, they are made what the model takes, as where the training data are there.
    colour = str(other_data(20, 3))
    both = [restore.restored(each._replace(data=colour)) for each in (subject, moved)]
    assert [each.channels for each in both] == [1, 1] and both[0].config.data.size == both[1].config.data.size == 16
    # The base classes of a supervised learner are not among what a checkpoint keeps of its data.
    supervised = small_config(glyphs_root, tmp_path, learner={"kind": "supervised", "samples": 2}, meta={"steps": 1})
    work_here(dump(supervised), str(tmp_path / "run"))
    subject = restore.subject_of(checkpoint.best(tmp_path / "run"), data=Path(colour))
    gone = {**subject.config, "data": {**subject.config["data"], "root": "/nowhere", "train": "test"}}
    with pytest.raises(InputError, match="holds no weights of a learner for the images of .* bring back /nowhere"):
        restore.restored(subject._replace(config=gone))


def test_a_checkpoint_that_does_not_know_its_images_needs_the_training_data(run, glyphs_root, tmp_path):
    saved = checkpoint.load(checkpoint.best(run))
    state = {key: value for key, value in saved.state.items() if key != "images"}
    subject = restore.subject_of(checkpoint.save(tmp_path, saved._replace(state=state)), data=glyphs_root)
    assert restore.restored(subject).channels == 1
    gone = {**subject.config, "data": {**subject.config["data"], "root": "/nowhere"}}
    with pytest.raises(
        InputError, match="/nowhere is gone, and the checkpoint does not say of what size its images wer"
    ):
        restore.restored(subject._replace(config=gone))


@pytest.mark.parametrize(
    ("trained", "other", "said"),
    [
        ((16, 16, 3), (16, 16, 2), "2 channels and the model takes 3"),
        ((16, 12, 1), (16, 16, 1), "only squares are resized"),
    ],
)
def test_images_that_cannot_be_converted_are_an_input_error(run, trained, other, said):
    config = restore.restored(restore.subject_of(checkpoint.best(run))).config
    indexes = [
        SimpleNamespace(root="data", encoder="", shape=lambda row, shape=shape: shape) for shape in (trained, other)
    ]
    with pytest.raises(InputError, match=said):
        restore.read_alike(config, *indexes)
