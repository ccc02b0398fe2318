"""A run in this process: its id, signals that want the machine back, a changed config."""

import os
import signal

import pytest
from small import small_config

from pipeline import checkpoint, train, worker
from pipeline.errors import InputError
from pipeline.run_folder import found_run, new_run
from pipeline.spool import history
from pipeline.stopping import DRAINED


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch):
    """The process that ships to MLflow takes a second, and another test looks at it."""
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)


def signalled(monkeypatch, *numbers: int) -> None:
    """Workers of the next runs are sent signals before their first meta-step."""

    def work(job, **given):
        for number in numbers:
            os.kill(os.getpid(), number)
        worker.work(job, **given)

    monkeypatch.setattr(train, "work", work)


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGTERM,), DRAINED),
        ((signal.SIGUSR1,), DRAINED),
        ((signal.SIGUSR1, signal.SIGUSR1), DRAINED),
        ((signal.SIGINT,), 0),
    ],
)
def test_a_signal_saves_and_leaves_with_its_code(tmp_path, glyphs_root, monkeypatch, numbers, code):
    signalled(monkeypatch, *numbers)
    stopped = train.fit(small_config(glyphs_root, tmp_path), name="r")
    assert stopped.code == code and stopped.folder == tmp_path / "r"
    assert checkpoint.latest(stopped.folder / "checkpoints").step == 1
    assert history(stopped.folder).status == "KILLED"


def test_a_second_ctrl_c_does_not_wait(tmp_path, glyphs_root, monkeypatch):
    signalled(monkeypatch, signal.SIGUSR1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train.fit(small_config(glyphs_root, tmp_path))


def test_signals_are_the_callers_again_afterwards(tmp_path, glyphs_root, monkeypatch):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    signalled(monkeypatch, signal.SIGTERM)
    train.fit(small_config(glyphs_root, tmp_path))
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_run_is_made_under_its_id_and_found_by_it(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path)
    assert found_run(config, "mine") is None
    assert new_run(config, "mine") == found_run(config, "mine") == tmp_path / "mine"


def test_a_run_that_was_killed_before_it_had_its_config_is_made(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path)
    (tmp_path / "mine" / "checkpoints").mkdir(parents=True)
    assert found_run(config, "mine") is None and new_run(config, "mine") == tmp_path / "mine"


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a b", "a/b"])
def test_an_id_that_is_no_folder_name_is_refused(tmp_path, glyphs_root, name):
    with pytest.raises(InputError, match="run id"):
        found_run(small_config(glyphs_root, tmp_path), name)


def test_a_stream_is_not_fed(tmp_path, glyphs_root):
    learner = {"kind": "supervised"}
    with pytest.raises(InputError, match=r"workers\.feeders = 2: learner\.kind = supervised learns from a stream"):
        train.fit(small_config(glyphs_root, tmp_path, learner=learner, workers={"feeders": 2}))


def test_another_config_goes_on_where_it_is_allowed(tmp_path, glyphs_root, capsys):
    first = train.fit(small_config(glyphs_root, tmp_path, meta={"steps": 2}))
    longer = small_config(glyphs_root, tmp_path, meta={"steps": 4})
    with pytest.raises(InputError, match=r"meta\.steps: 2 -> 4.*--allow-change"):
        train.fit(longer, resume=first.folder)
    train.fit(longer, resume=first.folder, allow_change=True)
    assert "meta.steps: 2 -> 4; going on with the new one" in capsys.readouterr().err
    assert checkpoint.latest(first.folder / "checkpoints").step == 4
    train.fit(longer, resume=first.folder)


def test_a_change_that_the_weights_do_not_fit_is_named(tmp_path, glyphs_root):
    first = train.fit(small_config(glyphs_root, tmp_path, meta={"steps": 2}))
    wider = small_config(glyphs_root, tmp_path, model={"width": 8}, meta={"steps": 4})
    with pytest.raises(InputError, match=r"checkpoint of step 2 does not fit the changed config"):
        train.fit(wider, resume=first.folder, allow_change=True)


def test_the_tracking_uri_may_come_from_mlflows_own_variable(tmp_path, glyphs_root, monkeypatch):
    told = []

    class Sender(train.tracking.Sender):
        def __init__(self, run, *, uri, **rest):
            told.append(uri)
            super().__init__(run, uri=uri, **rest)

    monkeypatch.setattr(train.tracking, "Sender", Sender)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    config = small_config(glyphs_root, tmp_path, meta={"steps": 1})
    train.fit(config)
    train.fit(small_config(glyphs_root, tmp_path, meta={"steps": 1}, tracking={"uri": f"sqlite:///{tmp_path}/x.db"}))
    assert told == ["http://127.0.0.1:1", f"sqlite:///{tmp_path}/x.db"]
