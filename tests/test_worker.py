"""What a worker chooses and tells: the engine's plan, kept for the next run, and a profiler trace on request."""

import json
import math

import pytest
from gloo import work_here
from small import episode, make, small_config

from pipeline import checkpoint, plans, spool
from pipeline.archive import Folder
from pipeline.config import dump
from pipeline.engine import Plan, Trial


def plan_of(run) -> str:
    return spool.history(run).tags["engine.plan"]


def test_a_plan_is_measured_once_kept_and_told(tmp_path, glyphs_root):
    config = dump(small_config(glyphs_root, tmp_path, engine={"mode": "auto"}, meta={"steps": 1}))
    work_here(config, str(tmp_path / "one"))
    tags = spool.history(tmp_path / "one").tags
    assert "loop × 1" in tags["engine.trials"] and tags["engine.plan"] in tags["engine.trials"]
    (kept,) = (tmp_path / "plans").glob("*.json")
    assert checkpoint.latest(tmp_path / "one" / "checkpoints").state["plan"] == json.loads(kept.read_text())[0][0]
    # Another run of the same kind believes what is kept, and does not measure.
    kept.write_text(json.dumps([[["vmap", 2, "first"], 0.1, ""]]))
    work_here(config, str(tmp_path / "two"))
    assert plan_of(tmp_path / "two") == "vmap × 2, channels first"


@pytest.fixture
def measured(monkeypatch) -> list[Trial]:
    """What measuring gives: nothing is timed."""
    trials = [Trial(Plan("vmap", 2), 0.5), Trial(Plan("compiled", 2), math.inf, "no compiler")]
    monkeypatch.setattr(plans, "measure", lambda *_, **__: trials)
    return trials


@pytest.mark.parametrize("content", ["", "[[1]]", "{}", '[["x"]]'])
def test_a_plan_that_cannot_be_read_is_measured_again(tmp_path, glyphs_root, measured, content):
    asked = small_config(glyphs_root, tmp_path), make("maml"), [episode(0)], None, Folder(tmp_path / "run")
    assert plans.measured(*asked) == measured
    (kept,) = (tmp_path / "plans").glob("*.json")
    whole = kept.read_text()
    kept.write_text(content)
    assert plans.measured(*asked) == measured and kept.read_text() == whole


def test_another_model_is_another_plan(tmp_path, glyphs_root, measured):
    for width in (4, 6, 4):
        config = small_config(glyphs_root, tmp_path, model={"width": width})
        assert plans.measured(config, make("maml"), [episode(0)], None, Folder(tmp_path / "run")) == measured
    assert len(list((tmp_path / "plans").glob("*.json"))) == 2


@pytest.mark.parametrize("abreast", [1, 2])
def test_a_meta_step_is_traced_on_request(tmp_path, glyphs_root, abreast):
    engine = {"profile_at": 2, "mode": "loop", "abreast": abreast}
    config = small_config(glyphs_root, tmp_path, engine=engine, meta={"steps": 3})
    work_here(dump(config), str(tmp_path / "run"))
    (trace,) = (tmp_path / "run").glob("trace-*.json")
    assert trace.name == "trace-step-00000002.json"
    convolving = {
        e["tid"] for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "aten::convolution"
    }
    assert len(convolving) == abreast
    told = [record for _, record in spool.records(tmp_path / "run") if record["kind"] == "artifact"]
    assert any("trace-step-00000002.json" in json.dumps(record) for record in told)
