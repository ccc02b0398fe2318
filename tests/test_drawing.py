"""What is drawn of a run: the episodes that stand out, before and after adapting, and nothing that could cost it its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from gloo import work_here
from small import small_config

from pipeline import build, charts, checkpoint, conclude, drawing, evaluate, restore, tracking
from pipeline.config import dump
from pipeline.data.index import Index
from pipeline.errors import InputError
from pipeline.learners.learner import Mode
from pipeline.tasks.classification import Classification, confusion
from pipeline.tracking import SyncReport

LEARNERS = {
    "gradient": {"kind": "gradient", "rule": {"kind": "sgd", "lr": 0.5}, "steps": 3},
    "prototype": {"kind": "prototype"},
}


@pytest.fixture(scope="module", params=LEARNERS)
def ended(request, tmp_path_factory, glyphs_root):
    """A run that was trained and concluded, and its result."""
    place = tmp_path_factory.mktemp("drawn")
    config = small_config(
        glyphs_root, place, learner=LEARNERS[request.param], meta={"steps": 4}, evaluate={"episodes": 7}
    )
    run = place / "run"
    work_here(dump(config), str(run))
    return run, conclude.conclude(run, config, Index.open(glyphs_root), build.learner)


def told(run, place: str) -> dict:
    return json.loads((run / "pictures" / f"episode-{place}.json").read_text())


def test_best_median_and_worst_are_those_of_the_evaluation(ended):
    run, result = ended
    subject = restore.subject_of(checkpoint.best(run))
    _, rows = evaluate.measure(subject, split="test", episodes=7, workers=1)
    values = [row[Mode.INDUCTIVE].metrics["accuracy"] for row in rows]
    found = {place: told(run, place) for place in ("best", "median", "worst")}
    for place, value in (("best", max(values)), ("median", sorted(values)[3]), ("worst", min(values))):
        assert found[place]["accuracy"] == value == values[found[place]["episode"]], place
    assert found["best"]["episode"] == values.index(max(values))
    assert found["worst"]["episode"] == values.index(min(values))
    assert sum(values) / 7 == pytest.approx(result["test"]["inductive"]["accuracy"]["mean"])


def test_before_and_after_are_told_with_their_scores(ended):
    """What is said after adapting is what was evaluated; before is no inner step, or the learner that was not trained."""
    run, _ = ended
    subject = restore.subject_of(checkpoint.best(run))
    found, number = restore.restored(subject), told(run, "worst")["episode"]
    episode = build.reader(found.config, found.index).episode(
        build.sampler(found.config, found.index, "test").draw(0, number)
    )
    measured = charts.Measured(
        found.config, found.index, found.learner, lambda episode: episode, Mode.INDUCTIVE, [], []
    )
    untrained = restore.restored(subject._replace(checkpoint="")).learner
    said = drawing.said(measured, lambda: untrained, episode)
    adapted = found.learner.adapt(episode.support, episode.ways, mode=Mode.INDUCTIVE)(episode.query.inputs)
    assert torch.equal(said[1].predictions, adapted)
    beside = told(run, "worst")
    assert beside[said[1].when]["accuracy"] == beside["accuracy"]
    assert beside[said[0].when]["taken_for"] == said[0].predictions.argmax(-1).tolist()
    if found.config.learner.kind == "gradient":
        assert [moment.when for moment in said] == ["before adapting", "after 3 inner steps"]
        model = found.learner.model
        assert said[0].predictions.shape == adapted.shape and not torch.equal(said[0].predictions, adapted)
        assert model.head.bias.shape == (3,)
    else:
        assert [moment.when for moment in said] == ["before training", "after training"]
        assert torch.equal(
            said[0].predictions,
            untrained.adapt(episode.support, episode.ways, mode=Mode.INDUCTIVE)(episode.query.inputs),
        )


def test_where_nothing_was_trained_there_is_no_before(glyphs_root, tmp_path):
    config = small_config(glyphs_root, tmp_path, learner={"kind": "prototype"}, meta={"steps": 0})
    run = tmp_path / "run"
    work_here(dump(config), str(run))
    conclude.conclude(run, config, Index.open(glyphs_root), build.learner)
    assert "nothing trained" in told(run, "best") and "before training" not in told(run, "best")


def test_what_cannot_be_drawn_costs_a_run_a_picture_and_no_more(ended, tmp_path, monkeypatch, capsys):
    run = Path(shutil.copytree(ended[0], tmp_path / "run"))
    subject = restore.subject_of(checkpoint.best(run))
    found, rows = evaluate.measure(subject, split="test", episodes=4, workers=1)

    def broken(*_, **__):
        raise RuntimeError("no ink\nat all")

    monkeypatch.setattr(charts, "confusion_picture", broken)
    made = {path.stem for path in drawing.draw(run, subject, found, rows, floor=0.3)}
    said = capsys.readouterr().err
    assert f"warning: {run}/pictures/confusion.png could not be drawn (RuntimeError: no ink); metashard show" in said
    assert said.count("warning") == 1 and made >= {"episode-best", "losses"} and "confusion" not in made


def test_a_run_is_drawn_anew_with_the_same_pictures(ended, monkeypatch):
    run, _ = ended
    sent = []
    monkeypatch.setattr(tracking, "sync", lambda run, uri: sent.append(run) or SyncReport("", 0, (), True, ""))
    before = {path.name: path.read_bytes() for path in (run / "pictures").iterdir()}
    for path in (run / "pictures").iterdir():
        path.unlink()
    conclude.redraw(run)
    assert {path.name: path.read_bytes() for path in (run / "pictures").iterdir()} == before and sent == [run]


def test_a_run_that_has_not_ended_is_not_drawn_anew(tmp_path):
    with pytest.raises(InputError, match="its training has not ended"):
        conclude.redraw(tmp_path)


def test_confusion_by_hand():
    """Class 5 is in both episodes, with 2 and then with 9; it is taken for 2 once of two times, never for 9."""
    task = Classification()
    first = task.counts(torch.eye(2)[[0, 1, 0, 1]], torch.tensor([0, 0, 1, 1]))
    assert first.tolist() == [[1, 1], [1, 1]]
    second = task.counts(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1]))
    names, shares = confusion(torch.stack([first, second]), [(5, 2), (9, 5)])
    assert names == [2, 5, 9]
    expected = [[0.5, 0.5, float("nan")], [0.5, 0.75, 0.0], [float("nan"), 0.0, 1.0]]
    assert torch.allclose(shares, torch.tensor(expected, dtype=torch.float64), equal_nan=True)
