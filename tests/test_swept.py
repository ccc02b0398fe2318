"""A sweep read back from its folder: ended, going on, killed; with what its pictures and tables show."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from drawn import size
from searched import make_sweep, trials

from pipeline import report, spool, sweep_charts, swept, tables
from pipeline.errors import InputError
from pipeline.swept import Dimension


def test_a_sweep_that_ended(tmp_path):
    rows = trials(12)
    sweep = swept.read(make_sweep(tmp_path / "s", rows))
    assert [t.number for t in sweep.trials] == list(range(12)) and sweep.status == "FINISHED"
    assert [dict(t.point) for t in sweep.trials] == [row["point"] for row in rows]
    scored = [row for row in rows if row["score"] is not None]
    best = max(scored, key=lambda row: row["score"])
    assert sweep.best is not None and sweep.best.number == best["number"] and sweep.best.run.is_dir()
    kinds = {d.name: (d.kind, d.ends, d.is_log, d.is_choice) for d in sweep.dimensions}
    assert kinds["learner.kind"] == ("choice", ("gradient", "prototype", "ridge"), False, True)
    assert kinds["learner.rule.lr"] == ("loguniform", (0.01, 1.0), True, False)
    assert [t.score for t in sweep.ranked][: len(scored)] == sorted((r["score"] for r in scored), reverse=True)


@pytest.mark.parametrize("damaged", [None, "{", "[]", '{"trials": 7}', '{"trials": [1, {"number": "x"}], "best": {}}'])
def test_a_killed_sweep_is_known_by_its_trials(tmp_path, damaged):
    """As far as their own folders and the sweep's spool tell, with what is no result left aside."""
    rows = trials(6)
    folder = make_sweep(tmp_path / "s", rows, status="RUNNING", is_told=False)
    if damaged is not None:
        (folder / "result.json").write_text(damaged)
    sweep = swept.read(folder)
    assert sweep.status == "RUNNING"
    for trial, row in zip(sweep.trials, rows, strict=True):
        assert (trial.state, trial.score, trial.steps) == (row["state"], row["score"], row["steps"])
        assert dict(trial.point) == pytest.approx(row["point"]) and trial.seconds == row["seconds"]


def test_a_trial_that_the_sweep_has_not_heard_of_is_read_from_its_own_spool(tmp_path):
    folder = make_sweep(tmp_path / "s", trials(2, failing=0))
    new = spool.Spool(_made(folder / "trials" / "0002"))
    for step in (1, 2, 3):
        new.metrics(step, {"train/loss": 1.0, "time/step_s": 0.5, "validation/score": 0.9 - step / 10})
    last = swept.read(folder).trials[-1]
    assert (last.number, last.state, last.steps, last.seconds) == (2, "running", 3, 1.5)
    assert last.score == pytest.approx(0.8) and last.point == {}
    new.close()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_what_is_no_sweep_is_refused(tmp_path):
    told = spool.Spool(tmp_path)
    told.params({"name": "a"})
    told.close()
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="no sweep"):
            swept.read(folder)


def test_names_that_params_cannot_have_and_ranges_that_were_cut(tmp_path):
    """Of two options with the same key the dimensions have names with brackets; a list of thousands is cut by MLflow's limit."""
    point = {"learner.steps (gradient)": 3, "learner.steps (leo)": 2, "model": '{"kind": "conv4"}'}
    told = spool.Spool(_made(tmp_path / "s"))
    texts = {
        "learner.steps (gradient)": "int [1, 5] where learner.kind is gradient",
        "learner.steps (leo)": "int [1, 5]",
    }
    told.params({f"space.{name}": text for name, text in texts.items()} | {"space.model": 'choice ["a", '})
    told.tags({spool.KIND: "sweep"})
    told.close()
    (tmp_path / "s" / "result.json").write_text(json.dumps({"trials": [{"number": 0, "point": point, "score": 0.5}]}))
    sweep = swept.read(tmp_path / "s")
    assert {d.name: d.kind for d in sweep.dimensions} == dict(zip(point, ("int", "int", "choice"), strict=True))
    assert tables.trials(sweep).rows[0][-3:] == ["3", "2", '{"kind": "conv4"}']


