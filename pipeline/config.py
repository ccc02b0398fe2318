"""What a run is: the typed config, read from YAML with overrides from the command line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic_core import PydanticCustomError

from pipeline.errors import InputError
from pipeline.faults import one_line, sentence, shown

LARGEST = 2**31 - 1
"""No count, size or seed is larger, so that all that is computed from them fits 64 bits."""


def _number(value: Any) -> Any:
    # pydantic takes true for 1, and YAML takes yes and on for true.
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "input should be a number, not true or false")
    return value


Number = BeforeValidator(_number)
NonNegativeInt = Annotated[int, Number, Field(ge=0, le=LARGEST)]
PositiveInt = Annotated[int, Number, Field(ge=1, le=LARGEST)]
AtLeastTwo = Annotated[int, Number, Field(ge=2, le=LARGEST)]
PositiveFloat = Annotated[FiniteFloat, Number, Field(gt=0)]


class Config(BaseModel):
    """Every part of a config: frozen, and a key that nothing reads is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=())


class DataConfig(Config):
    """A packed data set and the shape of the episodes drawn from its training split."""

    root: Path
    ways: AtLeastTwo = 5
    shots: PositiveInt = 1
    queries: PositiveInt = 15
    rotations: bool = False
    """Every class counts four times, once per quarter turn."""
    invert: bool = False
    """Black ink on white becomes white on black."""
    size: PositiveInt | None = None
    """Side in pixels to which images are resized when read; none: as packed."""
    train: str = "train"
    validation: str = "val"
    test: str = "test"
    lanes: PositiveInt = 1
    deal_every: PositiveInt = 1000
    """Meta-steps after which shards are dealt to lanes anew."""
    prefetch: PositiveInt = 2
    """Meta-steps read ahead."""
    threads: PositiveInt = 1
    """Reading threads per worker."""


class ClassificationConfig(Config):
    kind: Literal["classification"] = "classification"


class Conv4Config(Config):
    kind: Literal["conv4"] = "conv4"
    width: PositiveInt = 64
    downsample: Literal["stride", "max_pool"] = "max_pool"
    features: Literal["mean", "flatten", "map"] = "flatten"
    """map: for relation networks alone; only the first two blocks downsample."""
    norm: Literal["batch", "batch_per_step", "group", "layer"] = "batch"
    """batch_per_step: an own scale and shift for every inner step (MAML++)."""
    context: NonNegativeInt = 0
    """Length of the context vector that modulates the third block (CAVIA); 0: none."""


class ResNet12Config(Config):
    kind: Literal["resnet12"] = "resnet12"
    width: PositiveInt = 64
    """Channels of the first block; the others have 2.5, 5 and 10 times as many."""
    norm: Literal["batch", "batch_per_step", "group", "layer"] = "batch"


ModelConfig = Annotated[Conv4Config | ResNet12Config, Field(discriminator="kind")]


class SgdConfig(Config):
    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.01


class PerElementConfig(Config):
    """Meta-SGD: a learned rate for every weight."""

    kind: Literal["per_element"] = "per_element"
    lr: PositiveFloat = 0.01
    """Where the rates start."""


class PerStepConfig(Config):
    """MAML++: a learned rate for every tensor and inner step."""

    kind: Literal["per_step"] = "per_step"
    lr: PositiveFloat = 0.01
    """Where the rates start."""


class CurvatureConfig(Config):
    """Meta-Curvature: a learned matrix for every axis of a gradient."""

    kind: Literal["curvature"] = "curvature"
    lr: PositiveFloat = 0.01


class LstmConfig(Config):
    """Meta-LSTM: the cell of an LSTM as an optimizer."""

    kind: Literal["lstm"] = "lstm"
    lr: Annotated[FiniteFloat, Number, Field(gt=0, lt=1)] = 0.01
    """Where the input gate starts."""
    hidden: PositiveInt = 20


class MlpConfig(Config):
    """A small network as an optimizer."""

    kind: Literal["mlp"] = "mlp"
    lr: PositiveFloat = 0.01
    hidden: PositiveInt = 32


RuleConfig = Annotated[
    SgdConfig | PerElementConfig | PerStepConfig | CurvatureConfig | LstmConfig | MlpConfig, Field(discriminator="kind")
]


class LearnedConfig(Config):
    kind: Literal["learned"] = "learned"


class PrototypesConfig(Config):
    """ProtoMAML: the head starts as the support's prototype classifier."""

    kind: Literal["prototypes"] = "prototypes"


class ContextConfig(Config):
    """CAVIA: only a context vector adapts, from zero."""

    kind: Literal["context"] = "context"


InitialConfig = Annotated[LearnedConfig | PrototypesConfig | ContextConfig, Field(discriminator="kind")]


