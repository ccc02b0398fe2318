"""The verb `report`: pages of runs in every state, of sweeps, of what several runs say; and that nothing on them can run."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from gloo import work_here
from pages import Read
from searched import make_sweep, trials
from small import small_config

from pipeline import (
    build,
    cli,
    compare,
    conclude,
    failures,
    machine,
    page,
    seeds,
    spool,
    sweep_charts,
    swept,
    table,
    tracking,
)
from pipeline.config import differences, dump, load
from pipeline.data.index import Index
from pipeline.data.shapes import Shape
from pipeline.errors import InputError
from pipeline.importance import DOUBTFUL
from pipeline.learners.learner import Mode
from pipeline.run_folder import new_run
from pipeline.shipment import SENT_FILE, Target, write_json
from pipeline.tracking import SyncReport

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onload='x' \x1b[31m {{ 7*7 }} & ü 犬"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, glyphs_root) -> Path:
    """A run that was trained, measured and drawn."""
    place = tmp_path_factory.mktemp("told") / "runs"
    config = small_config(glyphs_root, place, meta={"steps": 4}, evaluate={"episodes": 5})
    run, index = new_run(config, "trained"), Index.open(glyphs_root)
    conclude.tell_start(run, config, index, {})
    work_here(dump(config), str(run))
    conclude.conclude(run, config, index, build.learner)
    conclude.tell_end(run, "FINISHED")
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "copy"))


def told(run: Path, **spooled: object) -> Read:
    """The page of a run, after its spool was told more."""
    if spooled:
        more = spool.Spool(run)
        for kind, values in spooled.items():
            getattr(more, kind)(values)
        more.close()
    return Read(page.tell(run, run.parent))


def test_a_run_that_has_ended(trained):
    read = told(trained)
    result = json.loads((trained / "result.json").read_text())
    for mode in ("inductive", "transductive"):
        found = result["test"][mode]["accuracy"]
        assert f"{100 * found['mean']:.2f} ± {100 * found['interval']:.2f} %" in read.text
        floor = result["untrained"][mode]["accuracy"]
        assert f"{100 * floor['mean']:.2f} ± {100 * floor['interval']:.2f} %" in read.text
    drawn = sorted((trained / "pictures").glob("*.png"))
    assert len(drawn) > 4 and sorted(read.pictures.values()) == sorted(file.read_bytes() for file in drawn)
    past = spool.history(trained)
    for key in ("data.fingerprint", "config.fingerprint", "version.torch", "python", "machine"):
        assert past.tags[key] in read.text, key
    assert "4 of 4" in read.text and "finished" in read.text and (trained / "config.yaml").read_text() in read.code
    assert [h for h in read.headings if h != "Warnings"] == [
        *(
            "trained",
            "Summary",
            "Results",
            "Pictures",
            "Time and memory",
            "Config",
            "Environment",
            "MLflow",
            "Reproduce",
        )
    ]


def test_the_commands_of_a_page_make_the_same_run(run, tmp_path):
    """As a shell reads them; `metashard` says what it was called with."""
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "# END_OF_CONFIG\n")
    lines = f"{yaml.safe_dump({'END_OF_CONFIG': 1})}END_OF_CONFIG"
    for config, expected in (((run / "config.yaml").read_text(), None), (lines, lines)):
        (run / "config.yaml").write_text(config)
        script = told(run).code[-1]
        (tmp_path / "here").mkdir(exist_ok=True)
        stubs = 'git() { :; }; metashard() { echo "metashard $@"; }\n'
        done = subprocess.run(["sh", "-ec", stubs + script], cwd=tmp_path / "here", capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "metashard train config.yaml\n", "")
        written = tmp_path / "here" / "config.yaml"
        if expected is None:
            assert not differences(dump(load(run / "config.yaml")), dump(load(written)))
        else:
            assert written.read_text().rstrip() == expected


def test_data_are_known_by_their_hash_and_how_they_were_packed(run):
    text = told(run).text
    assert "--store raw" in text and "data.root=…" in text and "--splits FOLDER" in text
    (run / "config.yaml").write_text("data: {root: 's3://bucket/birds'}\n")
    text = told(run).text
    assert "The data lay in s3://bucket/birds" in text and "--store" not in text


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_a_run_that_has_not_ended(trained, tmp_path, status):
    """No result and no picture: its losses so far are drawn."""
    run = tmp_path / "runs" / "young"
    run.mkdir(parents=True)
    shutil.copy(trained / "config.yaml", run)
    young = spool.Spool(run)
    for step in range(1, 4):
        young.metrics(step, {"train/loss": 2.0 / step, "train/skipped": float(step == 2)})
    young.status(status)
    young.close()
    failures.begin(run)
    failures.note(run, failures.Failure(2, 1, EVIL))
    failures.begin(run)
    read = told(run)
    assert "not measured" in read.text and "Results" not in read.headings
    (alt,) = read.pictures
    assert alt.startswith("Training loss, 2.000 at first and 0.667 at last")
    said = "\n".join(read.warnings)
    assert "After meta-step 2, rank 1: <script>alert(1)</script>" in said and "1 meta-steps were skipped" in said
    assert ("--resume" in said) is (status != "RUNNING") and "metashard sync" in said


def test_a_run_that_only_began(tmp_path):
    (tmp_path / "a").mkdir()
    spool.Spool(tmp_path / "a").close()
    read = Read(page.tell(tmp_path / "a", tmp_path))
    assert not read.pictures and "0 of ?" in read.text and "cannot be said how to do it again" in "".join(read.warnings)


def test_nothing_that_a_file_says_can_run(run):
    """Names, params, tags, classes, configs: all of it is text, and no page holds a control character."""
    (run / "config.yaml").write_text(f"name: |\n  {EVIL}\n")
    beside = run / "pictures" / "episode-best.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "classes": [EVIL, "b"]}))
    shutil.copy(run / "pictures" / "losses.png", run / "pictures" / f"{EVIL.replace('/', '-')}.png")
    (run / "evaluations").mkdir()
    evaluation = json.loads((run / "result.json").read_text())["test"]
    (run / "evaluations" / "x<b>.json").write_text(json.dumps({**evaluation, "split": EVIL}))
    (run / "stacks").mkdir()
    (run / "stacks" / "rank-0.txt").write_text(f"{EVIL}\nFile")
    evil = run.rename(run.parent / EVIL.replace("/", "-"))
    read = told(evil, params={"name": EVIL, "task.kind": EVIL}, tags={"machine": EVIL, "changed.x": EVIL, EVIL: EVIL})
    harmless = EVIL.replace("\x1b", "\ufffd")
    assert read.text.count("<script>alert(1)</script>") >= 7 and "{{ 7*7 }}" in read.text
    assert harmless in read.text and any(harmless in alt for alt in read.pictures)


def test_a_picture_that_is_none_is_told_and_not_shown(run):
    (run / "pictures" / "losses.png").write_text("<svg onload=alert(1)>")
    (run / "pictures" / "far.png").symlink_to("/etc/passwd")
    (run / "pictures" / "gone.png").symlink_to("/nowhere")
    said = "\n".join(told(run).warnings)
    assert all(name in said for name in ("losses.png is no PNG", "far.png is no PNG", "gone.png cannot be read"))


def test_where_mlflow_has_it(run):
    place = {"spool": "x", "run_id": "f00d", "experiment_id": "1", "offset": 10**9}
    write_json(run / SENT_FILE, {"uri": "sqlite:////x/mlflow.db", **place})
    tracking.write_target(run, Target("sqlite:////x/mlflow.db", "metashard", "a"))
    read = told(run)
    assert "http://127.0.0.1:5000/#/experiments/1/runs/f00d" in read.links
    assert "metashard ui --uri sqlite:////x/mlflow.db" in read.text and not [w for w in read.warnings if "MLflow" in w]
    write_json(run / SENT_FILE, {"uri": "https://mlflow.example.org", **place, "offset": 1})
    (run / "config.yaml").write_text("tracking: {uri: 'https://me:secret@mlflow.example.org'}\n")
    read = told(run)
    assert "https://mlflow.example.org/#/experiments/1/runs/f00d" in read.links
    assert "secret" not in read.text and "has not got everything" in "".join(read.warnings)
    write_json(run / SENT_FILE, {"uri": "https://x", **place, "experiment_id": '"><script>'})
    assert not [link for link in told(run).links if link.startswith("javascript")]


def test_what_shakes_the_figures_is_warned_of(run):
    with (run / spool.FILE).open("a") as file:
        file.write("nothing\n")
    (run / "spool.refused.jsonl").write_text("{}\n")
    more = {"mlflow.source.git.commit": "abc-dirty", "changed.meta.steps": "9", "make_learner": "Mine"}
    read = told(run, tags=more)
    said = "\n".join(read.warnings)
    for part in (
        "changed since its git revision",
        "meta.steps was changed to 9",
        "1 lines of",
        "refused 1",
        "made by Mine",
    ):
        assert part in said
    assert "git checkout abc\n" in read.code[-1]


def test_figures_by_data_set(run):
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "data": {"fish": result["test"], "birds": result["test"]}}))
    text = told(run).text
    assert "By data set" in text and "fish" in text and "birds" in text


@pytest.mark.parametrize(
    ("many", "failing", "is_told", "status"),
    [(12, 0.2, True, "FINISHED"), (1, 0.0, True, "FINISHED"), (3, 1.0, True, "FAILED"), (0, 0.0, False, "KILLED")],
)
def test_a_sweep(tmp_path, many, failing, is_told, status):
    rows = trials(many, failing=failing, objectives=many > 3)
    folder = make_sweep(tmp_path / "s", rows, status=status, is_told=is_told)
    read = Read(page.tell(Path("s"), tmp_path))
    scored = [row["score"] for row in rows if row["score"] is not None]
    for row in rows:
        assert f"{row['number']:04d}" in read.text
        assert row["score"] is None or f"{100 * row['score']:.2f} %" in read.text
    assert ("No trial has a score" in read.text) is not bool(scored)
    assert "loguniform [0.01, 1.0] where learner.kind is gradient" in read.text and "asha" in read.text
    script = read.code[-2 if scored else -1]
    assert (folder / "sweep.yaml").read_text().rstrip() in script and script.endswith("\nmetashard sweep sweep.yaml")
    assert ((folder / "best.yaml").exists() and (folder / "best.yaml").read_text() in read.code) is bool(scored)
    found = sweep_charts.importance_of(swept.read(folder))
    assert ("may be chance" in read.text) is (not found.reason and found.explained < DOUBTFUL)
    kinds = [alt for alt in read.pictures if "trial" in alt.lower()]
    assert len(kinds) == {12: 4, 1: 2, 3: 2, 0: 0}[many]
    said = "\n".join(read.warnings)
    assert ("alert(1)" in said) is any(row["said"] for row in rows)
    assert ("--resume" in said) is (status != "FINISHED")
    assert said.count("the gradient is not finite") == min(1, sum(row["state"] == "failed" for row in rows))


def test_the_best_trial_of_a_sweep_is_told_as_a_run_is(trained, tmp_path):
    folder = make_sweep(tmp_path / "s", trials(4, failing=0))
    best = swept.read(folder).best
    assert best is not None
    shutil.rmtree(best.run)
    shutil.copytree(trained, best.run)
    read = Read(page.tell(folder, tmp_path))
    assert "Of the checkpoint" in read.text
    noted = spool.history(trained).tags
    assert noted["machine"] in read.text and noted["version.torch"] in read.text and "git checkout" in read.code[-2]
    for file in (trained / "pictures").glob("*.png"):
        assert file.read_bytes() in read.pictures.values()


@pytest.fixture
def unsent(monkeypatch) -> None:
    """Nothing goes to MLflow."""
    monkeypatch.setattr(tracking, "sync", lambda *_, **__: SyncReport("", 0, (), True, ""))


SCORES = {mode.value: {"accuracy": {"mean": 0.5, "interval": 0.02, "episodes": 9}} for mode in Mode}
EVALUATED = {
    "split": "test",
    "ways": 5,
    "shots": 1,
    "queries": 15,
    "step": 3,
    "inner_steps": None,
    "metric": "accuracy",
}
MEASURED = ["--split", "test", "--episodes", "9", "--ways", "5", "--shots", "1", "--queries", "15"]


def command_of(read: Read) -> list[str]:
    return read.code[-1].split()


def test_a_comparison(tmp_path, unsent):
    contenders = [compare.Contender(name, tmp_path / name / "step-1", SimpleNamespace()) for name in ("a", EVIL)]
    values = {Mode.INDUCTIVE: [[0.5] * 9, [0.5, 0.75, 1.0] * 3]}
    found = compare.Comparison(contenders, "accuracy", "test", Shape(5, 1, 15), "feed", values)
    folder, _ = compare.keep(found, tmp_path / "runs")
    read = Read(page.tell(folder, tmp_path))
    assert "+25.00 ± " in read.text and len(read.pictures) == 1 and "<script>alert(1)</script>" in read.text
    assert command_of(read)[:3] == ["metashard", "compare", "a"]
    assert command_of(read)[-12:] == [*MEASURED, "--mode", "inductive"]
    (folder / compare.RESULT_FILE).write_text("{")
    with pytest.raises(InputError, match="no whole comparison.json"):
        page.tell(folder, tmp_path)


def test_a_summary_of_seeds(tmp_path, unsent):
    members = [seeds.Member(n, f"run-{n}", tmp_path / f"step-{n}", {**EVALUATED, **SCORES}) for n in range(3)]
    folder, _ = seeds.keep(seeds.Summary(members, "feed"), tmp_path / "runs")
    read = Read(page.tell(folder, tmp_path))
    assert "50.00 ± 0.00 %" in read.text and "run-2" in read.text and "3 seeds, 9 of test" in read.text
    assert command_of(read) == ["metashard", "evaluate", "run-0", "run-1", "run-2", *MEASURED]


def test_a_table_of_runs_by_data_sets(tmp_path, unsent):
    columns = [table.Column(f"{n} test", tmp_path / n, "test", SimpleNamespace(fingerprint=f"feed-{n}")) for n in "xy"]
    rows = [table.Row(name, tmp_path / "step-1", {c.name: {**EVALUATED, **SCORES} for c in columns}) for name in "ab"]
    folder, _ = table.keep(table.Table(columns, rows), tmp_path / "runs")
    read = Read(page.tell(folder, tmp_path))
    assert read.text.count("50.00 ± 2.00 %") == 8 and "feed-y" in read.text
    data = ["--data", f"{tmp_path}/x:test", "--data", f"{tmp_path}/y:test"]
    assert command_of(read) == ["metashard", "evaluate", "a", "b", "--table", *data, *MEASURED[2:]]


def test_where_a_page_goes_and_what_has_none(trained, tmp_path):
    assert page.tell(Path("trained"), trained.parent) == trained / "report.html"
    assert page.tell(trained, tmp_path, tmp_path) == tmp_path / "trained.html"
    assert page.tell(trained, tmp_path, tmp_path / "new" / "x.htm") == tmp_path / "new" / "x.htm"
    with pytest.raises(InputError, match=r"--out .*x\.pdf: pages are HTML"):
        page.tell(trained, tmp_path, tmp_path / "x.pdf")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="name a file that can be written"):
        page.tell(trained, tmp_path, tmp_path / "file" / "x.html")
    with pytest.raises(InputError, match="nothing is no run under"):
        page.tell(Path("nothing"), tmp_path)
    (tmp_path / "other").mkdir()
    other = spool.Spool(tmp_path / "other")
    other.tags({spool.KIND: "dream"})
    other.close()
    with pytest.raises(InputError, match="kind 'dream'"):
        page.tell(tmp_path / "other", tmp_path)
    assert not [file for file in tmp_path.rglob("*.partial")]


def test_on_the_command_line(trained, tmp_path, monkeypatch, capsys):
    make_sweep(tmp_path / "runs" / "s", trials(3))

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["metashard", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    assert call("report", trained, "--out", "x.html") == (0, "x.html\n") and (tmp_path / "x.html").exists()
    assert call("report", "missing")[0] == 2 and call("report", trained, "--out", "x.txt")[0] == 2
    code, lines = call("runs")
    assert code == 0 and "sweep of 3 trials" in lines and "0001" not in lines
    code, lines = call("runs", "s")
    assert code == 0 and all(f"{n:04d}" in lines for n in range(3))
    assert call("runs", trained)[0] == 2


def test_the_machine_is_described_without_names():
    said = machine.described()
    assert "cores" in said and "GiB" in said and "\n" not in said
