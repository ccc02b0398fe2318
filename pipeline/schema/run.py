"""The keys of a run: its sections that are no section of their own, and the whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    FiniteFloat,
    PlainSerializer,
    PlainValidator,
    field_validator,
    model_validator,
)

from pipeline.data.root import Url
from pipeline.errors import InputError
from pipeline.schema.data import DataConfig, ShapeConfig
from pipeline.schema.learner import LearnerConfig
from pipeline.schema.model import Conv4Config, ModelConfig
from pipeline.schema.task import ClassificationConfig, TaskConfig
from pipeline.schema.values import AtLeastTwo, Config, NonNegativeInt, Number, Part, PositiveFloat, PositiveInt

REGISTERED = r"^([A-Za-z0-9][A-Za-z0-9 ._-]{0,199})?$"
"""A name that MLflow's registry takes, or none."""
ALIAS = r"^([A-Za-z_-][A-Za-z0-9_-]{0,199})?$"


def store_of_runs(given: object) -> Url | None:
    """What `mirror` names."""
    match given:
        case None | Url():
            return given
        case str() if "://" in given:
            return Url(given)
        case _:
            raise InputError(f"{given!r} is no URL, as s3://bucket/runs; a shared folder can be `runs` itself")


def _text_or_none(url: Url | None) -> str | None:
    return None if url is None else str(url)


