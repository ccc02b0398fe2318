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


class Member:
    """A trial as a population sees it."""

    def __init__(self, number: int):
        self.config, self.trial_id, self.status = {"number": number}, str(number), "RUNNING"
        self.experiment_tag, self.is_finished = "", lambda: False
        checkpoints = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        self.run_metadata = SimpleNamespace(checkpoint_manager=checkpoints)


def sweeping(seed: int) -> Sweeping:
    """A sweep of which only the seed is of interest."""
    plan: Any = SimpleNamespace(sweep=SimpleNamespace(seed=seed))
    ledger: Any = SimpleNamespace(trials={})
    return Sweeping(plan, Path(), ledger, build.learner, print, Target("", "", ""))


def exchanges(seed: int, monkeypatch, steps: int = 4) -> list[tuple[int, int]]:
    """Who went on from whom in a population of which the better half and the worse stay what they are."""
    population = tuning._Population(PbtConfig(every=1, quantile=0.5), sweeping(seed))
    population.set_search_properties(trial.VALUE, "max")
    found: list[tuple[int, int]] = []

    def exploit(_, worse: Member, better: Member) -> None:
        found.append((worse.config["number"], better.config["number"]))

    monkeypatch.setattr(population, "_exploit", exploit)
    members: list[Any] = [Member(number) for number in range(MANY)]
    controller: Any = SimpleNamespace(
        get_trials=lambda: list(members),
        get_live_trials=lambda: list(members),
        _schedule_trial_save=lambda member, result: "saved",
    )
    for member in members:
        population.on_trial_add(controller, member)
    for step in range(1, steps + 1):
        for member in members:
            result = {trial.STEP: step, trial.VALUE: float(member.config["number"])}
            population.on_trial_result(controller, member, result)
    return found


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


def test_the_order_in_which_the_best_are_named_changes_nothing():
    one = sweeping(3)
    assert [one.source(1, step, [4, 9, 6]) for step in range(6)] == [
        one.source(1, step, [9, 6, 4]) for step in range(6)
    ]
