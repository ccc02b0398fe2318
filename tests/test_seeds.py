"""Several seeds: trained one after another and never twice, told with their spread, refused where more than the seed differs."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from gloo import work_here
from small import small_config

from pipeline import archive, conclude, drawing, evaluate, report, restore, seeds, tracking, train
from pipeline.build import learner as built
from pipeline.config import dump
from pipeline.data.index import Index
from pipeline.errors import InputError
from pipeline.learners.learner import Mode
from pipeline.run_folder import new_run
from pipeline.shipment import Target, write_json
from pipeline.spool import Spool, history
from pipeline.tracking import SyncReport

TINY = {
    "learner": {"kind": "prototype"},
    "model": {"width": 4},
    "meta": {"steps": 2, "batch": 2},
    "validation": {"every": 2, "episodes": 2},
    "evaluate": {"episodes": 3},
}


@pytest.fixture(autouse=True)
def nothing_is_sent(monkeypatch) -> list[str]:
    """No MLflow, and no pictures: both take longer than these runs."""
    sent: list[str] = []

    class Quiet:
        def __init__(self, run_dir: Path, **target: str):
            tracking.write_target(run_dir, Target(target["uri"], target["experiment"], target["name"]))

        def start(self) -> None:
            pass

        def stop(self, timeout_s: float) -> bool:
            return True

    monkeypatch.setattr(tracking, "Sender", Quiet)
    monkeypatch.setattr(tracking, "sync", lambda run, uri: sent.append(run.name) or SyncReport("", 0, (), True, ""))
    monkeypatch.setattr(drawing, "draw", lambda *_, **__: [])
    return sent


@pytest.fixture(scope="module")
def runs(tmp_path_factory, glyphs_root) -> Path:
    """Runs that differ in their seeds, and one that differs in more."""
    place = tmp_path_factory.mktemp("seeds") / "runs"
    for name, more in {"a": {}, "b": {"seed": 1}, "other": {"seed": 2, "meta": {"steps": 1, "batch": 2}}}.items():
        work_here(dump(small_config(glyphs_root, place, **{**TINY, **more})), str(place / name))
    return place


ASKED = {"split": "test", "episodes": 3, "workers": 1}


def both(runs: Path, *names: str) -> seeds.Summary:
    return seeds.evaluate_all([Path(name) for name in names], runs, **ASKED)


def test_a_spread_by_hand():
    """Values ½ and 7/10: mean 6/10, squared deviations 1/100 each over n − 1 = 1."""
    found = seeds.spread([{"mean": 0.5, "interval": 0.1}, {"mean": 0.7, "interval": 0.3}])
    assert found.mean == pytest.approx(0.6) and found.deviation == pytest.approx(math.sqrt(0.02))
    assert found.within == pytest.approx(0.2) and found.values == [0.5, 0.7]
    assert seeds.spread([{"mean": 1.0}, {"mean": 1.0}]) == (1.0, 0.0, None, [1.0, 1.0])


def test_seeds_go_on_where_they_were_stopped_and_are_not_trained_twice(tmp_path, glyphs_root, monkeypatch):
    config, told = small_config(glyphs_root, tmp_path, **TINY, seed=5), []
    with monkeypatch.context() as stopping:
        # The second of them hears the wish to stop.
        stopping.setattr(archive.Folder, "stop_asked", lambda self: len(list(tmp_path.glob("*/config.yaml"))) == 2)
        first = seeds.train_all(config, 3, tell=told.append)
    assert [bool(run.result) for run in first] == [True, False]
    assert told[-1].endswith("go on with the same command")
    trained: list[int] = []
    plain = train.work
    monkeypatch.setattr(
        train, "work", lambda job, **options: trained.append(job.config["seed"]) or plain(job, **options)
    )
    second = seeds.train_all(config, 3)
    assert trained == [6, 7] and [run.folder for run in second[:2]] == [run.folder for run in first]
    assert second[0].result == first[0].result and all(run.result for run in second)
    third = seeds.train_all(config, 3, tell=told.append)
    assert trained == [6, 7] and [run.folder for run in third] == [run.folder for run in second]
    assert told[-1] == f"seed 7: {third[2].folder} is there and finished"

    summary = seeds.of_runs(third, config)
    assert [(m.seed, m.name) for m in summary.members] == [(seed, run.folder.name) for seed, run in enumerate(third, 5)]
    accuracy = [run.result["test"]["inductive"]["accuracy"]["mean"] for run in third]
    assert summary.spreads()["inductive"]["accuracy"].values == accuracy
    # The same runs say the same when they are evaluated again.
    again = both(tmp_path, *(run.folder.name for run in third))
    assert again.as_json() == summary.as_json()


def test_only_a_run_of_the_same_config_data_and_learner_is_gone_on_with(tmp_path, glyphs_root):
    config, index = small_config(glyphs_root, tmp_path, **TINY), Index.open(glyphs_root)

    def mine(config, index):
        return built(config, index)

    def started(config, fingerprint: str = index.fingerprint, **tags: str) -> Path:
        run = new_run(config)
        index.fingerprint = fingerprint
        conclude.tell_start(run, config, index, tags)
        return run

    own = index.fingerprint
    started(small_config(glyphs_root, tmp_path, **{**TINY, "meta": {"steps": 3, "batch": 2}}))
    started(config, "other data")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.yaml").write_text("{")
    assert seeds.earlier(config, built) is None
    theirs = started(config, own, **train.maker(mine))
    assert seeds.earlier(config, built) is None and seeds.earlier(config, mine) == theirs
    run = started(small_config(glyphs_root, tmp_path, **TINY, workers={"count": 2}), own)
    assert seeds.earlier(config, built) == run


def test_what_is_no_number_of_seeds_is_refused(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path, **TINY)
    with pytest.raises(InputError, match="--seeds 1: one run has no spread; give 2 or more"):
        seeds.train_all(config, 1)
    with pytest.raises(InputError, match="--seeds 3: seed = 2147483648: input should be less than"):
        list(seeds.train_all(small_config(glyphs_root, tmp_path, **TINY, seed=2**31 - 1), 3))


def test_runs_that_differ_in_more_than_the_seed_or_not_at_all_are_refused(runs):
    with pytest.raises(
        InputError, match="other differs from a in more than the seed: meta.steps: 2 -> 1; name runs of"
    ):
        both(runs, "a", "b", "other")
    with pytest.raises(InputError, match="a and a have the same seed, 0; name each seed once"):
        both(runs, "a", "b", "a")
    with pytest.raises(InputError, match="neither a run"):
        both(runs, "a", "nothing")


def test_each_figure_is_that_of_an_evaluation(runs, nothing_is_sent):
    found = both(runs, "a", "b")
    for number, name in enumerate(("a", "b")):
        subject = restore.subject_of(restore.find(Path(name), runs))
        alone = evaluate.evaluate(subject, **ASKED).as_json()
        for mode in Mode:
            by_metric = found.spreads()[mode.value]
            assert {metric: own.values[number] for metric, own in by_metric.items()} == {
                metric: own["mean"] for metric, own in alone[mode.value].items()
            }
    assert nothing_is_sent == ["a", "b"], "each run keeps its own figures too"


def test_a_summary_is_kept_beside_its_first_run(runs, tmp_path, nothing_is_sent, capsys):
    tracking.write_target(runs / "b", Target("sqlite:///elsewhere.db", "omniglot", "b"))
    write_json(runs / "a" / "spool.sent.json", {"run_id": "1234"})
    found = both(runs, "b", "a")
    folder, _ = seeds.keep(found, tmp_path)
    assert folder.parent == runs and nothing_is_sent[-1] == folder.name
    target = json.loads((folder / tracking.TARGET_FILE).read_text())
    assert target == {"uri": "sqlite:///elsewhere.db", "experiment": "omniglot", "name": "seeds", "parent": ""}
    result = json.loads((folder / "seeds.json").read_text())
    assert result == json.loads(json.dumps(found.as_json())) and result["episodes"] == 3
    own = found.spreads()["inductive"]["accuracy"]
    with (folder / "seeds.csv").open() as file:
        rows = list(csv.DictReader(file))
    (row,) = [row for row in rows if (row["mode"], row["metric"]) == ("inductive", "accuracy")]
    assert [float(row[key]) for key in ("mean", "deviation", "within")] == [own.mean, own.deviation, own.within]
    assert [float(row[f"seed {seed}"]) for seed in (1, 0)] == own.values
    past = history(folder)
    assert past.status == "FINISHED" and past.params["run.1"].startswith("a step-") and past.params["seed.1"] == "0"
    assert past.tags["run.1.mlflow"] == "1234" and past.tags["data.fingerprint"] == found.fingerprint
    assert past.series["inductive/accuracy_by_seed"] == {0: own.values[1], 1: own.values[0]}
    assert past.series["inductive/accuracy_deviation"] == {0: own.deviation}
    report.print_seeds(result)
    lines = capsys.readouterr().out
    assert "2 seeds, 3 of test 3-way 1-shot" in lines and "seed 1: b step-" in lines
    assert f"{100 * own.mean:.2f} ± {100 * own.deviation:.2f} %" in lines


def test_other_data_are_measured_and_nothing_is_added_to_the_runs(runs, glyphs_root, nothing_is_sent):
    spools = [(runs / name / "spool.jsonl").stat().st_size for name in ("a", "b")]
    found = seeds.evaluate_all([Path("a"), Path("b")], runs, **ASKED, data=glyphs_root, asked={"ways": 4})
    assert found.as_json()["ways"] == 4 and found.fingerprint == Index.open(glyphs_root).fingerprint
    assert nothing_is_sent == [] and spools == [(runs / n / "spool.jsonl").stat().st_size for n in ("a", "b")]


def test_a_spool_of_another_run_is_no_earlier_run(tmp_path, glyphs_root):
    """A folder whose run was killed before it told anything is left alone."""
    config = small_config(glyphs_root, tmp_path, **TINY)
    new_run(config)
    assert seeds.earlier(config, built) is None
    Spool(new_run(config)).close()
    assert seeds.earlier(config, built) is None
