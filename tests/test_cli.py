"""The command line as a user calls it: real files, exit codes, one line per error; real processes where one trains."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gloo import work_here
from small import small_config

from pipeline import checkpoint, cli, tracking
from pipeline.config import dump
from pipeline.tracking import SyncReport

LIMIT_S = 180
RULE = "train=0.7,val=0.15,test=0.15"


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *map(str, args)]


def metashard(*args: object, where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), cwd=where, capture_output=True, text=True, timeout=LIMIT_S)


@pytest.fixture
def here(tmp_path, monkeypatch, capsys) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Calls the command line in this process and in `tmp_path`: a new one would import everything again."""

    def call(*args: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["metashard", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(args, int(ended.value.code or 0), said.out, said.err)

    return call


def config_file(place: Path, root: Path, **sections) -> Path:
    path = place / "run.yaml"
    tree = dump(small_config(root, place / "runs", **sections))
    path.write_text(json.dumps(tree))
    return path


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error, of a call that ended with 2 and told nothing else."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    return line


def test_pack_verify_show(tmp_path, glyphs_root, here):
    """Images to a packed data set without fault, of which an episode is drawn."""
    packed = here("pack", glyphs_root.parent / "images", "data", "--size", 16, "--rule", RULE)
    assert packed.returncode == 0 and "624 samples (16 × 16 × 1, raw), 52 classes" in packed.stdout
    assert here("verify", "data").stdout.strip() == "data: no fault"
    shown = here("show", "data", "--out", "episode.png")
    assert shown.returncode == 0 and (tmp_path / "episode.png").read_bytes().startswith(b"\x89PNG")


def test_embed_shows_progress_and_tells_what_there_is(tmp_path, glyphs_root, here):
    config = small_config(glyphs_root, tmp_path / "runs", learner={"kind": "ridge"}, meta={"steps": 1, "batch": 1})
    work_here(dump(config), str(tmp_path / "runs" / "a"))
    done = here("embed", "a", "features")
    assert done.returncode == 0 and "624 samples (1 × 1 × 6, features of encoder " in done.stdout
    assert "embedding: 624/624 samples" in done.stderr
    assert "no fault" in here("verify", "features").stdout
    assert "ridge" not in error_of(here("embed", "b", "features"))


def test_ctrl_c_while_packing_says_so_and_the_same_command_goes_on(tmp_path, glyphs_root, here, monkeypatch):
    images = glyphs_root.parent / "images"

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("pipeline.prepare.pack", interrupted)
        done = here("pack", images, "data", "--size", 16, "--rule", RULE)
    assert done.returncode == 130 and done.stderr == "metashard: interrupted\n"
    assert here("pack", images, "data", "--size", 16, "--rule", RULE).returncode == 0


@pytest.mark.slow
@pytest.mark.smoke
def test_pack_train_evaluate_runs(tmp_path, glyphs_root):
    """The main path, in a process each: images to an MLflow run."""
    packed = metashard("pack", glyphs_root.parent / "images", "data", "--size", 16, "--rule", RULE, where=tmp_path)
    assert packed.returncode == 0 and "624 samples" in packed.stdout
    config = config_file(tmp_path, tmp_path / "data")
    trained = metashard("train", config, "meta.steps=4", where=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "training: 4/4 meta-steps" in trained.stderr and "untrained" in trained.stdout
    (run,) = [path for path in (tmp_path / "runs").iterdir() if (path / "checkpoints").is_dir()]
    judged = metashard("evaluate", run.name, "--episodes", 6, "--json", where=tmp_path)
    result = json.loads(judged.stdout)
    assert result["inductive"]["accuracy"]["episodes"] == 6 and 0 <= result["transductive"]["accuracy"]["mean"] <= 1
    assert run.name in metashard("runs", where=tmp_path).stdout

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("metashard")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED" and tracked.data.params["meta.steps"] == "4"
    assert [m.step for m in client.get_metric_history(tracked.info.run_id, "train/loss")] == [1, 2, 3, 4]
    assert {"evaluate/test-3way-1shot-2query-6episodes/inductive/accuracy", "test/inductive/accuracy"} <= set(
        tracked.data.metrics
    )
    assert {"pictures", "checkpoint", "config.yaml"} <= {a.path for a in client.list_artifacts(tracked.info.run_id)}


def test_evaluate_and_compare(tmp_path, glyphs_root, here, monkeypatch):
    """Without MLflow, whose part is in the slow lane."""
    monkeypatch.setattr(tracking, "sync", lambda run, uri: SyncReport("", 0, (), False, "not now"))
    maml, prototypes = {"kind": "gradient", "steps": 1}, {"kind": "prototype"}
    for name, learner, seed in (("a", maml, 0), ("b", prototypes, 0), ("c", prototypes, 1)):
        config = small_config(glyphs_root, tmp_path / "runs", learner=learner, meta={"steps": 2}, seed=seed)
        work_here(dump(config), str(tmp_path / "runs" / name))
    judged = here("evaluate", "a", "--episodes", 4, "--test-steps", 3, "--json")
    result = json.loads(judged.stdout)
    assert result["inner_steps"] == 3 and "f1" in result["inductive"]
    assert "worst_decile" in here("evaluate", "a", "--episodes", 4, "--data", glyphs_root).stdout
    assert "takes no inner steps" in error_of(here("evaluate", "b", "--test-steps", 3))
    told = here("evaluate", "b", "c", "--episodes", 4)
    assert "± sd over seeds" in told.stdout and f"kept in {tmp_path / 'runs' / 'seeds-'}" in told.stdout
    summary = json.loads(here("evaluate", "b", "c", "--episodes", 4, "--json").stdout)
    assert [run["seed"] for run in summary["runs"]] == [0, 1] and len(summary["inductive"]["accuracy"]["values"]) == 2
    assert "b differs from a in more than the seed" in error_of(here("evaluate", "a", "b"))

    told = here("compare", "a", "b", "--episodes", 4, "--mode", "both")
    assert told.returncode == 0 and "excludes zero" in told.stdout and "metashard sync" in told.stderr
    (kept,) = (tmp_path / "runs").glob("compare-*")
    assert f"kept in {kept}" in told.stdout and (kept / "comparison.png").exists()
    rows = json.loads(here("compare", "a", "b", "--episodes", 4, "--json").stdout)["inductive"]
    assert [row["run"] for row in rows] == ["a", "b"] and rows[0]["difference"] == 0
    assert "name at least two" in error_of(here("compare", "a"))
    assert "--mode no" in error_of(here("compare", "a", "b", "--mode", "no"))
    assert "but data.ways = 3" in error_of(here("compare", "b", "a", "--ways", 4))


@pytest.mark.slow
@pytest.mark.smoke
def test_ctrl_c_saves_and_resume_goes_on(tmp_path, glyphs_root):
    config = config_file(tmp_path, glyphs_root, checkpoint={"every": 5}, validation={"every": 10_000})
    endless = subprocess.Popen(
        command("train", config, "meta.steps=100000"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + LIMIT_S
    while not list(tmp_path.glob("runs/*/checkpoints/step-00000005")):
        assert endless.poll() is None and time.monotonic() < deadline, endless.communicate()
        time.sleep(0.05)
    endless.send_signal(signal.SIGINT)
    out, err = endless.communicate(timeout=LIMIT_S)
    assert "go on with: metashard train" in out and "Traceback" not in err
    (run,) = [path for path in (tmp_path / "runs").iterdir() if (path / "checkpoints").is_dir()]
    reached = checkpoint.latest(run / "checkpoints").step
    refused = metashard("train", config, f"meta.steps={reached + 2}", "--resume", run.name, where=tmp_path)
    assert f"meta.steps: 100000 -> {reached + 2}" in error_of(refused)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("meta.stepz=5", "meta.stepz: no such key; did you mean meta.steps?"),
        ("meta.steps=many", "meta.steps = 'many'"),
        ("meta.batch=0", "meta.batch = 0"),
        ("data.root=/nowhere", "/nowhere"),
        ("data.ways=99", "fewer than ways = 99"),
        ("data.shots=99", "shots + queries = 101"),
        ("workers.count=9", "smaller than workers.count = 9"),
        ("learner.adapts=nothing", "matches no parameter"),
        ("runs=/proc/nothing", "/proc/nothing"),
    ],
)
def test_bad_configs_are_one_line_and_start_nothing(tmp_path, glyphs_root, here, override, said):
    line = error_of(here("train", config_file(tmp_path, glyphs_root), override))
    assert said in line and not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.smoke
def test_more_workers_than_cpus_are_one_line_and_start_nothing(tmp_path, glyphs_root):
    """In a process of its own: nothing that is imported there adds to the one line either."""
    config = config_file(tmp_path, glyphs_root)
    line = error_of(metashard("train", config, "workers.count=64", "meta.batch=64", where=tmp_path))
    assert "64 workers were asked for" in line and not (tmp_path / "runs").exists()


def test_seeds_that_have_no_spread_or_another_way_to_go_on_are_refused(tmp_path, glyphs_root, here):
    config = config_file(tmp_path, glyphs_root)
    assert "--seeds 1: one run has no spread" in error_of(here("train", config, "--seeds", 1))
    assert "leave it out" in error_of(here("train", config, "--seeds", 2, "--resume", "x"))
    assert not (tmp_path / "runs").exists()


def test_a_config_that_is_not_there_or_not_yaml(tmp_path, here):
    assert "nothing.yaml" in error_of(here("train", "nothing.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [1")
    assert "is not YAML" in error_of(here("train", "bad.yaml"))


def test_verify_lists_all_faults_and_exits_with_2(tmp_path, glyphs_root, here):
    import shutil

    shutil.copytree(glyphs_root, tmp_path / "data")
    (tar,) = (tmp_path / "data").glob("*.tar")
    blob = bytearray(tar.read_bytes())
    for at in (2000, len(blob) // 2):
        blob[at] ^= 0xFF
    tar.write_bytes(bytes(blob))
    done = here("verify", "data")
    assert done.returncode == 2 and len(done.stdout.strip().splitlines()) >= 2


def test_a_taken_port_is_an_input_error(tmp_path, here):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "mlflow.db").touch()
        assert str(port) in error_of(here("ui", "--port", port))


def test_every_verb_shows_an_example(tmp_path):
    from typer.main import get_command

    for name, verb in get_command(cli.app).commands.items():
        assert verb.epilog and verb.epilog.startswith(f"Example: metashard {name}"), name
