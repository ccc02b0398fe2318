"""The ledger of a sweep: what became of trials, read back exactly whatever moment its writer was killed at."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import InputError
from pipeline.ledger import FAILED, FILE, FINISHED, WAITING, Ledger


def written(tmp_path) -> Ledger:
    with Ledger(tmp_path) as ledger:
        ledger.proposed(0, {"lr": 0.5, "kind": "a"}, "search")
        ledger.begun(0, "node")
        ledger.value(0, 10, 0.25)
        ledger.value(0, 20, float("nan"))
        ledger.ended(0, FINISHED, objectives={"parameters": 10.0})
        ledger.proposed(1, {"lr": 0.1, "kind": "b"}, "start")
        ledger.begun(1, "node")
        ledger.failed_once(1, "lost")
        ledger.begun(1, "node")
        ledger.value(1, 10, 0.5)
        ledger.exchanged(1, 0, 20, {"lr": 0.4, "kind": "a"})
        ledger.value(1, 30, 0.1)
        ledger.proposed(2, {"lr": 0.2, "kind": "b"}, "search")
        ledger.ended(2, FAILED, said="never")
    return ledger


def test_what_was_written_is_read_back(tmp_path):
    before = written(tmp_path)
    with Ledger(tmp_path) as after:
        assert after.trials.keys() == {0, 1, 2}
        first, second, third = after.trials.values()
        assert (first.point, first.origin, first.state, first.attempts) == (
            {"lr": 0.5, "kind": "a"},
            "search",
            FINISHED,
            1,
        )
        assert first.score("max") == first.score("min") == 0.25 and first.steps == 20
        assert first.objectives == {"parameters": 10.0}
        # Begun and not ended: it goes on, and is judged by what it did since it took over another's state.
        assert (second.state, second.attempts, second.point) == (WAITING, 2, {"lr": 0.4, "kind": "a"})
        assert second.score("max") == 0.1 and second.exchanges == [
            {"source": 0, "step": 20, "point": {"lr": 0.4, "kind": "a"}}
        ]
        assert (third.state, third.said, third.score("max")) == (FAILED, "never", None)
        assert first.seconds == pytest.approx(before.trials[0].seconds)
        assert after.spent_s >= 0


def test_a_writer_killed_at_any_byte_loses_at_most_the_line_it_wrote(tmp_path):
    written(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    lines = whole.count(b"\n")
    for cut in range(len(whole) - 1, 0, -7):
        (tmp_path / FILE).write_bytes(whole[:cut])
        with Ledger(tmp_path) as ledger:
            ledger.proposed(9, {}, "search")
        events = [json.loads(line) for line in (tmp_path / FILE).read_bytes().splitlines()]
        assert len(events) == whole[:cut].count(b"\n") + 2 <= lines + 2


def test_an_end_that_an_earlier_version_wrote_is_read(tmp_path):
    """It told of seconds of training, which are in the spools of the runs."""
    written(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    known = [line | ({"trained_s": 0.0} if line["event"] == "ended" else {}) for line in lines]
    (tmp_path / FILE).write_text("".join(f"{json.dumps(line)}\n" for line in known))
    with Ledger(tmp_path) as ledger:
        assert [trial.state for trial in ledger.trials.values()] == [FINISHED, WAITING, FAILED]
        assert ledger.trials[0].objectives == {"parameters": 10.0}


def test_seconds_of_a_trial_end_with_its_driver(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    with Ledger(tmp_path) as ledger:
        ledger.proposed(0, {}, "search")
        ledger.begun(0, "")
        now[0] += 5
        ledger.value(0, 1, 0.0)
    now[0] += 1000
    with Ledger(tmp_path) as ledger:
        assert ledger.trials[0].seconds == 5 and ledger.spent_s == 5
        ledger.begun(0, "")
        now[0] += 2
        ledger.ended(0, FINISHED)
        assert ledger.trials[0].seconds == 7 and ledger.driven_s == 7


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"t": 1, "event": "driver", "format": 99}\n', "format 99"),
        ("nothing\n", "line 1: no event"),
        ("[]\n", "line 1: no event"),
    ],
)
def test_a_file_that_is_no_ledger_is_refused(tmp_path, content, said):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match=said):
        Ledger(tmp_path)
