"""From a config to the objects it speaks of; the task and the encoder have files of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Literal, assert_never

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from pipeline.build_encoder import Encoder, encoder, gives_maps, modality_channels, told
from pipeline.build_task import task
from pipeline.data.augment import Augment
from pipeline.data.index import Index
from pipeline.data.loader import Loader, Reader
from pipeline.data.modalities import IMAGE
from pipeline.data.sampler import QUARTER_TURNS, Sampler, Shape, classes_of
from pipeline.data.shards import Shards
from pipeline.data.stream import Stream, StreamReader
from pipeline.episode import Episode, Params
from pipeline.errors import InputError
from pipeline.judging import Place
from pipeline.learners.amortised import FilmLearner, MetaNetLearner
from pipeline.learners.closed_form import LogisticLearner, RidgeLearner, SvmLearner
from pipeline.learners.dense import DensePrototypeLearner, DenseRidgeLearner
from pipeline.learners.detector import PrototypeDetector
from pipeline.learners.embedding import EmbeddingLearner
from pipeline.learners.estimators import Estimate, Evolution, EvolvedRule, FirstOrder, Implicit, Reptile, Unrolled, Warp
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.initials import Context, Fresh, Initial, Learned, Prototypes
from pipeline.learners.learned_rules import Curvature, MetaLstm, Mlp, Procedure
from pipeline.learners.learner import Learner
from pipeline.learners.leo import LeoLearner, Terms
from pipeline.learners.metric import (
    ContextualMatchingLearner,
    CosineLearner,
    MatchingLearner,
    PrototypeLearner,
    RelationLearner,
)
from pipeline.learners.rules import PerElement, PerStep, Rule, Sgd
from pipeline.learners.supervised import SupervisedLearner
from pipeline.models.conv4 import Conv4
from pipeline.models.features import Features
from pipeline.models.full_context import FullContext
from pipeline.models.heads import CosineLinear
from pipeline.models.network import Network
from pipeline.models.norm import Running
from pipeline.models.relation import Relation
from pipeline.schema import (
    AdamConfig,
    ConstantConfig,
    ContextConfig,
    Conv4Config,
    CosineConfig,
    CosineHeadConfig,
    CosineLearnerConfig,
    CrossEntropyConfig,
    CurvatureConfig,
    DecoderConfig,
    DetectionConfig,
    EmbeddingConfig,
    EstimateConfig,
    EvolutionConfig,
    EvolvedRuleConfig,
    FilmConfig,
    FirstOrderConfig,
    FreshConfig,
    GradientConfig,
    HeadConfig,
    ImplicitConfig,
    LearnedConfig,
    LeoConfig,
    LinearHeadConfig,
    LogisticConfig,
    LstmConfig,
    MatchingConfig,
    MetaNetConfig,
    MlpConfig,
    ModelConfig,
    MomentumConfig,
    PerElementConfig,
    PerStepConfig,
    ProcedureConfig,
    PrototypeConfig,
    PrototypesConfig,
    RelationConfig,
    ReptileConfig,
    ResNet12Config,
    RidgeConfig,
    RunConfig,
    SegmentationConfig,
    SgdConfig,
    StepConfig,
    SupervisedConfig,
    SvmConfig,
    UnrolledConfig,
    WarpConfig,
)
from pipeline.tasks.task import Task

CHARACTERS = ("glyphs", "scenes", "omniglot")
"""Data sets, by what their importers call them, in which a mirrored image is of another class."""
MakeLearner = Callable[[RunConfig, Index], Learner]
"""Builds a learner from a config and the index of its data: `learner` below, unless a user brings another."""


def training_shape(config: RunConfig) -> Shape:
    """Ways, shots and queries of the episodes trained on."""
    return Shape(config.data.ways, config.data.shots, config.data.queries)


def evaluation_shape(config: RunConfig) -> Shape:
    """Ways, shots and queries of the episodes measured on."""
    data, asked = config.data, config.evaluate
    return Shape(asked.ways or data.ways, asked.shots or data.shots, asked.queries or data.queries)


def sampler(config: RunConfig, index: Index, split: str) -> Sampler:
    """Training episodes for the training split, evaluation episodes (of the whole data set, no lanes) for any other."""
    data = config.data
    if split == data.train:
        return Sampler(
            index,
            split,
            training_shape(config),
            seed=config.seed,
            turns=data.rotations,
            lanes=data.lanes,
            deal_every=data.deal_every,
        )
    # Evaluation episodes are frozen: the same for every method and seed of training.
    return Sampler(index, split, evaluation_shape(config), seed=0, turns=data.rotations)


def stream(config: RunConfig, index: Index, chosen: SupervisedConfig) -> Stream:
    """What supervised training reads: images of the training split, labelled by class.

    Raises:
        InputError: it should read other modalities too.
    """
    data = config.data
    if data.modalities != (IMAGE,):
        raise InputError(
            f"data.modalities = {', '.join(data.modalities)}: learner.kind = supervised streams images alone; leave it out, or "
            "choose a learner of episodes"
        )
    return Stream(
        index,
        data.train,
        samples=chosen.samples,
        batch=config.meta.batch,
        seed=config.seed,
        turns=data.rotations,
        lanes=data.lanes,
        window=chosen.window,
    )


def drawn(config: RunConfig, index: Index) -> Sampler | Stream:
    """What training draws its episodes by.

    Raises:
        InputError: they are a stream, and feeders should read them.
    """
    if isinstance(config.learner, SupervisedConfig):
        if feeders := config.workers.feeders:
            raise InputError(
                f"workers.feeders = {feeders}: learner.kind = {config.learner.kind} learns from a stream, which one process "
                "reads in its order; leave it at 0"
            )
        return stream(config, index, config.learner)
    return sampler(config, index, config.data.train)


def loader(
    config: RunConfig,
    index: Index,
    *,
    rank: int,
    world: int,
    read: Callable[[int, int], Future[Episode]] | None = None,
) -> Loader:
    """What brings a rank its episodes of training, ahead of use; `read(step, number)` is asked for them, if given."""
    source, reads = drawn(config, index), reader(config, index)
    share = {"batch": config.meta.batch, "rank": rank, "world": world, "depth": config.data.prefetch, "read": read}
    if isinstance(source, Stream):
        # A stream is read in its order, so by one thread.
        return Loader(source, StreamReader(source, reads), **share, threads=1)
    return Loader(source, reads, **share, threads=config.data.threads)


def trained_on(config: RunConfig, other: Index, state: Mapping[str, Any]) -> Index:
    """The index of the data that a run was trained on, whose tars need not be there.

    Where it is gone, the other one as if of images of the size that the checkpoint of this state was trained on.

    Raises:
        InputError: it is gone, and the checkpoint is too old to know that size.
    """
    try:
        return Index.without_shards(config.data.root)
    except InputError as error:
        if "images" not in state:
            raise InputError(
                f"{config.data.root} is gone, and the checkpoint does not say of what size its images were; bring it back"
            ) from error
        return other.of_images(*state["images"])


def reader(config: RunConfig, index: Index, channels: int | None = None) -> Reader:
    """Reads samples as the config asks, with so many channels; none: with their own.

    Raises:
        InputError: the first sample has not what the task needs, or the data have not the modalities.
    """
    masks = isinstance(config.task, SegmentationConfig)
    if masks and not index.has(0, "mask"):
        raise InputError(
            f"{index.root}: samples have no masks, which task.kind = segmentation needs; pack data that have, as --layout scenes"
        )
    shards, boxes = Shards(index), config.task.boxes if isinstance(config.task, DetectionConfig) else 0
    if boxes:
        shards.boxes(0, "")
    modality_channels(config, index)
    return Reader(
        shards, config.data.invert, config.data.size, channels, masks, boxes, config.data.modalities, bool(told(config))
    )


def learner(config: RunConfig, index: Index) -> Learner:
    """The learner with its initial values, which depend on the seed alone.

    Raises:
        InputError: model, learner and data do not fit each other.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        made = _learner(config, index, encoder(config, index), task(config))
    if isinstance(config.learner, EmbeddingConfig) and config.learner.backward and isinstance(made, EmbeddingLearner):
        made.spare(config.learner.backward)
    if config.meta.steps and not any(value.requires_grad for value in made.parameters()):
        if index.encoder:
            raise InputError(
                f"learner.kind = {config.learner.kind} has nothing to meta-train on features that stay as they are; "
                "set meta.steps = 0, or another learner, as ridge"
            )
        raise InputError("model.freeze = true leaves nothing to meta-train; set model.lora = 4 or model.freeze = false")
    return made.double() if config.meta.precision == "float64" else made


