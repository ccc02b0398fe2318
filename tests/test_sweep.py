"""What is found out about a sweep before its first trial: its file, all corners of its space, its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small import small_config
from typer.testing import CliRunner

from pipeline import build
from pipeline import sweep as verb
from pipeline.cli import app
from pipeline.config import dump
from pipeline.errors import InputError
from pipeline.ledger import Ledger
from pipeline.shipment import Target
from pipeline.sweep_plan import Plan, check, load, plan_of
from pipeline.sweeping import Sweeping
from pipeline.swept import CONFIG

CONFIGS = Path(__file__).parents[1] / "configs" / "sweep"


def tree_of(root: Path, runs: Path, sweep: dict | None = None, **changes) -> dict:
    """A sweep over the inner rate of a few meta-steps on the packed glyphs; `changes` replace keys of sections."""
    tree = dump(small_config(root, runs))
    tree["learner"]["rule"]["lr"] = {"loguniform": [0.01, 1]}
    for section, values in changes.items():
        tree[section] = {**tree[section], **values} if isinstance(values, dict) and section in tree else values
    return {**tree, "sweep": {"trials": 3, **(sweep or {})}}


def planned(root: Path, runs: Path, sweep: dict | None = None, **changes) -> Plan:
    return plan_of(tree_of(root, runs, sweep, **changes), "sweep.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"learner": {"rule": {"kind": "sgd", "lrr": {"uniform": [0, 1]}}}},
            "learner.rule.lrr: no such key; did you mean learner.rule.lr",
        ),
        (
            {"learner": {"rule": {"kind": "sgd", "lr": {"uniform": [0, 1]}}}},
            "learner.rule.lr = 0.0: input should be greater than 0",
        ),
        ({"learner": {"rule": {"kind": "sgd", "lr": 0.1}}}, "no value is a dimension"),
        ({"data": {"ways": {"int": [0, 3]}}}, "data.ways = 0"),
        ({"meta": {"steps": {"int": [0, 3]}}}, "meta.steps = 0: nothing is trained"),
        ({"workers": {"count": {"choice": [1, 2]}}}, "workers.count decides nothing"),
    ],
)
def test_a_value_that_the_config_refuses_is_found_at_the_corner_where_it_is(glyphs_root, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        planned(glyphs_root, tmp_path, **changes)


def test_the_corner_is_named(glyphs_root, tmp_path):
    with pytest.raises(InputError, match="in a corner of the search space: .*data.ways = 0"):
        planned(glyphs_root, tmp_path, data={"ways": {"int": [0, 3]}})


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"trials": None}, "nothing would end the sweep"),
        ({"trils": 3}, "sweep.trils: no such key; did you mean sweep.trials"),
        ({"search": {"kind": "grid"}}, "a grid needs choice or int"),
        ({"objectives": ["parameters"], "scheduler": {"kind": "asha", "grace": 2}}, "knows one metric"),
        ({"trials": None, "hours": 1, "scheduler": {"kind": "pbt", "every": 2}}, "size of the population"),
        ({"start": [{"learner.rule.lr": 7}]}, "sweep.start: .*is not inside"),
        ({"start": [{"lr": 0.1}]}, "sweep.start: .*no value for learner.rule.lr"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused(glyphs_root, tmp_path, sweep, said):
    with pytest.raises(InputError, match=said):
        planned(glyphs_root, tmp_path, sweep)


def test_a_file_without_a_sweep_is_named(glyphs_root, tmp_path):
    tree = tree_of(glyphs_root, tmp_path)
    del tree["sweep"]
    with pytest.raises(InputError, match="sweep.yaml: no section sweep"):
        plan_of(tree, "sweep.yaml")


def test_what_the_data_refuse_is_found_before_the_first_trial(glyphs_root, tmp_path):
    plan = planned(glyphs_root, tmp_path, data={"ways": {"int": [2, 20]}})
    with pytest.raises(InputError, match="8 classes"):
        check(plan, build.learner)


def test_a_population_must_have_weights_of_one_shape(glyphs_root, tmp_path):
    pbt = {"scheduler": {"kind": "pbt", "every": 2}}
    with pytest.raises(InputError, match="pbt: .*shapes differ"):
        check(planned(glyphs_root, tmp_path, pbt, model={"width": {"choice": [4, 6]}}), build.learner)
    check(planned(glyphs_root, tmp_path, pbt, learner={"steps": {"int": [1, 2]}}), build.learner)


def test_a_trial_has_the_threads_it_pays_for_and_keeps_what_it_is_judged_by(glyphs_root, tmp_path):
    plan = planned(glyphs_root, tmp_path, {"scheduler": {"kind": "pbt", "every": 2}}, workers={"threads": None})
    config = plan.trial({"learner.rule.lr": 0.1}, tmp_path / "s")
    assert config.workers.threads == 1 and config.checkpoint.every == config.validation.every == 3
    assert config.runs == tmp_path / "s" / "trials"


def begun(plan: Plan, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(yaml.safe_dump(plan.tree))


def test_a_name_is_used_once(glyphs_root, tmp_path):
    plan = planned(glyphs_root, tmp_path)
    example = plan.config({"learner.rule.lr": 0.1})
    assert verb._folder(plan, example, None) == tmp_path / "small"
    begun(plan, tmp_path / "small")
    with pytest.raises(InputError, match="with this very search space; go on with it by --resume small"):
        verb._folder(plan, example, None)
    assert verb._folder(plan, example, tmp_path / "small") == tmp_path / "small"
    other = planned(glyphs_root, tmp_path, learner={"rule": {"kind": "sgd", "lr": {"loguniform": [0.1, 1]}}})
    with pytest.raises(InputError, match="another search space .*learner.rule.lr.loguniform.*choose another name"):
        verb._folder(other, example, None)
    with pytest.raises(InputError, match="--resume .*: its search is another one: learner.rule.lr"):
        verb._folder(other, example, tmp_path / "small")
    more = planned(glyphs_root, tmp_path, {"trials": 9, "retries": 0, "concurrent": 1})
    assert verb._folder(more, example, tmp_path / "small") == tmp_path / "small"
    with pytest.raises(InputError, match="sweep.seed: .*-> 1"):
        verb._folder(planned(glyphs_root, tmp_path, {"seed": 1}), example, tmp_path / "small")


def test_a_folder_that_is_no_sweep_is_refused(glyphs_root, tmp_path):
    plan = planned(glyphs_root, tmp_path)
    example = plan.config({"learner.rule.lr": 0.1})
    with pytest.raises(InputError, match="--resume .*gone: not a sweep's folder"):
        verb._folder(plan, example, tmp_path / "gone")
    (tmp_path / "small").mkdir()
    with pytest.raises(InputError, match="is there already; choose another name"):
        verb._folder(plan, example, None)


def test_the_command_line_says_a_fault_in_one_line_and_starts_nothing(glyphs_root, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(tree_of(glyphs_root, tmp_path / "runs", learner={"stepss": {"int": [1, 2]}})))
    result = CliRunner().invoke(app, ["sweep", str(file)])
    assert isinstance(
        result.exception, InputError
    ) and "learner.stepss: no such key; did you mean learner.steps" in str(result.exception)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_can_be_made_at_all_its_corners(glyphs_root, tmp_path, path):
    plan = load(path, [f"data.root={glyphs_root}", f"runs={tmp_path}", "evaluate.queries=2"])
    assert check(plan, build.learner).runs == tmp_path


def test_a_spent_budget_and_a_wish_to_stop_end_a_sweep(glyphs_root, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    target = Target("", "metashard", "small")

    def over(sweep: dict) -> Callable[[], bool]:
        plan = planned(glyphs_root, tmp_path, sweep)
        return Sweeping(plan, tmp_path, ledger, build.learner, print, target).is_over

    with Ledger(tmp_path) as ledger:
        steps, hours = over({"meta_steps": 30}), over({"hours": 0.5})
        assert not steps() and not hours()
        for number in range(3):
            ledger.proposed(number, {"learner.rule.lr": 0.1}, "search")
            ledger.value(number, 10, 0.5)
            assert steps() == (number == 2)
        now[0] += 1799
        assert not hours()
        now[0] += 2
        assert hours()
        asked = Sweeping(planned(glyphs_root, tmp_path), tmp_path, ledger, build.learner, print, target)
        assert not asked.is_over()
        asked.is_asked = True
        assert asked.is_over()
