"""What Ray Tune is told of a trial and asks of the sweep, without its processes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pipeline import build, checkpoint, trial, tuning
from pipeline.archive import Folder
from pipeline.checkpoint import Checkpoint
from pipeline.schema.sweep import PbtConfig
from pipeline.shipment import Target
from pipeline.sweeping import Sweeping

MANY = 8


def saved(run: Path, step: int, best_step: int) -> None:
    state = {"best_step": best_step}
    made = Checkpoint(step, {"w": torch.zeros(1)}, {"state": {}, "param_groups": []}, state, {"name": "x"})
    checkpoint.save(run / "checkpoints", made)


def test_objectives_are_those_of_the_best_checkpoint(tmp_path, monkeypatch):
    with Folder(tmp_path) as archive:
        for step in (3, 6):
            archive.metrics(step, {"validation/score": 1 / step})
            saved(tmp_path, step, best_step=3)
        ended: Any = object.__new__(trial.Trial)
        ended.setting = trial.Setting(None, "validation/score", ("parameters",))
        ended._archive, ended._training = archive, SimpleNamespace(join=lambda: None)
        ended._config = SimpleNamespace(meta=SimpleNamespace(steps=6))
        monkeypatch.setattr(
            trial, "costs_of", lambda _, files, made_by: {"parameters": checkpoint.decoded(files, tmp_path).step}
        )
        told = ended._concluded()
    assert told[trial.STEP] == 6 and json.loads(told["objectives"]) == {"parameters": 3}


def test_in_a_population_a_run_stands_still_between_its_value_and_the_exchange(tmp_path):
    """What it told in the meantime, until it had stopped, is told when it goes on; others take over the state that was judged."""
    ended: list[bool] = []
    one: Any = object.__new__(trial.Trial)
    one.setting = trial.Setting(None, "validation/score", (), every=3)
    one._config, one._told, one._since, one._exchange = SimpleNamespace(meta=SimpleNamespace(steps=9)), -1, 0, ""
    (tmp_path / "run").mkdir()
    with Folder(tmp_path / "run") as archive:
        one._archive = archive
        for step in (2, 4, 6):
            archive.metrics(step, {"validation/score": 1 / step})
            saved(archive.run, step, best_step=2)
        one._training = SimpleNamespace(is_over=lambda: False, end=lambda: ended.append(True))
        assert one._next()[trial.STEP] == 2 and not ended
        assert one._next()[trial.STEP] == 4 and ended and one._training is None and not archive.stop_asked()
        one.save_checkpoint(str(tmp_path))
        one._told, one._since = 5, 0
        one.load_checkpoint(str(tmp_path))
        assert (one._told, one._since) == (4, 4)
        one._training = SimpleNamespace(is_over=lambda: False)
        assert one._next()[trial.STEP] == 6
    with Folder(tmp_path / "other") as archive:
        (tmp_path / "other").mkdir()
        one._archive, one._exchange = archive, "0 4 1"
        one.load_checkpoint(str(tmp_path))
        assert archive.newest() == one._told == one._since == 4


class Member:
    """A trial as a population sees it."""

    def __init__(self, number: int):
        self.config, self.trial_id, self.status = {"number": number}, str(number), "RUNNING"
        self.experiment_tag, self.checkpoint, self.temporary_state = "", "saved", SimpleNamespace(saving_to=None)
        checkpoints = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        self.run_metadata = SimpleNamespace(checkpoint_manager=checkpoints)

    def is_finished(self) -> bool:
        return self.status == "ERROR"


def sweeping(seed: int) -> Sweeping:
    """A sweep of which only the seed is of interest."""
    plan: Any = SimpleNamespace(sweep=SimpleNamespace(seed=seed))
    ledger: Any = SimpleNamespace(trials={})
    return Sweeping(plan, Path(), ledger, build.learner, print, Target("", "", ""))


class Population:
    """Trials of which a higher number is always better, and Tune's part in exchanges between them."""

    def __init__(self, many: int, seed: int, monkeypatch):
        self.scheduler = tuning._Population(PbtConfig(every=1, quantile=0.5), sweeping(seed))
        self.scheduler.set_search_properties(trial.VALUE, "max")
        monkeypatch.setattr(self.scheduler, "_exploit", self._exploit)
        self.found: list[tuple[int, int]] = []
        """Who went on from whom."""
        self.members: list[Any] = [Member(number) for number in range(many)]
        self.controller: Any = SimpleNamespace(
            get_trials=lambda: list(self.members),
            get_live_trials=lambda: [member for member in self.members if not member.is_finished()],
            _schedule_trial_save=lambda member, result: "saved",
        )
        for member in self.members:
            self.scheduler.on_trial_add(self.controller, member)

    def _exploit(self, _, worse: Member, better: Member) -> None:
        self.found.append((worse.config["number"], better.config["number"]))

    def judge(self, member: Any, step: int) -> None:
        result = {trial.STEP: step, trial.VALUE: float(member.config["number"])}
        self.scheduler.on_trial_result(self.controller, member, result)
        member.status = "PAUSED"


def exchanges(seed: int, monkeypatch, steps: int = 4) -> list[tuple[int, int]]:
    population = Population(MANY, seed, monkeypatch)
    for step in range(1, steps + 1):
        for member in population.members:
            population.judge(member, step)
    return population.found


def test_whom_a_trial_goes_on_from_depends_on_the_seed_and_its_numbers_alone(monkeypatch):
    found = []
    for state in (0, 1):
        random.seed(state)
        found.append(exchanges(7, monkeypatch))
    assert found[0] == found[1] and len(found[0]) == 4 * MANY // 2
    assert {worse for worse, _ in found[0]} == set(range(MANY // 2))
    assert {better for _, better in found[0]} == set(range(MANY // 2, MANY))
    assert exchanges(8, monkeypatch) != found[0]
    # Another time it is another one.
    assert len({better for worse, better in found[0] if worse == 0}) > 1


def test_a_population_does_not_wait_for_one_that_has_failed(monkeypatch):
    population = Population(3, 0, monkeypatch)
    first, second, last = population.members
    population.judge(first, 1)
    population.judge(second, 1)
    # It is at work.
    assert population.scheduler.choose_trial_to_run(population.controller) is None
    last.status = "ERROR"
    assert population.scheduler.choose_trial_to_run(population.controller) in (first, second)
    assert population.found == [(0, 1)]


def test_the_order_in_which_the_best_are_named_changes_nothing():
    one = sweeping(3)
    assert [one.source(1, step, [4, 9, 6]) for step in range(6)] == [
        one.source(1, step, [9, 6, 4]) for step in range(6)
    ]