def has_fixed_head(config: RunConfig) -> bool:
    """Whether the learner has one output per way of training, so that it knows episodes of no other ways."""
    chosen = config.learner
    if not isinstance(chosen, GradientConfig):
        return isinstance(chosen, MetaNetConfig)
    has_free_rule = isinstance(chosen.rule, SgdConfig | ProcedureConfig)
    return not (has_free_rule and isinstance(chosen.initial, PrototypesConfig | FreshConfig))


def _head(chosen: HeadConfig, task: Task, features: int, outputs: int) -> nn.Module:
    match chosen:
        case LinearHeadConfig():
            return task.head(features, outputs)
        case CosineHeadConfig(scale=scale):
            return CosineLinear(features, outputs, scale=scale)
        case _ as never:
            assert_never(never)


def _learner(config: RunConfig, index: Index, encoder: Encoder, task: Task) -> Learner:
    if gives_maps(encoder) and not isinstance(config.learner, RelationConfig):
        where = f"{index.root}: an encoder with " if index.encoder else ""
        raise InputError(
            f"{where}model.features = map gives no vectors for learner.kind = {config.learner.kind}; "
            "set model.features = mean or flatten"
        )
    match config.learner:
        case GradientConfig() as chosen:
            if has_fixed_head(config):
                _check_ways(config, ", or set learner.initial.kind = prototypes or fresh")
            if chosen.statistics == "start" and config.start is None:
                raise InputError(
                    "learner.statistics = start: nothing is named that would bring norm statistics; "
                    "set start to a supervised run, or learner.statistics = support"
                )
            differentiated = chosen.estimate.rest if isinstance(chosen.estimate, EvolvedRuleConfig) else chosen.estimate
            if _drops(config.model) and isinstance(differentiated, ImplicitConfig):
                raise InputError(
                    "learner.estimate.kind = implicit needs an inner optimum, which losses that change with every step have "
                    "not; set model.drop = 0 or another estimate"
                )
            head = _head(chosen.head, task, encoder.features, config.data.ways)
            return _gradient_learner(config, chosen, Network(encoder, head), task)
        case PrototypeConfig(align=align):
            model = Network(encoder, nn.Identity())
            if isinstance(config.task, SegmentationConfig):
                return DensePrototypeLearner(model, task, align=align)
            if isinstance(config.task, DetectionConfig):
                return PrototypeDetector(model, task, features=encoder.features)
            if align:
                raise InputError(f"learner.align = {align:g} is for task.kind = segmentation; leave it out")
            return PrototypeLearner(model, task)
        case CosineLearnerConfig(scale=scale, offset=offset):
            return CosineLearner(Network(encoder, nn.Identity()), task, scale=scale, offset=offset)
        case MatchingConfig(reads=0):
            return MatchingLearner(Network(encoder, nn.Identity()), task)
        case MatchingConfig(reads=reads):
            context = FullContext(encoder.features, steps=reads)
            return ContextualMatchingLearner(Network(encoder, nn.Identity()), task, context)
        case RelationConfig(loss=loss):
            if not (isinstance(encoder, Conv4 | Features) and gives_maps(encoder)):
                raise InputError(
                    "learner.kind = relation compares feature maps; set model.kind = conv4 and model.features = map"
                )
            asked = config.task
            if loss == "mse" and not isinstance(asked, DetectionConfig) and asked.loss != CrossEntropyConfig():
                raise InputError(
                    f"task.loss.kind = {asked.loss.kind} is not asked where learner.loss = mse; set learner.loss = task"
                )
            norm = config.model.norm if isinstance(config.model, Conv4Config) else "batch"
            relation = Relation(width=encoder.channels, side=encoder.side, norm=norm)
            return RelationLearner(Network(encoder, nn.Identity()), task, relation, loss=loss)
        case FilmConfig(hidden=hidden):
            side, _, _ = index.shape(0)
            # Group norm: the context of a support is the same in training and in both modes.
            set_encoder = Conv4(
                channels=sum(modality_channels(config, index).values()) + len(told(config)),
                width=hidden,
                size=config.data.size or side,
                downsample="stride",
                features="mean",
                norm="group",
            )
            sizes = {"context": set_encoder.features, "features": encoder.features, "hidden": hidden}
            return FilmLearner(Network(encoder, nn.Identity()), task, set_encoder, **sizes)
        case MetaNetConfig(representation=representation, hidden=hidden):
            _check_ways(config)
            return MetaNetLearner(
                Network(encoder, nn.Identity()),
                task,
                features=encoder.features,
                ways=config.data.ways,
                representation=representation,
                hidden=hidden,
            )
        case LeoConfig() as chosen:
            if chosen.freeze and config.start is None:
                raise InputError(
                    "learner.freeze = true would keep an encoder of random weights; set start, or learner.freeze = false"
                )
            return LeoLearner(
                Network(encoder, nn.Identity()),
                task,
                features=encoder.features,
                latent=chosen.latent,
                steps=chosen.steps,
                tuning_steps=chosen.tuning_steps,
                lr=chosen.lr,
                tuning_lr=chosen.tuning_lr,
                terms=Terms(chosen.divergence, chosen.penalty, chosen.orthogonality),
                is_frozen=chosen.freeze,
            )
        case RidgeConfig(penalty=penalty, scale=scale, normalise=unit):
            kind = DenseRidgeLearner if isinstance(config.task, SegmentationConfig) else RidgeLearner
            return kind(Network(encoder, nn.Identity()), task, penalty=penalty, scale=scale, unit=unit)
        case LogisticConfig(penalty=penalty, scale=scale, steps=steps, normalise=unit):
            return LogisticLearner(
                Network(encoder, nn.Identity()), task, penalty=penalty, scale=scale, steps=steps, unit=unit
            )
        case SvmConfig(cost=cost, scale=scale, normalise=unit):
            return SvmLearner(Network(encoder, nn.Identity()), task, cost=cost, scale=scale, unit=unit)
        case SupervisedConfig(head=head):
            classes = len(classes_of(index, config.data.train)) * (QUARTER_TURNS if config.data.rotations else 1)
            return SupervisedLearner(
                Network(encoder, nn.Identity()), task, _head(head, task, encoder.features, classes)
            )
        case _ as never:
            assert_never(never)


