"""Which point of a space a sweep tries next: at random, on a grid, or where Optuna's estimator expects the best.

Each is a function of the number of the trial and of what is known of the others, and remembers nothing itself: a sweep that goes
on after a kill proposes what it would have proposed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, assert_never

from pipeline.ledger import FAILED, FINISHED, STOPPED, Trial
from pipeline.schema.sweep import GridSearch, RandomSearch, SweepConfig, TpeSearch
from pipeline.space import CHOICE, Dimension, Point, Space, Value

MINIMISED = "minimize"


def propose(space: Space, sweep: SweepConfig, number: int, trials: Mapping[int, Trial]) -> Point | None:
    """The point of trial `number`; None where there is no further one.

    Raises:
        InputError: a grid over a dimension that has no end of values.
    """
    match sweep.search:
        case RandomSearch():
            return space.sample(sweep.seed, number)
        case GridSearch():
            # Points that were tried first come before the grid and may be on it.
            tried = [trial.point for trial in trials.values() if trial.number < number]
            return next((point for point in space.grid() if point not in tried), None)
        case TpeSearch(startup=startup):
            done = sum(trial.is_over and trial.score(sweep.mode) is not None for trial in trials.values())
            if number < startup or not done:
                return space.sample(sweep.seed, number)
            return _estimated(space, sweep, number, trials)
        case _:
            assert_never(sweep.search)


def _estimated(space: Space, sweep: SweepConfig, number: int, trials: Mapping[int, Trial]) -> Point:
    """What the estimator proposes, which is made anew from all trials, those that still run included."""
    import optuna  # a second, which other searches need not pay

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        # The estimator of dimensions that hang on one another is marked experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=(sweep.seed * 1_000_003 + number) % 2**32,
            n_startup_trials=1,
            multivariate=True,
            group=True,
            # Trials that run count as bad ones, so that their neighbourhood is left to them.
            constant_liar=True,
        )
    main = MINIMISED if sweep.mode == "min" else "maximize"
    study = optuna.create_study(sampler=sampler, directions=[main, *(MINIMISED for _ in sweep.objectives)])
    for trial in trials.values():
        if trial.number < number and trial.state != FAILED:
            study.add_trial(_as_optuna(space, sweep, trial))
    asked = study.ask()
    return space.walked(lambda dimension: _suggested(asked, dimension))


def _as_optuna(space: Space, sweep: SweepConfig, trial: Trial) -> Any:
    import optuna

    by_name = {dimension.name: dimension for dimension in space.dimensions}
    params = {name: _index(by_name[name], value) for name, value in trial.point.items()}
    distributions = {name: _distribution(by_name[name]) for name in trial.point}
    score = trial.score(sweep.mode)
    state = optuna.trial.TrialState.RUNNING
    values = None
    if trial.state == FINISHED and score is not None and set(sweep.objectives) <= trial.objectives.keys():
        state = optuna.trial.TrialState.COMPLETE
        values = [score, *(trial.objectives[name] for name in sweep.objectives)]
    elif trial.state == STOPPED and not sweep.objectives:
        state = optuna.trial.TrialState.PRUNED
    known = {step: value for step, value in trial.values.items() if value == value} if not sweep.objectives else {}
    return optuna.trial.create_trial(
        params=params, distributions=distributions, values=values, state=state, intermediate_values=known
    )


def _distribution(dimension: Dimension) -> Any:
    from optuna import distributions

    if dimension.kind == CHOICE:
        return distributions.CategoricalDistribution(list(range(len(dimension.options))))
    if "int" in dimension.kind:
        return distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.is_log)
    return distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.is_log)


def _index(dimension: Dimension, value: Value) -> Any:
    """Options by number: of those of a study Optuna cannot tell 1 from true."""
    return dimension.index(value) if dimension.kind == CHOICE else value


def _suggested(asked: Any, dimension: Dimension) -> Value:
    if dimension.kind == CHOICE:
        return dimension.options[asked.suggest_categorical(dimension.name, list(range(len(dimension.options))))]
    suggest = asked.suggest_int if "int" in dimension.kind else asked.suggest_float
    return suggest(dimension.name, dimension.low, dimension.high, log=dimension.is_log)
