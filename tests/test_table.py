"""Tables of runs by data sets: every cell is an evaluation, nothing that was trained on is measured, all of it is kept."""

import json
from pathlib import Path

import pytest
from gloo import work_here
from small import small_config

from pipeline import checkpoint, cli, evaluate, prepare, report, restore, table
from pipeline.config import dump
from pipeline.data.index import Index
from pipeline.errors import InputError
from pipeline.learners.learner import Mode
from pipeline.spool import history
from pipeline.tracking import SyncReport


@pytest.fixture(scope="module")
def other(tmp_path_factory, glyphs_root) -> Path:
    """The same images under another name and of another size, with one split `train` of all classes and nothing else."""
    place = tmp_path_factory.mktemp("others")
    (place / "drawings").symlink_to(glyphs_root.parent / "images")
    prepare.pack(str(place / "drawings"), place / "elsewhere", layout="folder", size=20, rule="train=1.0")
    return place / "elsewhere"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, glyphs_root) -> Path:
    place = tmp_path_factory.mktemp("tabled") / "runs"
    for name, sections in {
        "maml": {},
        "prototypes": {"learner": {"kind": "prototype"}, "data": {"queries": 1}},
    }.items():
        work_here(dump(small_config(glyphs_root, place, evaluate={"queries": 2}, **sections)), str(place / name))
    return place


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.setattr(table.tracking, "sync", lambda run, uri: SyncReport("", 0, (), True, ""))


ASKED = {"episodes": 6, "workers": 1, "asked": {}}
BOTH = [Path("maml"), Path("prototypes")]


def test_every_cell_is_an_evaluation(runs, glyphs_root, other):
    columns = table.columns([str(glyphs_root), f"{glyphs_root}:val", f"{other}:train"], "test")
    assert [column.name for column in columns] == ["data test", "data val", "elsewhere train"]
    counted = []
    found = table.table(BOTH, runs, data=columns, progress=lambda *at: counted.append(at), **ASKED)
    assert counted == [(number, 6) for number in range(7)]
    path = checkpoint.best(runs / "prototypes")
    own = evaluate.evaluate(restore.subject_of(path), split="test", episodes=6, workers=1)
    assert found.rows[1].told["data test"][Mode.INDUCTIVE.value] == own.as_json()[Mode.INDUCTIVE.value]
    # Another data set's split `train` is measured as any other: nothing of it was trained on.
    assert found.rows[1].told["elsewhere train"]["queries"] == 2
    lines = found.as_markdown().splitlines()
    assert lines[0] == (
        "| accuracy ± 95 %, inductive, 3-way 1-shot, 2 queries per class, 6 episodes | data test | data val | elsewhere train |"
    )
    assert lines[1] == "|---|---|---|---|" and [line.split(" | ")[0] for line in lines[2:4]] == [
        "| maml",
        "| prototypes",
    ]
    mean = found.rows[0].told["data val"]["inductive"]["accuracy"]["mean"]
    assert f"{100 * mean:.2f} ± " in lines[2].split(" | ")[2]
    assert "transductive" in lines[5]


def test_classes_that_a_run_was_trained_on_are_not_measured(runs, glyphs_root, other, tmp_path):
    with pytest.raises(
        InputError, match=rf"trained on 36 of the classes of {glyphs_root}, split 'train', first .*:test"
    ):
        table.table(BOTH, runs, data=table.columns([f"{glyphs_root}:train"], "test"), **ASKED)
    again = prepare.pack(
        str(glyphs_root.parent / "images"), tmp_path / "again", layout="folder", size=16, rule="test=1.0"
    )
    assert again.fingerprint != Index.open(glyphs_root).fingerprint
    with pytest.raises(InputError, match=r"trained on 36 of the classes of .*again, split 'test'"):
        table.table(BOTH, runs, data=table.columns([str(again.root)], "test"), **ASKED)


def test_runs_whose_training_data_are_gone_are_not_tabled(runs, glyphs_root, tmp_path):
    config = small_config(glyphs_root, tmp_path, meta={"steps": 1}, learner={"kind": "prototype"})
    moved = prepare.pack(
        str(glyphs_root.parent / "images"),
        tmp_path / "gone",
        layout="folder",
        size=16,
        splits=glyphs_root.parent / "splits",
    )
    data = config.data.model_copy(update={"root": moved.root})
    work_here(dump(config.model_copy(update={"data": data})), str(tmp_path / "run"))
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="nobody can say which classes it knows"):
        table.table([tmp_path / "run"], tmp_path, data=table.columns([str(glyphs_root)], "test"), **ASKED)


def test_what_cannot_be_a_column_is_named(glyphs_root, tmp_path):
    with pytest.raises(InputError, match="has no split 'tset'; it has"):
        table.columns([f"{glyphs_root}:tset"], "test")
    with pytest.raises(InputError, match="two of them are called 'data test'"):
        table.columns([str(glyphs_root), f"{glyphs_root}:test"], "test")
    with pytest.raises(InputError, match="nothing"):
        table.columns([str(tmp_path / "nothing")], "test")


def test_episodes_of_other_shapes_do_not_stand_in_one_table(runs, glyphs_root, tmp_path):
    config = small_config(glyphs_root, tmp_path, learner={"kind": "prototype"}, data={"shots": 2})
    work_here(dump(config), str(tmp_path / "two-shots"))
    targets = [runs / "maml", tmp_path / "two-shots"]
    columns = table.columns([str(glyphs_root)], "test")
    with pytest.raises(
        InputError, match="two-shots is measured 3-way 2-shot, .*give --ways, --shots, --queries and --shape"
    ):
        table.table(targets, runs, data=columns, **ASKED)
    found = table.table(targets, runs, data=columns, **{**ASKED, "asked": {"shots": 1}})
    assert len(found.rows) == 2


def test_a_table_is_kept_as_a_run_of_its_own(runs, glyphs_root, monkeypatch, capsys):
    arguments = [
        "evaluate",
        "maml",
        "prototypes",
        "--table",
        "--data",
        str(glyphs_root),
        "--data",
        f"{glyphs_root}:val",
    ]
    monkeypatch.setattr("sys.argv", ["metashard", *arguments, "--episodes", "6", "--runs", str(runs), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    (folder,) = runs.glob("table-*")
    assert json.loads((folder / table.RESULT_FILE).read_text()) == told
    assert [row["run"] for row in told["runs"]] == ["maml", "prototypes"] and len(told["data"]) == 2
    assert (folder / table.TABLE_FILE).read_text().startswith("| accuracy ± 95 %, inductive")
    past = history(folder)
    mean = told["runs"][1]["data"]["data val"]["inductive"]["accuracy"]["mean"]
    assert past.series["inductive/run.1/data.1/accuracy"] == {0: mean} and past.status == "FINISHED"
    assert {row.what for row in report.runs(runs) if row.id == folder.name} == {"table of 2 runs"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "a", "--data", "b"], "--data b: a second data set is for --table"),
        (["--table"], "give --data, and leave --pairs out"),
        (["--table", "--data", "a", "--pairs"], "give --data, and leave --pairs out"),
    ],
)
def test_wrong_options_are_refused(runs, monkeypatch, capsys, options, said):
    monkeypatch.setattr("sys.argv", ["metashard", "evaluate", "maml", "--runs", str(runs), *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and said in capsys.readouterr().err
