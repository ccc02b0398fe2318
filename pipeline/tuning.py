"""How a sweep's trials are handed to Ray Tune, and what it says of them put into the ledger."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, assert_never

import ray
from ray import tune
from ray.tune import experiment
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher

from pipeline import failures
from pipeline.config import dump
from pipeline.distant import keeper, let_go
from pipeline.ledger import FAILED, FINISHED, STOPPED, WAITING
from pipeline.ray_groups import in_thread
from pipeline.schema.run import RunConfig
from pipeline.schema.sweep import AshaConfig, MedianConfig, NoScheduler, PbtConfig
from pipeline.sweeping import Sweeping
from pipeline.trial import ENDED, STEP, VALUE, Setting, Trial

NOTES = "tune"
"""The folder of what Ray Tune writes; nothing of it is ever read by us."""
WATCHING = {"memory": float(1 << 20)}
"""What an actor takes that only watches a group: something, or Tune would not place it, and no CPU, which its group needs."""
LOST = "its process ended without a word, as when memory is short or its node was lost"


def run_trials(sweeping: Sweeping, *, example: RunConfig, notes: Path) -> None:
    """Have Tune run trials until there is no further one; in a Ray session. `example` is one of their configs."""
    sweep, workers = sweeping.plan.sweep, example.workers
    each = workers.needs if workers.is_alone else WATCHING
    if workers.is_alone and workers.gpus is None and ray.cluster_resources().get("GPU", 0) >= 1:
        each = {**each, "GPU": 1.0}
    population = sweep.trials if isinstance(sweep.scheduler, PbtConfig) else None
    at_once = population or sweep.concurrent or slots(example)
    quiet = {
        # Files of its own for every trial, and a copy of its state for resuming, which our ledger is for.
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",  # which would tell of itself whatever it is asked
        "TUNE_MAX_PENDING_TRIALS_PG": str(at_once),
    }
    os.environ.update(quiet)
    with keeper() as actor:
        every = sweep.scheduler.every if isinstance(sweep.scheduler, PbtConfig) else 0
        setting = Setting(actor, sweep.metric, sweep.objectives, sweeping.make_learner, every)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(Trial, setting=setting), each),
            tune_config=tune.TuneConfig(
                metric=VALUE,
                mode=sweep.mode,
                search_alg=_Proposals(sweeping),
                scheduler=_scheduler(sweeping, example),
                num_samples=-1,
                max_concurrent_trials=None if population else at_once,
                reuse_actors=True,
                trial_name_creator=lambda trial: f"trial-{trial.config['number']:04d}",
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=NOTES,
                storage_path=str(notes),
                failure_config=tune.FailureConfig(max_failures=sweep.retries),
                verbose=0,
                callbacks=[_Events(sweeping, actor)],
                stop=_Over(sweeping),
            ),
        )
        try:
            in_thread(tuner.fit)
        finally:
            shutil.rmtree(notes / NOTES, ignore_errors=True)


def slots(config: RunConfig) -> int:
    """How many trials the cluster has room for at a time, at least one."""
    have, workers = ray.cluster_resources(), config.workers
    room = [have.get(kind, 0) // (workers.most * amount) for kind, amount in workers.needs.items() if amount]
    return max(1, int(min(room)))


class _Proposals(Searcher):
    """Gives Tune the trials that the sweep proposes; it remembers nothing, so that there is nothing to save."""

    def __init__(self, sweeping: Sweeping):
        super().__init__()
        self._sweeping = sweeping

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        found = None if self._sweeping.is_over() else self._sweeping.next()
        if found is None:
            return Searcher.FINISHED
        number, config = found
        return _settings(number, config, self._sweeping, "")

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """What is known of a trial is in the ledger."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a sweep goes on from its ledger."""


def _settings(number: int, config: RunConfig, sweeping: Sweeping, exchange: str) -> dict[str, Any]:
    """What a trial's actor is told. Tune reads nested settings its own way, so that they come as text."""
    folder = str(sweeping.run(number).absolute())
    return {"number": number, "folder": folder, "config": json.dumps(dump(config)), "exchange": exchange}


