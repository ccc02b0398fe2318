"""Comparisons: paired by episode, refused where the episodes would differ, kept with all their values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from gloo import work_here
from PIL import Image
from small import small_config

from pipeline import compare, report, tracking
from pipeline.config import dump
from pipeline.errors import InputError
from pipeline.learners.learner import Mode
from pipeline.shipment import Target
from pipeline.spool import history
from pipeline.tracking import SyncReport


def make_run(runs: Path, name: str, root: Path, **sections) -> Path:
    work_here(dump(small_config(root, runs, **sections)), str(runs / name))
    return runs / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory, glyphs_root) -> Path:
    """A folder with two short runs that differ in their learners, and one of other ways and quarter turns."""
    place = tmp_path_factory.mktemp("compared") / "runs"
    make_run(place, "maml", glyphs_root)
    make_run(place, "prototypes", glyphs_root, learner={"kind": "prototype"})
    make_run(place, "turned", glyphs_root, learner={"kind": "prototype"}, data={"ways": 4, "rotations": True})
    return place


@pytest.fixture
def rivals(runs) -> list[compare.Contender]:
    return compare.contenders([Path("maml"), Path("prototypes")], runs, {})


ASKED = {"split": "test", "episodes": 12, "modes": tuple(Mode), "workers": 1}


def test_the_interval_of_the_paired_difference_by_hand():
    row = compare.paired([0.5, 0.75, 1.0, 0.75], [0.5, 0.5, 0.5, 0.5])
    # Differences 0, ¼, ½, ¼: mean ¼, variance (1/16 + 0 + 1/16 + 0) / 3.
    assert row.score.mean == 0.75 and row.difference.mean == 0.25
    assert row.difference.interval == pytest.approx(1.96 * math.sqrt(1 / 24) / math.sqrt(4))
    assert row.excludes_zero and not compare.paired([0.5, 0.6], [0.6, 0.5]).excludes_zero


def test_pairing_takes_out_what_the_episodes_have_in_common():
    hard, easy = [0.2, 0.4, 0.6, 0.8, 1.0], [0.1, 0.3, 0.5, 0.7, 0.9]
    row = compare.paired(hard, easy)
    assert row.difference.interval < 1e-9 and row.score.interval > 0.2 and row.excludes_zero


def test_a_run_compared_with_itself(runs):
    twice = compare.contenders([Path("maml"), runs / "maml"], runs, {})
    found = compare.compare(twice, **ASKED)
    for mode in Mode:
        assert [row.difference[:2] for row in found.rows(mode)] == [(0, 0), (0, 0)]
        assert not any(row.excludes_zero for row in found.rows(mode))


def test_the_values_are_those_of_an_evaluation(rivals):
    from pipeline.evaluate import evaluate

    found = compare.compare(rivals, **ASKED)
    for number, rival in enumerate(rivals):
        alone = evaluate(rival.subject, split="test", episodes=12, workers=1)
        for mode in Mode:
            assert found.rows(mode)[number].score == alone.scores[mode]["accuracy"]


@pytest.mark.ray
def test_two_workers_compare_to_the_very_same_values(cluster, rivals):
    assert compare.compare(rivals, **{**ASKED, "workers": 2}) == compare.compare(rivals, **ASKED)


def test_other_episodes_are_refused(runs, rivals, glyphs_root, tmp_path):
    (turned,) = compare.contenders([Path("turned"), Path("maml")], runs, {})[:1]
    with pytest.raises(
        InputError, match="turned has other episodes than maml: data.rotations: False -> True; ways: 3 -> 4"
    ):
        compare.compare([rivals[0], turned], **ASKED)
    wider = compare.contenders([Path("prototypes"), Path("turned")], runs, {"queries": 3})
    with pytest.raises(InputError, match="queries: 2 -> 3; give --ways, --shots and --queries"):
        compare.compare([rivals[1], wider[0]], **ASKED)
    same = compare.contenders([Path("prototypes"), Path("prototypes")], runs, {"ways": 4, "queries": 3})
    assert compare.compare(same, **ASKED).shape == (4, 1, 3)


def test_other_data_are_refused(rivals, monkeypatch):
    found = [compare.restore.restored(rival.subject) for rival in rivals]
    found[1].index.fingerprint = "other"
    with pytest.raises(InputError, match=r"data.fingerprint: \w{16} -> other; compare runs of the same data"):
        compare._check_alike(rivals, found, "test")


def test_training_episodes_follow_the_seed_and_are_refused_where_it_differs(runs, rivals):
    other = rivals[1].subject.config | {"seed": 5}
    seeded = [rivals[0], rivals[1]._replace(subject=rivals[1].subject._replace(config=other))]
    assert len(compare.compare(seeded, **ASKED).values[Mode.INDUCTIVE]) == 2
    with pytest.raises(InputError, match="seed: 0 -> 5; compare runs of the same data"):
        compare.compare(seeded, **{**ASKED, "split": "train"})


def test_what_cannot_be_compared_is_an_input_error(runs):
    with pytest.raises(InputError, match="name at least two"):
        compare.contenders([Path("maml")], runs, {})
    with pytest.raises(InputError, match="neither a run"):
        compare.contenders([Path("maml"), Path("nothing")], runs, {})
    with pytest.raises(InputError, match="--mode neither"):
        compare.modes_of("neither")
    two = compare.contenders([Path("maml"), Path("maml")], runs, {})
    with pytest.raises(InputError, match="no split 'dev'"):
        compare.compare(two, **{**ASKED, "split": "dev"})
    with pytest.raises(InputError, match="--workers 0"):
        compare.compare(two, **{**ASKED, "workers": 0})
    assert compare.modes_of("both") == tuple(Mode) and compare.modes_of("transductive") == (Mode.TRANSDUCTIVE,)


def test_a_comparison_is_kept_beside_its_first_run(runs, rivals, tmp_path, monkeypatch, capsys):
    tracking.write_target(runs / "maml", Target("sqlite:///elsewhere.db", "omniglot", "maml"))
    sent = []
    monkeypatch.setattr(tracking, "sync", lambda run, uri: sent.append(uri) or SyncReport("", 0, (), True, ""))
    found = compare.compare(rivals, **ASKED)
    folder, _ = compare.keep(found, tmp_path)
    assert folder.parent == runs and sent == ["sqlite:///elsewhere.db"]
    target = json.loads((folder / tracking.TARGET_FILE).read_text())
    assert (target["experiment"], target["name"]) == ("omniglot", "compare")
    kept = json.loads((folder / "episodes.json").read_text())
    assert kept["inductive"] == found.values[Mode.INDUCTIVE] and len(kept["transductive"][1]) == kept["episodes"] == 12
    result = json.loads((folder / "comparison.json").read_text())
    assert result == json.loads(json.dumps(found.as_json()))
    assert [row["run"] for row in result["inductive"]] == ["maml", "prototypes"]
    with Image.open(folder / "comparison.png") as image:
        assert image.format == "PNG"
    past = history(folder)
    assert past.status == "FINISHED" and past.params["episodes"] == "12" and past.tags["data.fingerprint"]
    row = found.rows(Mode.INDUCTIVE)[1]
    assert past.series["inductive/run.1/difference_interval"] == {0: row.difference.interval}
    assert folder.name in {row.id for row in report.runs(runs)}
    report.print_comparison(result)
    lines = capsys.readouterr().out
    assert "12 of test 3-way 1-shot" in lines and f"{100 * row.difference.mean:+.2f} ± " in lines


def test_checkpoints_outside_a_run_are_compared_too(runs, rivals, tmp_path, monkeypatch):
    import shutil

    copies = [shutil.copytree(rival.checkpoint, tmp_path / rival.name) for rival in rivals]
    monkeypatch.setattr(tracking, "sync", lambda run, uri: SyncReport("", 0, (), True, ""))
    lone = compare.contenders(copies, runs, {})
    folder, _ = compare.keep(compare.compare(lone, **ASKED), tmp_path / "kept")
    assert folder.parent == tmp_path / "kept" and lone[0].name == str(tmp_path / "maml")


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_mlflow_gets_the_table_and_the_picture(runs, tmp_path):
    from pipeline.shipment import client_of

    uri = tracking.default_uri(tmp_path)
    tracking.write_target(runs / "maml", Target(uri, "omniglot", "maml"))
    rivals = compare.contenders([Path("maml"), Path("prototypes")], runs, {})
    folder, sent = compare.keep(compare.compare(rivals, **ASKED), tmp_path)
    client = client_of(uri)
    (tracked,) = client.search_runs([client.get_experiment_by_name("omniglot").experiment_id])
    assert sent.complete and tracked.info.run_name == "compare" and tracked.info.status == "FINISHED"
    names = {artifact.path for artifact in client.list_artifacts(tracked.info.run_id)}
    assert {"comparison.json", "episodes.json", "comparison.png"} <= names and folder.parent == runs
