"""From a config to the objects it speaks of; the task and the encoder have files of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, assert_never

import torch
from torch import nn

from pipeline.build_amortised import amortised_learner
from pipeline.build_encoder import Encoder, encoder, gives_maps, modality_channels, standard, told
from pipeline.build_gradient import gradient_learner
from pipeline.build_metric import metric_learner
from pipeline.build_mixture import indexes, weights
from pipeline.build_schedule import check_stream, schedule
from pipeline.build_shape import evaluation_shape, is_varied, training_shape
from pipeline.build_task import task
from pipeline.data.augment import Augment
from pipeline.data.index import Index
from pipeline.data.loader import Frozen, Loader, Reader, Reading
from pipeline.data.mixture import InTurns, MixedReader, Mixture
from pipeline.data.modalities import IMAGE
from pipeline.data.sampler import QUARTER_TURNS, Sampler, classes_of
from pipeline.data.shards import Shards
from pipeline.data.stream import Stream, StreamReader
from pipeline.episode import Episode
from pipeline.errors import InputError
from pipeline.judging import Place
from pipeline.learners.closed_form import LogisticLearner, RidgeLearner, SvmLearner
from pipeline.learners.dense import DenseRidgeLearner
from pipeline.learners.embedding import EmbeddingLearner
from pipeline.learners.learner import Learner
from pipeline.learners.supervised import SupervisedLearner
from pipeline.models.heads import CosineLinear
from pipeline.models.network import Network
from pipeline.schema.gradient import (
    CosineHeadConfig,
    FreshConfig,
    GradientConfig,
    HeadConfig,
    LinearHeadConfig,
    ProcedureConfig,
    PrototypesConfig,
    SgdConfig,
)
from pipeline.schema.learner import (
    CosineLearnerConfig,
    EmbeddingConfig,
    FilmConfig,
    LeoConfig,
    LogisticConfig,
    MatchingConfig,
    MetaNetConfig,
    PrototypeConfig,
    RelationConfig,
    RidgeConfig,
    SupervisedConfig,
    SvmConfig,
    WccnConfig,
)
from pipeline.schema.run import RunConfig
from pipeline.schema.task import DetectionConfig, SegmentationConfig
from pipeline.tasks.task import Task

CHARACTERS = ("glyphs", "scenes", "omniglot")
"""Data sets, by what their importers call them, in which a mirrored image is of another class."""
MakeLearner = Callable[[RunConfig, Index], Learner]
"""Builds a learner from a config and the index of its data: `learner` below, unless a user brings another."""


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
            schedule=schedule(config, index),
        )
    # Evaluation episodes are frozen: the same for every method and seed of training.
    return Sampler(index, split, evaluation_shape(config), seed=0, turns=data.rotations)


def stream(config: RunConfig, index: Index, chosen: SupervisedConfig) -> Stream:
    """What supervised training reads: images of the training split, labelled by class.

    Raises:
        InputError: it should read other modalities too, or draw classes by a schedule.
    """
    data = config.data
    check_stream(config)
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


def drawn(config: RunConfig, index: Index) -> Sampler | Stream | Mixture:
    """What training draws its episodes by.

    Raises:
        InputError: they are a stream, and feeders should read them; or data sets cannot be mixed.
    """
    if config.data.mixture:
        samplers = [sampler(config, part, config.data.train) for part in indexes(config, index)]
        return Mixture(samplers, weights(config), seed=config.seed)
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
    if isinstance(source, Mixture):
        mixed = MixedReader([reader(config, part.index) for part in source.samplers])
        return Loader(source, mixed, **share, threads=config.data.threads)
    if isinstance(source, Stream):
        # A stream is read in its order, so by one thread.
        return Loader(source, StreamReader(source, reads), **share, threads=1)
    return Loader(source, reads, **share, threads=config.data.threads)


def validation(config: RunConfig, index: Index) -> tuple[Frozen, Reading]:
    """What draws and what reads the frozen validation episodes; of several data sets in turns."""
    parts = indexes(config, index)
    samplers = [sampler(config, part, config.data.validation) for part in parts]
    if len(parts) == 1:
        return samplers[0], reader(config, index)
    return InTurns(samplers), MixedReader([reader(config, part) for part in parts])


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
        made = _learner(config, index, encoder(config, index), task(config), standard(config, index))
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


def _learner(config: RunConfig, index: Index, encoder: Encoder, task: Task, standard: nn.Module) -> Learner:
    if gives_maps(encoder) and not isinstance(config.learner, RelationConfig):
        where = f"{index.root}: an encoder with " if index.encoder else ""
        raise InputError(
            f"{where}model.features = map gives no vectors for learner.kind = {config.learner.kind}; "
            "set model.features = mean or flatten"
        )
    # For learners that make predictions of features themselves.
    bare = Network(encoder, nn.Identity(), standard)
    match config.learner:
        case GradientConfig() as chosen:
            if has_fixed_head(config):
                _check_ways(config, ", or set learner.initial.kind = prototypes or fresh")
            head = _head(chosen.head, task, encoder.features, config.data.ways)
            return gradient_learner(config, chosen, Network(encoder, head, standard), task)
        case PrototypeConfig() | CosineLearnerConfig() | WccnConfig() | MatchingConfig() | RelationConfig() as chosen:
            return metric_learner(config, chosen, bare, encoder, task)
        case FilmConfig() | MetaNetConfig() | LeoConfig() as chosen:
            if isinstance(chosen, MetaNetConfig):
                _check_ways(config)
            return amortised_learner(config, chosen, index, bare, encoder, task)
        case RidgeConfig(penalty=penalty, scale=scale, normalise=unit):
            kind = DenseRidgeLearner if isinstance(config.task, SegmentationConfig) else RidgeLearner
            return kind(bare, task, penalty=penalty, scale=scale, unit=unit)
        case LogisticConfig(penalty=penalty, scale=scale, steps=steps, normalise=unit):
            return LogisticLearner(bare, task, penalty=penalty, scale=scale, steps=steps, unit=unit)
        case SvmConfig(cost=cost, scale=scale, normalise=unit):
            return SvmLearner(bare, task, cost=cost, scale=scale, unit=unit)
        case SupervisedConfig(head=head):
            classes = len(classes_of(index, config.data.train)) * (QUARTER_TURNS if config.data.rotations else 1)
            return SupervisedLearner(bare, task, _head(head, task, encoder.features, classes))
        case _ as never:
            assert_never(never)


def _check_ways(config: RunConfig, way_out: str = "") -> None:
    if is_varied(config):
        raise InputError(
            f"shape.kind = varied: the head of a {config.learner.kind} learner has one output per way, and ways differ from "
            f"episode to episode; set shape.kind = fixed{way_out}"
        )
    if evaluation_shape(config).ways != config.data.ways:
        raise InputError(
            f"evaluate.ways = {config.evaluate.ways} but data.ways = {config.data.ways}: the head of a {config.learner.kind} "
            f"learner has one output per way; make them equal{way_out}"
        )


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
    for name in {part.name for part in indexes(config, index)} & set(CHARACTERS) if augment.flip else ():
        raise InputError(
            f"data.augment.flip = true: {name} are characters, and a mirrored one is another; leave it out"
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
