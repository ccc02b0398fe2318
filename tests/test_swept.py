"""A sweep read back from its folder: ended, going on, killed; with what its pictures and tables show."""

from __future__ import annotations

import csv
import json

import pytest
from drawn import size
from searched import make_sweep, trials

from pipeline import report, spool, sweep_charts, swept
from pipeline.errors import InputError


@pytest.mark.parametrize("has_ledger", [True, False])
def test_a_sweep_that_ended(tmp_path, has_ledger):
    rows = trials(12, objectives=True)
    sweep = swept.read(make_sweep(tmp_path / "s", rows, has_ledger=has_ledger))
    assert sweep.status == "FINISHED" and len(sweep.trials) == 12
    for trial, row in zip(sweep.trials, rows, strict=True):
        assert trial.seconds == pytest.approx(row["seconds"])
        found = (trial.number, trial.state, dict(trial.point), trial.score, trial.said, dict(trial.objectives))
        assert found == tuple(row[key] for key in ("number", "state", "point", "score", "said", "objectives"))
        assert trial.steps == (row["steps"] if row["score"] is not None or not has_ledger else 0)
    scored = [row for row in rows if row["score"] is not None]
    best = max(scored, key=lambda row: row["score"])
    assert sweep.best is not None and sweep.best.number == best["number"] and sweep.best.run.is_dir()
    assert [d.name for d in sweep.dimensions] == [
        *("learner.kind", "learner.rule.lr", "learner.steps", "meta.optimizer.lr", "meta.batch")
    ]
    assert [t.score for t in sweep.ranked][: len(scored)] == sorted((r["score"] for r in scored), reverse=True)


@pytest.mark.parametrize(("status", "state"), [("RUNNING", "running"), ("KILLED", "interrupted")])
def test_a_sweep_that_has_not_ended(tmp_path, status, state):
    """The trial it was in goes on, or can; its result is one of an earlier time, when it had fewer trials."""
    rows = trials(6, failing=0)
    folder = make_sweep(tmp_path / "s", rows, status=status, is_told=False)
    (folder / "result.json").write_text(json.dumps({"trials": rows[:2]}))
    sweep = swept.read(folder)
    assert sweep.status == status and [t.state for t in sweep.trials] == [*(row["state"] for row in rows[:-1]), state]
    assert sweep.trials[-1].score == rows[-1]["score"] and sweep.trials[-1].seconds == 5


def test_what_a_trial_reached_before_it_failed_is_no_score(tmp_path):
    rows = trials(4, failing=0)
    best = max(rows, key=lambda row: row["score"])
    best |= {"state": "failed", "said": "out of memory"}
    sweep = swept.read(make_sweep(tmp_path / "s", rows))
    assert sweep.best is not None and sweep.best.number != best["number"]
    assert sweep.ranked[-1].number == best["number"] and sweep_charts.importance_of(sweep).trials == 3
    made = sweep_charts.draw(sweep, tmp_path / "drawn")
    with next(file for file in made if file.name == "history.csv").open() as file:
        assert max(float(row["best_so_far"]) for row in csv.DictReader(file) if row["best_so_far"]) == sweep.best.score


def test_what_is_no_sweep_is_refused(tmp_path):
    told = spool.Spool(tmp_path)
    told.params({"name": "a"})
    told.close()
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="no sweep"):
            swept.read(folder)


def test_a_damaged_sweep_is_listed_and_refused(tmp_path, capsys):
    for name, file in (("a", "ledger.jsonl"), ("b", "sweep.yaml")):
        (make_sweep(tmp_path / name, trials(2)) / file).write_text("no event\n")
        with pytest.raises(InputError, match=file):
            swept.read(tmp_path / name)
    assert {row.what for row in report.runs(tmp_path)} == {"sweep, damaged"}
    report.print_runs(report.runs(tmp_path))
    assert "sweep, damaged" in capsys.readouterr().out


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


def test_an_axis_spans_what_is_searched(tmp_path):
    sweep = swept.read(make_sweep(tmp_path / "s", []))
    axes = {dimension.name: sweep_charts.axis_of(dimension) for dimension in sweep.dimensions}
    assert axes["meta.optimizer.lr"][1:4] == (0.0001, 0.1, True) and axes["meta.batch"].options == ("2", "4", "8")
    assert axes["learner.steps"][1:4] == (1, 5, False)
    assert axes["meta.optimizer.lr"].at(0.1) == 1 and axes["meta.optimizer.lr"].at(0.01) == pytest.approx(2 / 3)
