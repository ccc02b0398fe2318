"""The keys of `sweep`: how a search space is searched, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from pipeline.errors import InputError
from pipeline.schema.values import Config, NonNegativeInt, Number, PositiveFloat, PositiveInt

Objective = Literal["parameters", "adaptation_s"]


class RandomSearch(Config):
    """Trial n is a pure function of the seed and n."""

    kind: Literal["random"] = "random"


class GridSearch(Config):
    """Every combination of choices and integers."""

    kind: Literal["grid"] = "grid"


class TpeSearch(Config):
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011); with objectives its form for several of them."""

    kind: Literal["tpe"] = "tpe"
    startup: PositiveInt = 10
    """Trials drawn at random before the first that is estimated."""


SearchConfig = Annotated[RandomSearch | GridSearch | TpeSearch, Field(discriminator="kind")]


class NoScheduler(Config):
    """Every trial trains to its end."""

    kind: Literal["none"] = "none"


class AshaConfig(Config):
    """Asynchronous successive halving (Li et al. 2020)."""

    kind: Literal["asha"] = "asha"
    grace: PositiveInt
    """Meta-steps that every trial trains."""
    reduction: Annotated[FiniteFloat, Number, Field(gt=1)] = 3.0
    """Of so many trials that reach a rung one goes on; the next rung lies so many times as far."""


class MedianConfig(Config):
    """A trial stops whose best value so far is below the median of the others' averages (Golovin et al. 2017)."""

    kind: Literal["median"] = "median"
    grace: PositiveInt
    """Meta-steps that every trial trains."""
    least: PositiveInt = 3
    """Trials that must have come as far before one is stopped."""


class PbtConfig(Config):
    """Population-based training (Jaderberg et al. 2017): the worst go on from the best, with other hyperparameters."""

    kind: Literal["pbt"] = "pbt"
    every: PositiveInt
    """Meta-steps between two exchanges."""
    quantile: Annotated[FiniteFloat, Number, Field(gt=0, le=0.5)] = 0.25
    """Share of the population that goes on from another one, and of those that it goes on from."""
    resample: Annotated[FiniteFloat, Number, Field(ge=0, le=1)] = 0.25
    """How often a hyperparameter is drawn anew instead of being moved a little."""


SchedulerConfig = Annotated[NoScheduler | AshaConfig | MedianConfig | PbtConfig, Field(discriminator="kind")]


class WarmConfig(Config):
    """The best points of past sweeps, those on data most like these first, are tried before the search begins."""

    points: PositiveInt = 3
    sweeps: tuple[str, ...] = ()
    """Which past sweeps, by name; none: all that MLflow has in the experiment."""
    uri: str = ""
    """The MLflow that has them; empty: the sweep's own."""


class SweepConfig(Config):
    """What is searched, beside a run config with dimensions for values."""

    trials: PositiveInt | None = None
    """At most; none: as many as the grid has, or until another budget is spent."""
    meta_steps: PositiveInt | None = None
    """Of all trials together."""
    hours: PositiveFloat | None = None
    search: SearchConfig = RandomSearch()
    scheduler: SchedulerConfig = NoScheduler()
    seed: NonNegativeInt = 0
    """Of the search; `seed` of the run is that of its episodes and initial values."""
    metric: str = "validation/score"
    """What trials are judged by: the best value of this metric of theirs."""
    mode: Literal["max", "min"] = "max"
    objectives: tuple[Objective, ...] = ()
    """Besides the metric, what is to be small: learned parameters, or seconds that adapting to an episode takes."""
    concurrent: PositiveInt | None = None
    """Trials at a time; none: as many as the cluster has room for."""
    retries: NonNegativeInt = 2
    """How often a trial that failed is tried again."""
    start: tuple[dict[str, Any], ...] = ()
    """Points that are tried first, as values by dimension."""
    warm: WarmConfig | None = None
    """Learn from past sweeps; none: begin with nothing."""
    storage: Path | None = None
    """Where a population keeps what it exchanges, seen by all nodes; none: the sweep's folder."""

    @model_validator(mode="after")
    def _bounded(self) -> SweepConfig:
        if self.search.kind != "grid" and self.trials is None and self.meta_steps is None and self.hours is None:
            raise InputError(
                "trials, meta_steps and hours are all missing: nothing would end the sweep; give one of them"
            )
        if self.objectives and self.scheduler.kind != "none":
            raise InputError(
                f"objectives = {list(self.objectives)} with scheduler.kind = {self.scheduler.kind}: what stops a trial early "
                "knows one metric; leave one of them out"
            )
        if self.scheduler.kind == "pbt" and self.trials is None:
            raise InputError("trials is missing: with scheduler.kind = pbt it is the size of the population; give it")
        return self