def _drops(model: ModelConfig) -> bool:
    match model:
        case ResNet12Config(drop=drop) | DecoderConfig(backbone=ResNet12Config(drop=drop)):
            return drop > 0
        case _:
            return False


def _check_ways(config: RunConfig, way_out: str = "") -> None:
    if evaluation_shape(config).ways != config.data.ways:
        raise InputError(
            f"evaluate.ways = {config.evaluate.ways} but data.ways = {config.data.ways}: the head of a {config.learner.kind} "
            f"learner has one output per way; make them equal{way_out}"
        )


def _gradient_learner(config: RunConfig, chosen: GradientConfig, model: Network, task: Task) -> Learner:
    initial = _initial(chosen, model, task)
    rule = _rule(chosen, {name: value for name, value in model.named_parameters() if name in initial.names})
    held = [("model", model), ("initial", initial), ("rule", rule)]
    trained = {
        f"{part}.{name}": value
        for part, module in held
        for name, value in module.named_parameters()
        if value.requires_grad and name not in initial.replaced
    }
    if isinstance(chosen.estimate, WarpConfig) and trained.keys() <= {f"model.{name}" for name in initial.names}:
        raise InputError(
            f"learner.estimate.kind = warp trains what does not adapt, and with learner.adapts = {chosen.adapts!r} all does; "
            r"set model.warp = true and learner.adapts = '(?!encoder\.warps).*'"
        )
    return GradientLearner(
        model,
        task,
        initial=initial,
        rule=rule,
        estimate=_estimate(chosen.estimate, chosen, trained, config.seed),
        steps=chosen.steps,
        test_steps=chosen.test_steps or chosen.steps,
        support_weight=chosen.support_weight,
        running=Running(model) if chosen.statistics == "start" else None,
    )


