"""The target `local` and the verbs, with a program that does as it is told in the place of `metashard`."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from cluster import cli, local, submission, supervise
from cluster.errors import SubmitError
from cluster.target import DRAINED
from pipeline import cli as command_line

LIMIT_S = 30
PROGRAM = f"""#!{sys.executable}
import os, signal, sys, time
print("run", os.environ["METASHARD_RUN"], "args", *sys.argv[1:], flush=True)
print("token", os.environ["RAY_AUTH_MODE"], oct(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777), flush=True)
match sys.argv[1:]:
    case ["exit", code]:
        sys.exit(int(code))
    case ["fail-first", path]:
        first = not os.path.exists(path)
        open(path, "w").close()
        sys.exit(1 if first else 0)
    case ["drain"]:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit({DRAINED}))
    case ["deaf"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep({LIMIT_S})
"""


@pytest.fixture
def verb(tmp_path, monkeypatch, capsys):
    """Calls a verb of the command line in `tmp_path`; gives its exit code and what it said."""
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (tmp_path / "here.yaml").write_text("kind: local\ngrace_s: 1\n")

    def start(attempt: Path) -> None:
        with (attempt / supervise.LOG_FILE).open("ab") as log:
            command = [sys.executable, Path(__file__).with_name("kept.py"), attempt, program]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True, env=environment)

    monkeypatch.setattr(supervise, "start", start)
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["metashard", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    yield call
    for state in tmp_path.glob(".metashard/*/*/state.json"):
        pid = json.loads(state.read_text()).get("pid")
        if pid and psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def submitted(verb, *command: str, run: str = "r", options: tuple[str, ...] = ("--detach",)) -> tuple[int, str]:
    return verb("submit", "--cluster", "here.yaml", "--run", run, *options, "--", *command)


def until_it_says(word: str, run: str = "r", attempt: int = 1) -> None:
    log, limit = Path(f".metashard/{run}/attempt-{attempt}/log"), time.monotonic() + LIMIT_S
    while word not in log.read_text():
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.02)


def of_run(run: str = "r") -> dict:
    return json.loads(Path(f".metashard/{run}/submission.json").read_text())


@pytest.mark.parametrize("code", [0, 2, 7])
def test_the_log_is_followed_and_the_exit_code_is_the_jobs(verb, code):
    ended, said = submitted(verb, "exit", str(code), options=())
    assert ended == code
    assert f"run r args exit {code}" in said and "token token 0o600" in said
    assert "metashard status|logs -f|stop|resume r" in said
    assert verb("logs", "r") == (0, "".join(Path(".metashard/r/attempt-1/log").read_text()))
    assert verb("status", "r")[0] == code
    assert "r " in verb("list")[1]


def test_the_token_is_in_no_file_but_its_own(verb):
    submitted(verb, "exit", "0", options=())
    token = Path(".metashard/r/token").read_text()
    others = [path for path in Path(".metashard").rglob("*") if path.is_file() and path.name != "token"]
    assert len(others) >= 3 and not [path for path in others if token in path.read_text()]


def test_a_dry_run_sends_nothing(verb):
    code, said = submitted(verb, "train", "x.yaml", options=("--dry-run",))
    assert code == 0 and "METASHARD_RUN=r" in said and "metashard train x.yaml" in said
    assert not Path(".metashard").exists()


def test_said_twice_it_is_sent_once(verb):
    submitted(verb, "sleep")
    assert submitted(verb, "sleep") == (0, "r is running already\n")
    assert of_run()["attempt"] == 1
    assert "was submitted to local as: sleep" in submitted(verb, "other")[1]
    verb("stop", "--force", "r")


def test_two_submitters_at_once(verb):
    with submission.only_submitter("r", cli.JOBS):
        code, said = submitted(verb, "sleep")
    assert code == 2 and "is being submitted by another process" in said


def test_a_failed_run_is_sent_again_under_its_id(verb):
    assert submitted(verb, "fail-first", "mark", options=())[0] == 1
    code, said = verb("resume", "r")
    assert code == 0 and of_run()["attempt"] == 2 and "r: finished" in said
    code, said = verb("resume", "r")
    assert code == 2 and "is finished" in said
    assert "is finished" in submitted(verb, "fail-first", "mark")[1]


def test_retries_start_it_again_and_wrong_input_does_not(verb):
    code, said = submitted(verb, "fail-first", "mark", options=("--retries", "2"))
    assert code == 0 and of_run()["attempt"] == 2 and "failed (exit code 1); starting it again" in said
    code, said = submitted(verb, "exit", "2", run="wrong", options=("--retries", "2"))
    assert code == 2 and of_run("wrong")["attempt"] == 1


def test_stop_lets_it_save_and_says_that_it_can_go_on(verb):
    submitted(verb, "drain")
    until_it_says("ready")
    assert verb("stop", "r") == (0, f"r: stopped (exit code {DRAINED}: saved, can go on)\n")
    code, said = verb("stop", "r")
    assert code == 2 and "is over" in said and "metashard resume r" in said


def test_what_does_not_listen_is_killed_after_its_time(verb):
    submitted(verb, "deaf")
    until_it_says("ready")
    began = time.monotonic()
    assert verb("stop", "r") == (0, "r: stopped (exit code 137)\n")
    assert 1 <= time.monotonic() - began < LIMIT_S / 2


def test_by_force_it_is_killed_at_once(verb, tmp_path):
    (tmp_path / "here.yaml").write_text("kind: local\ngrace_s: 1000\n")
    submitted(verb, "deaf")
    until_it_says("ready")
    assert verb("stop", "--force", "r") == (0, "r: stopped (exit code 137)\n")


def test_ctrl_c_detaches_and_says_so(verb, monkeypatch):
    def interrupted(self, job):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(local.Local, "follow", interrupted)
    code, said = submitted(verb, "drain", options=())
    assert code == cli.DETACHED and "detached; r goes on" in said and "metashard stop r" in said
    assert local._keeper(json.loads(Path(".metashard/r/attempt-1/state.json").read_text()))
    until_it_says("ready")
    verb("stop", "r")


def test_a_job_whose_keeper_was_killed_is_lost_and_its_command_leaves(verb):
    submitted(verb, "drain")
    until_it_says("ready")
    keeper = psutil.Process(json.loads(Path(".metashard/r/attempt-1/state.json").read_text())["pid"])
    children = keeper.children()
    keeper.kill()
    assert children and not psutil.wait_procs(children, timeout=LIMIT_S)[1]
    code, said = verb("status", "r")
    assert code == 1 and "lost: the process that kept it was killed" in said


@pytest.mark.parametrize("words", [("status", "x"), ("logs", "x"), ("stop", "x"), ("resume", "x")])
def test_an_unknown_run_is_one_line(verb, words):
    code, said = verb(*words)
    assert code == 2 and "none was submitted from here" in said and len(said.splitlines()) == 1


def test_what_cannot_be_a_run_id_or_may_not_be_shown(verb):
    assert "run id '../x'" in submitted(verb, "sleep", run="../x")[1]
    assert "URL with a password" in submitted(verb, "train", "tracking.uri=http://a:b@c")[1]
    assert not Path(".metashard").exists()


def test_a_preflight_that_fails_names_what_to_do_and_sends_nothing(verb, monkeypatch):
    monkeypatch.setattr(supervise, "binary", lambda name: f"/nowhere/{name}")
    code, said = submitted(verb, "sleep")
    assert code == 2 and "install the project into this environment; nothing was submitted" in said
    assert not Path(".metashard/r/submission.json").exists()


def test_a_folder_that_cannot_be_written(verb):
    code, said = verb("submit", "--cluster", "here.yaml", "--jobs", "/proc/x", "--", "sleep")
    assert code == 2 and "/proc/x" in said


def test_a_run_id_says_what_runs(verb):
    assert submission.new_id(["train", "configs/a b.yaml", "x=1"]).startswith("a-b-20")
    assert submission.new_id(["pack", "images", "tars"]).startswith("pack-20")
    with pytest.raises(SubmitError):
        submission.check_id("x" * 101)


def test_what_a_killed_keeper_left_in_tmp_goes_with_the_next_attempt(tmp_path):
    left = Path(tempfile.mkdtemp(prefix="metashard-", dir="/tmp"))
    for number, name in enumerate((left.name, "../etc", "other")):
        (tmp_path / f"attempt-{number}").mkdir()
        (tmp_path / f"attempt-{number}" / supervise.PLACE_FILE).write_text(name)
    supervise._clear(tmp_path)
    assert not left.exists() and Path("/etc").exists()
