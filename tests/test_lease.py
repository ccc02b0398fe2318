"""Two drivers of one run: the second is refused on this machine at once, and from another one after a while."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.lease import Lease

FAST = {"beat_s": 0.05, "silence_s": 0.4}
LIMIT_S = 10


def lease(run: Path, host: str = "", lost=lambda: None) -> Lease:
    return Lease(run, lost=lost, host=host, **FAST)


@pytest.fixture
def unlocked(monkeypatch):
    """A file system that does not carry locks from one machine to another."""
    monkeypatch.setattr("pipeline.lease.fcntl.flock", lambda file, how: None)


@pytest.mark.drill("two drivers on one machine")
def test_two_drivers_on_one_machine(tmp_path):
    with lease(tmp_path), pytest.raises(InputError, match="another process"), lease(tmp_path):
        pass
    with lease(tmp_path) as second:
        assert second.before
    began = time.monotonic()
    with lease(tmp_path, "elsewhere"):  # whoever has ended is not waited for
        assert time.monotonic() - began < FAST["silence_s"]
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]


@pytest.mark.drill("two drivers on two machines")
def test_two_drivers_on_two_machines(tmp_path, unlocked):
    with lease(tmp_path, "one"):
        with pytest.raises(InputError, match=rf"trained by process {os.getpid()} of one"), lease(tmp_path, "two"):
            pass
        assert json.loads((tmp_path / "lease.json").read_text())["host"] == "one"


@pytest.mark.drill("driver of another machine dead")
def test_a_dead_holder_elsewhere_is_waited_for_and_taken_over(tmp_path, unlocked):
    (tmp_path / "lease.json").write_text(json.dumps({"host": "one", "pid": 1, "nonce": "x", "beat": 7}))
    began = time.monotonic()
    with lease(tmp_path, "two"):
        assert time.monotonic() - began >= FAST["silence_s"]
        assert json.loads((tmp_path / "lease.json").read_text())["host"] == "two"


def test_a_dead_holder_of_this_machine_is_not_waited_for(tmp_path):
    """Its lock is free."""
    code = "import os, sys; from pathlib import Path; from pipeline.lease import Lease\n"
    code += "Lease(Path(sys.argv[1]), lost=print).__enter__(); os._exit(9)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code, tmp_path], env=environment).returncode == 9
    assert (tmp_path / "lease.json").exists()
    began = time.monotonic()
    with Lease(tmp_path, lost=lambda: None):
        assert time.monotonic() - began < 1


@pytest.mark.drill("driver was cut off and taken over")
def test_who_was_taken_over_hears_of_it(tmp_path, unlocked):
    heard = threading.Event()
    with lease(tmp_path, "one", lost=heard.set):
        (tmp_path / "lease.json").write_text(json.dumps({"host": "two", "pid": 1, "nonce": "x", "beat": 0}))
        assert heard.wait(LIMIT_S)
    assert json.loads((tmp_path / "lease.json").read_text())["host"] == "two"


def test_of_two_that_take_over_at_once_one_goes_on(tmp_path, unlocked):
    (tmp_path / "lease.json").write_text(json.dumps({"host": "dead", "pid": 1, "nonce": "x", "beat": 7}))
    holders, refused = [], []

    def drive(host: str) -> None:
        try:
            with lease(tmp_path, host):
                holders.append(host)
                time.sleep(1)
        except InputError as error:
            refused.append(str(error))

    drivers = [threading.Thread(target=drive, args=(host,)) for host in ("one", "two")]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert len(holders) == len(refused) == 1


def test_half_a_lease_is_none(tmp_path):
    (tmp_path / "lease.json").write_text('{"host": "o')
    with lease(tmp_path, "two") as taken:
        assert not taken.before and json.loads((tmp_path / "lease.json").read_text())["host"] == "two"