def _initial(config: GradientConfig, model: Network, task: Task) -> Initial:
    match config.initial:
        case LearnedConfig():
            return Learned(model, config.adapts)
        case PrototypesConfig():
            if not isinstance(config.head, LinearHeadConfig):
                raise InputError(
                    "learner.initial.kind = prototypes sets weight and bias of a linear head; "
                    "set learner.head.kind = linear, or learner.initial.kind = fresh"
                )
            return Prototypes(model, config.adapts)
        case FreshConfig():
            return Fresh(model, config.adapts, beyond=task.outputs(0), per_way=task.per_way)
        case ContextConfig():
            return Context(model)
        case _ as never:
            assert_never(never)


def _rule(config: GradientConfig, fast: Params) -> Rule:
    match config.rule:
        case SgdConfig(lr=lr):
            return Sgd(lr)
        case PerElementConfig(lr=lr):
            return PerElement(lr, fast)
        case PerStepConfig(lr=lr):
            return PerStep(lr, fast, config.steps)
        case CurvatureConfig(lr=lr):
            return Curvature(lr, fast)
        case LstmConfig(lr=lr, hidden=hidden):
            return MetaLstm(lr, hidden)
        case MlpConfig(lr=lr, hidden=hidden):
            return Mlp(lr, hidden)
        case ProcedureConfig(lr=lr, momentum=momentum, normalised=normalised):
            return Procedure(lr, config.steps, momentum=momentum, normalised=normalised)
        case _ as never:
            assert_never(never)