class UnrolledConfig(Config):
    kind: Literal["unrolled"] = "unrolled"
    recompute: bool = False
    """Walk the inner loop back one step at a time: memory hardly grows with the number of inner steps."""
    multi_step: NonNegativeInt = 0
    """Meta-steps over which the query loss after every inner step fades into that after the last (MAML++); 0: the last alone."""
    first_order_until: NonNegativeInt = 0
    """Meta-step at which second derivatives set in (MAML++)."""


class FirstOrderConfig(Config):
    kind: Literal["first_order"] = "first_order"


class ReptileConfig(Config):
    kind: Literal["reptile"] = "reptile"


class ImplicitConfig(Config):
    """iMAML."""

    kind: Literal["implicit"] = "implicit"
    damping: PositiveFloat = 1.0
    """Weight of the proximal term; more of it makes the linear system easier."""
    solver: Literal["cg", "neumann"] = "cg"
    iterations: PositiveInt = 5
    tolerance: PositiveFloat = 1.0
    """Largest relative residual; an episode above it is not finite, so that its meta-step is skipped."""


class EvolutionConfig(Config):
    """ES-MAML."""

    kind: Literal["es"] = "es"
    sigma: PositiveFloat = 0.01
    pairs: PositiveInt = 8
    """Antithetic pairs per meta-step."""


EstimateConfig = Annotated[
    UnrolledConfig | FirstOrderConfig | ReptileConfig | ImplicitConfig | EvolutionConfig, Field(discriminator="kind")
]


class GradientConfig(Config):
    kind: Literal["gradient"] = "gradient"
    adapts: str = ".*"
    """Pattern on whole parameter names, as `encoder.convs.0.weight`, `head.bias`."""
    initial: InitialConfig = LearnedConfig()
    rule: RuleConfig = SgdConfig()
    steps: PositiveInt = 5
    test_steps: PositiveInt | None = None
    """Inner steps outside training; none: as in training."""
    estimate: EstimateConfig = UnrolledConfig()
    support_weight: Annotated[FiniteFloat, Number, Field(ge=0)] = 0.0
    """Weight of the adapted support loss beside the query loss in the meta-loss."""


class PrototypeConfig(Config):
    kind: Literal["prototype"] = "prototype"


class MatchingConfig(Config):
    """Matching networks, without full context embeddings."""

    kind: Literal["matching"] = "matching"


class RelationConfig(Config):
    """Relation networks; they need model.features = map."""

    kind: Literal["relation"] = "relation"
    loss: Literal["mse", "task"] = "mse"
    """mse: squared distance of sigmoid scores to one-hot labels, as in the paper; task: cross-entropy of plain scores."""


class RidgeConfig(Config):
    """R2D2."""

    kind: Literal["ridge"] = "ridge"
    penalty: PositiveFloat = 1.0
    """Where the learned weight of |W|² starts."""
    scale: PositiveFloat = 10.0
    """Where the learned scale of the logits starts; a regression of one-hot labels gives about 0 and 1."""


class LogisticConfig(Config):
    """LRD2."""

    kind: Literal["logistic"] = "logistic"
    penalty: PositiveFloat = 1.0
    """Where the learned weight of |W|² starts."""
    scale: PositiveFloat = 1.0
    """Where the learned scale of the logits starts."""
    steps: PositiveInt = 5
    """Steps of Newton's method."""


class SvmConfig(Config):
    """MetaOptNet."""

    kind: Literal["svm"] = "svm"
    cost: PositiveFloat = 0.1
    """Weight of the slack beside |W|² / 2."""
    scale: PositiveFloat = 1.0
    """Where the learned scale of the logits starts."""


LearnerConfig = Annotated[
    GradientConfig | PrototypeConfig | MatchingConfig | RelationConfig | RidgeConfig | LogisticConfig | SvmConfig,
    Field(discriminator="kind"),
]