class _Events(tune.Callback):
    """Writes down what becomes of trials."""

    def __init__(self, sweeping: Sweeping, actor: Any):
        self._sweeping, self._actor = sweeping, actor
        self._noted: dict[int, int] = {}
        """Failures that a trial had written down when it failed before."""

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        number = trial.config["number"]
        # A population takes turns: a trial may begin that had only paused.
        if self._sweeping.ledger.trials[number].state == WAITING:
            self._sweeping.ledger.begun(number, trial.node_ip or "")

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        number = trial.config["number"]
        self._sweeping.ledger.value(number, int(result[STEP]), float(result[VALUE]))

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        number, last = trial.config["number"], trial.last_result
        is_whole = last.get(ENDED, True)
        if is_whole:
            objectives = json.loads(last.get("objectives", "{}"))
            state = FINISHED if ENDED in last else STOPPED
            self._sweeping.ledger.ended(number, state, objectives=objectives)
        let_go(self._actor, self._sweeping.run(number))
        self._sweeping.heard(number)

    def on_trial_recover(self, iteration, trials, trial, **info) -> None:
        number = trial.config["number"]
        self._sweeping.ledger.failed_once(number, self._said(trial))
        self._sweeping.heard(number)

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        number = trial.config["number"]
        self._sweeping.ledger.ended(number, FAILED, said=self._said(trial))
        let_go(self._actor, self._sweeping.run(number))
        self._sweeping.heard(number)

    def _said(self, trial) -> str:
        """Why the trial failed now: as it wrote down itself, or else what Ray heard."""
        number = trial.config["number"]
        told = failures.since_start(self._sweeping.run(number))
        before, self._noted[number] = self._noted.get(number, 0), len(told)
        if len(told) > before:
            return told[-1].said
        heard = str(trial.get_error() or "")
        lines = [line.strip() for line in heard.splitlines() if line.strip()]
        return lines[-1] if lines and "ActorDied" not in heard and "RayActorError" not in heard else LOST


class _Over(tune.Stopper):
    """Ends all trials when a budget is spent."""

    def __init__(self, sweeping: Sweeping):
        self._sweeping = sweeping

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._sweeping.is_over()


def _scheduler(sweeping: Sweeping, example: RunConfig) -> TrialScheduler:
    chosen = sweeping.plan.sweep.scheduler
    match chosen:
        case NoScheduler():
            return FIFOScheduler()
        case AshaConfig(grace=grace, reduction=reduction):
            longest = max(grace, example.meta.steps)
            return AsyncHyperBandScheduler(
                time_attr=STEP, max_t=longest, grace_period=grace, reduction_factor=reduction
            )
        case MedianConfig(grace=grace, least=least):
            return MedianStoppingRule(time_attr=STEP, grace_period=grace, min_samples_required=least)
        case PbtConfig():
            return _Population(chosen, sweeping)
        case _:
            assert_never(chosen)


class _Population(PopulationBasedTraining):
    """Tune's, in which all wait for one another before an exchange; the sweep says who goes on from whom, and at which point."""

    def __init__(self, config: PbtConfig, sweeping: Sweeping):
        super().__init__(
            time_attr=STEP,
            perturbation_interval=config.every,
            quantile_fraction=config.quantile,
            custom_explore_fn=lambda settings: settings,
            log_config=False,
            synch=True,
        )
        self._sweeping = sweeping
        self._exchanges = 0

    def on_trial_add(self, tune_controller, trial) -> None:
        # Tune refuses searchers here, which hear nothing of exchanges; ours reads of them in the ledger.
        super().on_trial_add(SimpleNamespace(search_alg=None), trial)  # pyright: ignore[reportArgumentType]

    def choose_trial_to_run(self, tune_controller) -> Any:
        chosen, live = super().choose_trial_to_run(tune_controller), list(tune_controller.get_live_trials())
        if chosen is None and live and all(trial.status == experiment.Trial.PAUSED for trial in live):
            # Whom all waited for has ended, or failed; Tune would wait for ever.
            result = self._trial_state[live[0]].last_result
            assert result is not None
            self.on_trial_result(tune_controller, live[0], result)
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen

    def _checkpoint_or_exploit(self, trial, tune_controller, upper_quantile, lower_quantile) -> None:
        # Among several best ones Tune draws by Python's own generator, which nobody seeds; of one there is nothing to draw.
        if trial in lower_quantile:
            best = {other.config["number"]: other for other in upper_quantile}
            step = int(self._trial_state[trial].last_train_time)
            upper_quantile = [best[self._sweeping.source(trial.config["number"], step, best)]]
        super()._checkpoint_or_exploit(trial, tune_controller, upper_quantile, lower_quantile)

    def _get_new_config(self, trial, trial_to_clone) -> tuple[dict, dict]:
        number, source = trial.config["number"], trial_to_clone.config["number"]
        step = int(self._trial_state[trial_to_clone].last_train_time)
        self._exchanges += 1
        config = self._sweeping.moved(number, source, step)
        return _settings(number, config, self._sweeping, f"{source} {step} {self._exchanges}"), {}
