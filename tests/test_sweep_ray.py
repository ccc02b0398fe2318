"""Sweeps under Ray Tune: trials as runs, one worker or several, failures, stopping, populations, and MLflow's tree of runs."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from test_sweep import CONFIGS, planned, tree_of

from pipeline import config, page, spool, sweep, train
from pipeline.conclude import RESULT_FILE
from pipeline.errors import InputError, RunFailed
from pipeline.ledger import FAILED, FINISHED, STOPPED, Ledger
from pipeline.shipment import client_of, read_json
from pipeline.sweep_plan import load, plan_of
from pipeline.swept import BEST, CONFIG
from pipeline.swept import read as read_folder

pytestmark = pytest.mark.ray


def swept(plan, **options):
    said: list[str] = []
    return sweep.sweep(plan, tell=said.append, **options), said


def runs_in(uri: str):
    client = client_of(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(experiments, max_results=100)


def test_a_sweep_is_one_run_with_a_child_for_every_trial_and_a_config_ready_to_run(cluster, glyphs_root, tmp_path):
    both = [{"kind": "gradient", "rule": {"kind": "sgd", "lr": {"loguniform": [0.01, 1]}}}, {"kind": "prototype"}]
    tree = tree_of(glyphs_root, tmp_path, {"trials": 4, "seed": 1})
    plan = plan_of({**tree, "learner": {"choice": both}}, "s.yaml")
    found, said = swept(plan)
    rows = found.result["trials"]
    assert [row["state"] for row in rows] == ["finished"] * 4
    assert {row["point"]["learner.kind"] for row in rows} == {"gradient", "prototype"}
    assert sum("finished" in line for line in said) == 4
    best = rows[found.result["best"]]
    assert best["score"] == max(row["score"] for row in rows)
    # A trial is an ordinary run: the same config, trained by itself, gives the same values.
    alone = train.fit(plan.config(best["point"]).model_copy(update={"runs": tmp_path / "alone"}))
    ours = spool.history(found.folder / best["run"]).series["validation/score"]
    assert ours == spool.history(alone.folder).series["validation/score"]
    ready = config.load(found.folder / BEST)
    assert ready.learner == plan.config(best["point"]).learner and ready.name == "small-best"
    # MLflow's tree.
    runs = runs_in(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(run.info.run_name for run in children) == [f"small-{n:04d}" for n in range(4)]
    assert all(run.info.status == "FINISHED" for run in runs)
    assert parent.data.params["space.learner.rule.lr"].startswith("loguniform") and parent.data.params["seed"] == "1"
    artifacts = {
        file.path for file in client_of(f"sqlite:///{tmp_path / 'mlflow.db'}").list_artifacts(parent.info.run_id)
    }
    assert {CONFIG, BEST, RESULT_FILE, "pictures"} <= artifacts
    # What is told of it is what it was.
    known = read_folder(found.folder)
    assert [dict(trial.point) for trial in known.trials] == [row["point"] for row in rows]
    assert known.best is not None and known.best.number == best["number"]
    assert {file.stem for file in (found.folder / "pictures").glob("*.csv")} == {"history", "parallel", "importance"}
    assert found.result["importance"].keys() == {"learner.kind", "learner.rule.lr"}
    text = page.tell(found.folder, tmp_path).read_text()
    assert "metashard sweep sweep.yaml" in text and text.count("<img") > 5


def test_a_trial_that_fails_is_tried_again_and_then_reported_and_the_sweep_goes_on(cluster, glyphs_root, tmp_path):
    rates = {"learner.rule.lr": 1e30}, {"learner.rule.lr": 0.1}
    plan = planned(
        glyphs_root,
        tmp_path,
        {"trials": 2, "start": rates, "retries": 1, "concurrent": 1},
        learner={"rule": {"kind": "sgd", "lr": {"loguniform": [0.01, 1e30]}}},
        meta={"skip_limit": 2},
    )
    found, said = swept(plan)
    first, second = found.result["trials"]
    assert (first["state"], first["attempts"], second["state"]) == (FAILED, 2, FINISHED)
    assert "not finite in 2 meta-steps in a row" in first["said"] and found.result["best"] == 1
    assert sum("tried again" in line for line in said) == 1
    history = spool.history(found.folder / first["run"])
    assert history.status == "FAILED" and "not finite" in history.tags["sweep.error"]


def test_where_all_trials_fail_the_first_error_is_told_once(cluster, glyphs_root, tmp_path):
    plan = planned(glyphs_root, tmp_path, {"trials": 2, "retries": 0, "metric": "validation/nothing"})
    with pytest.raises(
        RunFailed, match="all 2 trials failed; the first: .*sweep.metric = validation/nothing was never reported"
    ) as told:
        swept(plan)
    assert str(told.value).count("never reported") == 1
    assert spool.history(tmp_path / "small").status == "FAILED"


def test_what_has_ended_is_kept_and_what_was_begun_goes_on(cluster, glyphs_root, tmp_path):
    """As after a kill: the ledger is cut where the third of five trials was at work."""
    start = {"trials": 5, "concurrent": 1, "seed": 5}
    whole, _ = swept(planned(glyphs_root, tmp_path / "whole", start))
    broken, _ = swept(planned(glyphs_root, tmp_path / "broken", start))
    file = broken.folder / "ledger.jsonl"
    lines = file.read_text().splitlines()
    cut = next(n for n, line in enumerate(lines) if '"begun","trial":2' in line) + 1
    file.write_text("\n".join(lines[:cut]) + "\n" + lines[cut][:20])
    for number in (3, 4):
        for path in sorted((broken.folder / "trials" / f"{number:04d}").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (broken.folder / "trials" / f"{number:04d}").rmdir()
    (tmp_path / "broken" / "mlflow.db").unlink()
    again, said = swept(planned(glyphs_root, tmp_path / "broken", start), resume=broken.folder)
    assert sum("finished" in line for line in said) == 3
    known = ("number", "state", "point", "score", "steps")
    assert [[row[key] for key in known] for row in again.result["trials"]] == [
        [row[key] for key in known] for row in whole.result["trials"]
    ]
    assert again.result["best"] == whole.result["best"]
    # A sweep that has ended has nothing left to do.
    done, said = swept(planned(glyphs_root, tmp_path / "broken", start), resume=broken.folder)
    assert done.result["best"] == whole.result["best"] and not said
    runs = runs_in(f"sqlite:///{tmp_path / 'broken' / 'mlflow.db'}")
    assert sorted(run.info.run_name for run in runs) == ["small", *(f"small-{n:04d}" for n in range(5))]


@pytest.mark.parametrize(
    "scheduler",
    [{"kind": "asha", "grace": 2, "reduction": 2}, {"kind": "median", "grace": 2, "least": 2}],
    ids=["asha", "median"],
)
def test_a_scheduler_stops_the_worse_early(cluster, glyphs_root, tmp_path, scheduler):
    start = [{"learner.rule.lr": rate} for rate in (0.5, 0.3, 0.011, 0.012)]
    asked = {"trials": 4, "start": start, "concurrent": 1, "scheduler": scheduler}
    plan = planned(glyphs_root, tmp_path, asked, meta={"steps": 12}, validation={"every": 2, "episodes": 20})
    found, _ = swept(plan)
    states = [row["state"] for row in found.result["trials"]]
    assert states[0] == FINISHED and STOPPED in states
    for row in found.result["trials"]:
        assert (row["steps"] == 12) == (row["state"] == FINISHED)


def test_a_budget_of_meta_steps_ends_the_sweep(cluster, glyphs_root, tmp_path):
    plan = planned(glyphs_root, tmp_path, {"trials": None, "meta_steps": 20, "concurrent": 1})
    found, _ = swept(plan)
    assert 3 <= len(found.result["trials"]) <= 5
    assert 18 <= sum(row["steps"] for row in found.result["trials"]) <= 27


@pytest.mark.slow
def test_trials_of_several_workers_are_groups_of_ray_train_and_give_the_same(cluster, glyphs_root, tmp_path):
    asked = {"trials": 1, "start": [{"learner.rule.lr": 0.1}]}
    both = {"meta": {"precision": "float64"}}
    alone, _ = swept(planned(glyphs_root, tmp_path / "alone", asked, **both))
    group, _ = swept(planned(glyphs_root, tmp_path / "group", asked, workers={"count": 2}, **both))
    one, two = (spool.history(found.folder / "trials" / "0000").series for found in (alone, group))
    assert two["validation/score"] == pytest.approx(one["validation/score"])
    assert list(two["train/loss"].values()) == pytest.approx(list(one["train/loss"].values()), abs=1e-8)


def test_the_worst_of_a_population_goes_on_from_the_best_with_another_rate(cluster, glyphs_root, tmp_path):
    start = [{"learner.rule.lr": rate} for rate in (0.5, 0.4, 0.3, 0.010001)]
    pbt = {"kind": "pbt", "every": 3, "quantile": 0.25, "resample": 0.0}
    asked = {"trials": 4, "start": start, "scheduler": pbt}
    plan = planned(
        glyphs_root,
        tmp_path,
        asked,
        meta={"steps": 9},
        validation={"every": 3, "episodes": 40},
        checkpoint={"keep": 20},
    )
    found, _ = swept(plan)
    moved = [row for row in found.result["trials"] if row["exchanges"]]
    assert moved
    for row in moved:
        exchange = row["exchanges"][0]
        theirs = found.folder / "trials" / f"{exchange['source']:04d}" / "checkpoints" / f"step-{exchange['step']:08d}"
        ours = found.folder / row["run"] / "checkpoints" / f"step-{exchange['step']:08d}"
        if exchange["step"] < 9 and len(row["exchanges"]) == 1:
            from pipeline import checkpoint

            copied, source = checkpoint.load(ours), checkpoint.load(theirs)
            assert all(torch.equal(value, source.learner[name]) for name, value in copied.learner.items())
            own = yaml.safe_load((found.folder / row["run"] / "config.yaml").read_text())
            assert own["learner"]["rule"]["lr"] == row["point"]["learner.rule.lr"]
            assert f"from trial {exchange['source']}" in spool.history(found.folder / row["run"]).tags["exchange.1"]
    with Ledger(found.folder) as ledger:
        assert all(trial.steps == 9 for trial in ledger.trials.values())


def test_a_storage_that_workers_cannot_write_is_refused_before_anything_begins(cluster, glyphs_root, tmp_path):
    (tmp_path / "file").touch()
    asked = {"scheduler": {"kind": "pbt", "every": 3}, "storage": str(tmp_path / "file" / "inside")}
    with pytest.raises(
        InputError, match="inside cannot be used by the workers: node .*name a folder that all nodes share"
    ):
        swept(planned(glyphs_root, tmp_path / "runs", asked))
    assert not (tmp_path / "runs").exists()


def test_a_trial_for_which_there_is_no_room_is_refused_and_not_waited_for(cluster, glyphs_root, tmp_path):
    with pytest.raises(InputError, match="64 workers were asked for"):
        swept(planned(glyphs_root, tmp_path / "runs", meta={"batch": 64}, workers={"count": 64, "wait_s": 0}))
    assert not (tmp_path / "runs").exists()


def test_objectives_are_measured_and_weighed(cluster, glyphs_root, tmp_path):
    asked = {"trials": 3, "search": {"kind": "tpe", "startup": 2}, "objectives": ["parameters", "adaptation_s"]}
    plan = planned(glyphs_root, tmp_path, asked, model={"width": {"choice": [4, 6, 8]}})
    found, _ = swept(plan)
    for row in found.result["trials"]:
        assert row["objectives"]["adaptation_s"] > 0
    sizes = {row["point"]["model.width"]: row["objectives"]["parameters"] for row in found.result["trials"]}
    assert sorted(sizes, key=lambda width: sizes[width]) == sorted(sizes)


def test_a_server_that_is_away_stops_no_sweep_and_loses_nothing(cluster, glyphs_root, tmp_path):
    away = {"uri": "http://127.0.0.1:9", "flush_s": 1.0}
    found, _ = swept(planned(glyphs_root, tmp_path, {"trials": 2}, tracking=away))
    assert [row["state"] for row in found.result["trials"]] == [FINISHED] * 2
    assert "MLflow has not got everything" in found.text
    from pipeline import tracking

    uri = f"sqlite:///{tmp_path / 'later.db'}"
    report = tracking.sync(found.folder, uri=uri)
    assert report.complete and len(runs_in(uri)) == 3
    assert json.loads((found.folder / "trials" / "0001" / "spool.sent.json").read_text())["run_id"]
    assert read_json(found.folder / "spool.sent.json")["uri"] == uri


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_finds_something(cluster, glyphs_root, tmp_path, path):
    brief = ["meta.steps=4", "meta.batch=2", "validation.every=2", "validation.episodes=4", "evaluate.queries=2"]
    few = ["evaluate.episodes=4", "engine.mode=loop", "sweep.trials=4", f"data.root={glyphs_root}", f"runs={tmp_path}"]
    grace = ["sweep.scheduler.grace=2"] if "learners" in path.stem else []
    every = ["sweep.scheduler.every=2"] if "population" in path.stem else []
    found, _ = swept(load(path, [*brief, *few, *grace, *every]))
    assert len(found.result["trials"]) == 4 and config.load(found.folder / BEST)