class AdamConfig(Config):
    kind: Literal["adam"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: Annotated[FiniteFloat, Number, Field(ge=0)] = 0.0


class MomentumConfig(Config):
    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.1
    momentum: Annotated[FiniteFloat, Number, Field(ge=0, lt=1)] = 0.9
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

    steps: PositiveInt
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
    episodes: PositiveInt = 200
    patience: NonNegativeInt = 0
    """Validations without a better result after which the run stops; 0: it never does."""


class EvaluateConfig(Config):
    """Episodes on which the result is measured; what is not named is as in training."""

    ways: AtLeastTwo | None = None
    shots: PositiveInt | None = None
    queries: PositiveInt | None = None
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
    memory_mib: PositiveInt | None = None
    """What the tensors of a worker may take when auto chooses; none: half of what is free, shared by the workers of a machine."""
    tf32: bool = False
    """Whether float32 products on a GPU may round their factors to 10 bits."""
    profile_at: NonNegativeInt = 0
    """The meta-step of which rank 0 keeps a profiler trace; 0: none."""


class WorkersConfig(Config):
    count: PositiveInt = 1
    ray: Literal["auto", "always"] = "auto"
    """auto: one worker runs in this process without a cluster."""
    threads: PositiveInt | None = None
    """torch threads per worker; none: the CPUs shared out evenly."""
    max_failures: NonNegativeInt = 3
    step_timeout_s: PositiveInt = 1800


class TrackingConfig(Config):
    uri: str = ""
    """MLflow tracking URI; empty: sqlite under `runs`."""
    experiment: str = "metashard"
    log_every: PositiveInt = 1
    flush_s: PositiveFloat = 30.0
    """How long the end of a run waits for MLflow; `metashard sync` sends what is left."""


class RunConfig(Config):
    """A complete run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: NonNegativeInt = 0
    runs: Path = Path("runs")
    data: DataConfig
    task: ClassificationConfig = ClassificationConfig()
    model: ModelConfig = Conv4Config()
    learner: LearnerConfig
    meta: MetaConfig
    validation: ValidationConfig = ValidationConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    engine: EngineConfig = EngineConfig()
    workers: WorkersConfig = WorkersConfig()
    tracking: TrackingConfig = TrackingConfig()


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, put `key.path=value` overrides on top (values are YAML) and check it all.

    Raises:
        InputError: the file, an override or a value is not usable; an unknown key is named with the nearest known one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"config {path} cannot be read: {error.strerror}; name a YAML file, as configs/train/…"
        ) from error
    tree = _values(content, f"config {path} is not YAML")
    if not isinstance(tree, dict):
        raise InputError(f"config {path} holds {type(tree).__name__}, not keys with values")
    for override in overrides:
        _put(tree, override)
    config = parse(tree, str(path))
    # Workers run in other directories, perhaps on other machines: what is meant is fixed here.
    data = config.data.model_copy(update={"root": _fixed(config.data.root)})
    return config.model_copy(update={"runs": _fixed(config.runs), "data": data})


def _fixed(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no such user's home; write the path without ~") from error


def parse(tree: dict[str, Any], where: str) -> RunConfig:
    """A config from plain values; `where` names their origin in errors."""
    try:
        _check_text(tree)
        return RunConfig.model_validate(tree)
    except InputError:
        raise
    except ValidationError as error:
        sentences = "; ".join(sentence(fault, RunConfig) for fault in error.errors(include_url=False))
        raise InputError(one_line(f"{where}: {sentences}")) from error
    except RecursionError as error:
        raise InputError(f"{where}: keys inside keys without end; a config is four deep at most") from error


def _check_text(tree: Any, path: str = "") -> None:
    """Keys are names, and texts fit JSON, file systems and a line of a message."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not isinstance(key, str):
                raise InputError(one_line(f"config key {path}{key!r} is a {type(key).__name__}, not a name"))
            if not key.isprintable():
                raise InputError(f"config key {path}{key!r} holds what cannot be printed; leave it out")
            _check_text(value, f"{path}{key}.")
    elif isinstance(tree, str) and not tree.isprintable():
        raise InputError(f"{path.rstrip('.')} = {shown(tree)} holds what cannot be printed; leave it out")


def dump(config: RunConfig) -> dict[str, Any]:
    """The resolved config as JSON values."""
    return config.model_dump(mode="json")


# What may differ between a run and its resumption: where results are told, and how many do the work.
FREE = ("workers", "tracking", "runs", "checkpoint")


def fingerprint(config: RunConfig) -> str:
    """A hash of everything that decides the result of a run."""
    fixed = {key: value for key, value in dump(config).items() if key not in FREE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as `a.b.c`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys outside `FREE` in which two dumped configs differ, as `key: old -> new`."""
    before, after = flatten(old), flatten(new)
    keys = [key for key in sorted(before | after) if key.split(".")[0] not in FREE]
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


class _OnceEach(yaml.SafeLoader):
    """YAML in which a key that stands twice in one place is an error; PyYAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise ValueError(f"key {key.value!r} stands twice, line {key.start_mark.line + 1}; keep one")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _values(text: str | bytes, fault: str) -> Any:
    try:
        return _OnceEach(text).get_single_data()
    except Exception as error:  # PyYAML lets through what its parts stumble over: ValueError for 2020-13-45, KeyError …
        raise InputError(f"{fault}: {one_line(str(error))}") from error


_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def _put(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {shown(override)} is not key=value, as in meta.steps=500")
    # YAML 1.1 reads 1e-3 as a string; a person means a number.
    number = _EXPONENT.fullmatch(text.strip())
    value = float(text) if number else _values(text, f"override {shown(override)}: the value is not YAML")
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise InputError(f"override {shown(override)}: {part!r} is a value, it has no key {last!r}")
    tree[last] = value