class AdamConfig(Config):
    kind: Literal["adam"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: Annotated[FiniteFloat, Number, Field(ge=0)] = 0.0


class MomentumConfig(Config):
    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.1
    momentum: Part = 0.9
    weight_decay: Annotated[FiniteFloat, Number, Field(ge=0)] = 0.0


OptimizerConfig = Annotated[AdamConfig | MomentumConfig, Field(discriminator="kind")]


class ConstantConfig(Config):
    kind: Literal["constant"] = "constant"


class CosineConfig(Config):
    kind: Literal["cosine"] = "cosine"
    floor: Annotated[FiniteFloat, Number, Field(ge=0, le=1)] = 0.01
    """Share of the rate that is left at the end."""


class StepConfig(Config):
    kind: Literal["step"] = "step"
    every: PositiveInt = 1000
    factor: Annotated[FiniteFloat, Number, Field(gt=0, le=1)] = 0.5


ScheduleConfig = Annotated[ConstantConfig | CosineConfig | StepConfig, Field(discriminator="kind")]


class MetaConfig(Config):
    """The outer loop."""

    steps: NonNegativeInt
    """0: nothing is trained; what the run starts from is evaluated."""
    batch: PositiveInt = 4
    """Episodes per meta-step, over all workers together."""
    optimizer: OptimizerConfig = AdamConfig()
    schedule: ScheduleConfig = ConstantConfig()
    clip: PositiveFloat = 10.0
    """Largest norm of the reduced meta-gradient."""
    precision: Literal["float32", "float64", "bf16"] = "float32"
    skip_limit: PositiveInt = 10
    """Meta-steps in a row with a loss or gradient that is not finite, after which the run stops with a report."""


class ValidationConfig(Config):
    every: PositiveInt = 200
    aside: bool = False
    """A process of its own validates while training goes on; what it finds counts at the next validation. Needs Ray."""
    episodes: PositiveInt = 200
    patience: NonNegativeInt = 0
    """Validations without a better result after which the run stops; 0: it never does."""


class EvaluateConfig(Config):
    """Episodes on which the result is measured; what is not named is as in training."""

    ways: PositiveInt | None = None
    shots: PositiveInt | None = None
    queries: PositiveInt | None = None
    shape: ShapeConfig | None = None
    episodes: AtLeastTwo = 600
    mode: Literal["inductive", "transductive"] = "inductive"
    """The figure by which checkpoints are chosen; both are reported."""


class CheckpointConfig(Config):
    every: PositiveInt = 200
    keep: PositiveInt = 3


class EngineConfig(Config):
    mode: Literal["auto", "loop", "vmap", "compiled"] = "auto"
    """auto: rank 0 measures once, at the start of the run; what it found is kept under `runs` for the next one."""
    chunk: PositiveInt = 8
    """Episodes per vmapped or compiled forward; not read in mode auto or loop."""
    layout: Literal["last", "first"] = "last"
    """Where the channels of images and weights lie in memory; not read in mode auto."""
    abreast: PositiveInt = 1
    """Chunks computed at the same time, each on a thread of its own; not read in mode auto or compiled."""
    memory_mib: PositiveInt | None = None
    """What the tensors of a worker may take when auto chooses; none: half of what is free, shared by the workers of a machine."""
    tf32: bool = False
    """Whether float32 products on a GPU may round their factors to 10 bits."""
    profile_at: NonNegativeInt = 0
    """The meta-step of which rank 0 keeps a profiler trace; 0: none."""


class WorkersConfig(Config):
    count: PositiveInt = 1
    min: PositiveInt | None = None
    max: PositiveInt | None = None
    """With both, not `count` of them but as many as there is room for, and others when nodes come or go."""
    resize_s: PositiveFloat = 60.0
    """How often new room is looked for."""
    cpus: PositiveInt = 1
    """Of each worker, as are GPUs."""
    gpus: Annotated[FiniteFloat, Number, Field(ge=0)] | None = None
    """None: one where the cluster has as many GPUs as workers, else none."""
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    """On few nodes or on many; strictly: on one, or each on its own."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """What carries the collectives; auto: nccl between GPUs."""
    feeders: NonNegativeInt = 0
    """Processes that read episodes for a worker, anywhere in the cluster, with room for one CPU each; 0: it reads itself."""
    ray: Literal["auto", "always"] = "auto"
    """auto: one worker runs in this process without a cluster."""
    threads: PositiveInt | None = None
    """torch threads per worker; none: the CPUs shared out evenly."""
    wait_s: Annotated[FiniteFloat, Number, Field(ge=0)] = 60.0
    """How long to wait for the nodes of a cluster that is joined."""
    max_failures: NonNegativeInt = 3
    """How often the workers are started anew after one of them was lost."""
    replace_s: PositiveFloat = 1800.0
    """How long to wait for nodes in the place of lost ones."""
    step_timeout_s: PositiveInt = 1800
    """After how long without any movement in a worker the workers are started anew."""

    @model_validator(mode="after")
    def _elastic(self) -> WorkersConfig:
        if (self.min is None) != (self.max is None):
            raise InputError(f"min = {self.min} and max = {self.max} go together; give both, or `count` alone")
        if self.least > self.most:
            raise InputError(f"min = {self.least} is larger than max = {self.most}; lower the one or raise the other")
        if self.is_elastic and self.max_failures == 0:
            raise InputError(
                "max_failures = 0 with min and max: nobody would go on after a lost node; set it to 1 or more"
            )
        return self

    @property
    def is_elastic(self) -> bool:
        """Whether their number changes with that of the nodes."""
        return self.min is not None

    @property
    def least(self) -> int:
        """With how many there is training."""
        return self.count if self.min is None else self.min

    @property
    def most(self) -> int:
        """How many there are at most."""
        return self.count if self.max is None else self.max

    @property
    def needs(self) -> dict[str, float]:
        """What each takes of a cluster, its feeders included."""
        return {"CPU": self.cpus + self.feeders, **({"GPU": self.gpus} if self.gpus else {})}

    @property
    def is_alone(self) -> bool:
        """Whether the one worker is the process itself, without Ray."""
        return self.most == 1 and self.ray == "auto" and not self.feeders


class TrackingConfig(Config):
    uri: str = ""
    """MLflow tracking URI; empty: sqlite under `runs`."""
    experiment: str = "metashard"
    log_every: PositiveInt = 1
    flush_s: PositiveFloat = 30.0
    """How long the end of a run waits for MLflow; `metashard sync` sends what is left."""
    model: bool = False
    """Whether the best checkpoint becomes a model of the run in MLflow, which `mlflow models serve` serves."""
    register_as: Annotated[str, Field(pattern=REGISTERED)] = ""
    """The registered model of which it becomes a version; empty: of none."""
    alias: Annotated[str, Field(pattern=ALIAS)] = ""
    """What then points to that version, as champion."""

    @model_validator(mode="after")
    def _registered(self) -> TrackingConfig:
        if self.alias and not self.register_as:
            raise InputError(f"alias = {self.alias}: of which model? give register_as = NAME, or leave it out")
        if re.fullmatch(r"latest|v\d+", self.alias, re.IGNORECASE):
            raise InputError(f"alias = {self.alias}: means a version by itself in MLflow; choose a word, as champion")
        return self

    @property
    def is_model(self) -> bool:
        """Whether there will be a model: one that is registered is one."""
        return self.model or bool(self.register_as)


class TeacherConfig(Config):
    """Distillation: the query loss listens to a learner trained before."""

    start: Path
    """The teacher's run or checkpoint."""
    weight: Annotated[FiniteFloat, Number, Field(ge=0, le=1)] = 0.5
    """Share of the teacher in the loss; the labels have the rest."""
    temperature: PositiveFloat = 4.0
    """By which both sets of logits are divided."""


class RunConfig(Config):
    """A complete run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: NonNegativeInt = 0
    runs: Path = Path("runs")
    """A folder of the machine of the driver; the nodes of the workers need not have it."""
    mirror: Annotated[Url | None, PlainValidator(store_of_runs), PlainSerializer(_text_or_none)] = None
    """A folder of a store, as s3://bucket/runs, to which every run is copied while it goes on; any machine goes on from there."""
    data: DataConfig
    task: TaskConfig = ClassificationConfig()
    model: ModelConfig = Conv4Config()
    learner: LearnerConfig
    start: Path | None = None
    """A run, a checkpoint or a .safetensors file with the initial values; none: they are random."""
    teacher: TeacherConfig | None = None
    meta: MetaConfig
    validation: ValidationConfig = ValidationConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    engine: EngineConfig = EngineConfig()
    workers: WorkersConfig = WorkersConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("task", mode="before")
    @classmethod
    def _classification_unless_said(cls, task: object) -> object:
        return {"kind": "classification", **task} if isinstance(task, dict) else task