def test_runs_lists_sweeps_and_not_their_trials(tmp_path, capsys):
    make_sweep(tmp_path / "done", trials(12))
    make_sweep(tmp_path / "short", trials(5), status="RUNNING", is_told=False)
    losses = make_sweep(tmp_path / "losses", trials(4, failing=0), metric="train/loss", mode="min")
    rows = {row.id: row for row in report.runs(tmp_path)}
    assert rows.keys() == {"done", "short", "losses"}
    assert rows["done"].what == "sweep of 12 trials" and rows["short"].what == "sweep, 5 of 12 trials"
    assert rows["done"].validation == max(row["score"] for row in trials(12) if row["score"])
    least = min(row["score"] for row in trials(4, failing=0))
    assert rows["losses"].what == f"sweep of 4 trials, best train/loss {least:.4g}"
    assert rows["losses"].validation != rows["losses"].validation
    best = swept.read(losses).best
    assert best is not None
    score = {"accuracy": {"mean": 0.8125, "interval": 0.01, "episodes": 600}}
    told = {"test": {"inductive": score, "metric": "accuracy"}, "mode": "inductive"}
    (best.run / "result.json").write_text(json.dumps(told))
    report.print_runs(report.runs(tmp_path))
    lines = capsys.readouterr().out
    assert "81.25 ± 1.00 %" in lines and "sweep of 12 trials" in lines and "0000" not in lines


def test_trials_of_a_sweep_are_a_table_the_best_first(tmp_path, capsys):
    rows = trials(12)
    rows[0]["point"]["learner.kind"] = "[bold]ridge"
    sweep = swept.read(make_sweep(tmp_path / "s", rows))
    report.print_trials(sweep)
    lines = capsys.readouterr().out.splitlines()
    assert "sweep of 12 trials, finished" in lines[0]
    assert sweep.best is not None and lines[4].split()[0] == f"{sweep.best.number:04d}"
    assert "[bold]ridge" in "\n".join(lines) and sum("failed" in line for line in lines) == sum(
        row["state"] == "failed" for row in rows
    )


@pytest.mark.parametrize("many", [0, 1, 12])
def test_pictures_of_a_sweep_have_their_numbers_beside(tmp_path, many):
    rows = trials(many, failing=0.2, objectives=True)
    sweep = swept.read(make_sweep(tmp_path / "s", rows))
    made = sweep_charts.draw(sweep, tmp_path / "drawn")
    names = {file.name for file in made}
    assert {file.name for file in (tmp_path / "drawn").iterdir()} == names
    pictures = {"history", "parallel", "front-parameters"} if many else set()
    assert pictures <= {file.stem for file in made if file.suffix == ".png"} <= pictures | {"importance"}
    assert {file.stem for file in made} == (pictures | {"importance"} if many else set())
    if many:
        with (tmp_path / "drawn" / "parallel.csv").open() as file:
            told = list(csv.DictReader(file))
        assert [row["validation/score"] for row in told] == [
            "" if r["score"] is None else str(r["score"]) for r in rows
        ]
        assert [row["learner.rule.lr"] for row in told] == [
            str(row["point"].get("learner.rule.lr", "")) for row in rows
        ]
        assert all(size(file)[0] > 300 for file in made if file.suffix == ".png")


def test_a_picture_that_fails_costs_the_others_nothing(tmp_path, capsys, monkeypatch):
    sweep = swept.read(make_sweep(tmp_path / "s", trials(8)))
    monkeypatch.setattr(sweep_charts.sweeps, "history_picture", lambda *_, **__: 1 / 0)
    made = sweep_charts.draw(sweep, tmp_path / "drawn")
    assert "parallel.png" in {file.name for file in made} and "history.png" not in {file.name for file in made}
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_front_has_those_that_no_other_beats():
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 6.0), (3.0, 1.0), (3.0, 1.0), (4.0, 1.0)]
    assert sweep_charts.non_dominated(points) == [True, True, False, True, True, False]


def test_an_axis_spans_what_was_searched_and_what_was_tried(tmp_path):
    sweep = swept.read(make_sweep(tmp_path / "s", trials(3, failing=0)))
    axes = {d.name: sweep_charts.axis_of(d, sweep.trials) for d in sweep.dimensions}
    assert axes["meta.optimizer.lr"][1:4] == (0.0001, 0.1, True) and axes["meta.batch"].options == ("2", "4", "8")
    assert axes["meta.optimizer.lr"].at(0.1) == 1 and axes["meta.optimizer.lr"].at(0.01) == pytest.approx(2 / 3)
    wide = sweep_charts.axis_of(Dimension("meta.optimizer.lr", "loguniform", (1.0, 2.0), ""), sweep.trials)
    assert wide.low == min(trial.point["meta.optimizer.lr"] for trial in sweep.trials) and wide.high == 2
    unknown = sweep_charts.axis_of(Dimension("learner.kind", "", (), ""), sweep.trials)
    assert set(unknown.options) == {trial.point["learner.kind"] for trial in sweep.trials}