def _estimate(asked: EstimateConfig, config: GradientConfig, trained: Params, seed: int) -> Estimate:
    match asked:
        case UnrolledConfig(recompute=recompute, multi_step=multi_step, first_order_until=until):
            if recompute and (multi_step or until):
                raise InputError(
                    "learner.estimate.recompute goes with neither multi_step nor first_order_until; set them to 0"
                )
            return Unrolled(config.steps, recompute=recompute, multi_step=multi_step, first_order_until=until)
        case FirstOrderConfig():
            return FirstOrder()
        case ReptileConfig():
            return Reptile()
        case ImplicitConfig(damping=damping, solver=solver, iterations=iterations, tolerance=tolerance):
            return Implicit(damping, solver, iterations, tolerance)
        case EvolutionConfig(sigma=sigma, pairs=pairs):
            return Evolution(trained, sigma=sigma, pairs=pairs, seed=seed)
        case EvolvedRuleConfig(sigma=sigma, pairs=pairs, rest=rest):
            searched = {name: value for name, value in trained.items() if name.startswith("rule.")}
            if not searched:
                raise InputError(
                    "learner.estimate.kind = es_rule evolves the parameters of the rule, and "
                    f"learner.rule.kind = {config.rule.kind} has none; set learner.rule.kind = procedure"
                )
            evolution = Evolution(searched, sigma=sigma, pairs=pairs, seed=seed)
            return EvolvedRule(_estimate(rest, config, trained, seed), evolution)
        case WarpConfig(initial=initial):
            return Warp(_initial_estimate(initial, config.steps))
        case _ as never:
            assert_never(never)


def _initial_estimate(kind: Literal["unrolled", "first_order", "reptile"], steps: int) -> Estimate:
    match kind:
        case "unrolled":
            return Unrolled(steps)
        case "first_order":
            return FirstOrder()
        case "reptile":
            return Reptile()
        case _ as never:
            assert_never(never)


def optimizer(config: RunConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The outer optimizer."""
    match config.meta.optimizer:
        case AdamConfig(lr=lr, weight_decay=decay):
            return Adam(parameters, lr=lr, weight_decay=decay)
        case MomentumConfig(lr=lr, momentum=momentum, weight_decay=decay):
            return SGD(parameters, lr=lr, momentum=momentum, weight_decay=decay)
        case _ as never:
            assert_never(never)


def rate(config: RunConfig, step: int) -> float:
    """The outer learning rate of a meta-step: a pure function, so that a resume has nothing to restore."""
    base = config.meta.optimizer.lr
    match config.meta.schedule:
        case ConstantConfig():
            return base
        case CosineConfig(floor=floor):
            return base * (floor + (1 - floor) * (1 + math.cos(math.pi * step / config.meta.steps)) / 2)
        case StepConfig(every=every, factor=factor):
            return base * factor ** (step // every)
        case _ as never:
            assert_never(never)


def training_place(config: RunConfig, index: Index, device: torch.device) -> Place:
    """As `place`, for episodes that are trained on: there they are augmented too.

    Raises:
        InputError: it would change what a class is, or the data are no images.
    """
    augment, bring = Augment(**config.data.augment.model_dump()), place(config, device)
    if augment == Augment():
        return bring
    if index.encoder:
        raise InputError(f"data.augment is for images, and {index.root} holds features; leave it out")
    if augment.flip and index.name in CHARACTERS:
        raise InputError(
            f"data.augment.flip = true: {index.name} are characters, and a mirrored one is another; leave it out"
        )
    augment = augment._replace(**_modalities(config, index))
    return lambda episode: augment(bring(episode))


def _modalities(config: RunConfig, index: Index) -> dict[str, Any]:
    """What augmentation must know of inputs that are more than an image."""
    if config.data.modalities == (IMAGE,):
        return {}
    groups = []
    for name, channels in modality_channels(config, index).items():
        groups += [(name, channels), *([("", 1)] if name in told(config) else [])]
    names, channels = zip(*groups, strict=True)
    return {"channels": channels, "image": names.index(IMAGE) if IMAGE in names else None}


def place(config: RunConfig, device: torch.device) -> Place:
    """Brings an episode to where and in what type the learner computes."""
    dtype = torch.float64 if config.meta.precision == "float64" else torch.float32
    return lambda episode: episode.to(device, dtype)
