"""From a config to its task: what an episode asks, its loss, and what does not go with it."""

from __future__ import annotations

from functools import partial
from typing import assert_never

from pipeline.errors import InputError
from pipeline.schema.gradient import FreshConfig, GradientConfig, LearnedConfig, LinearHeadConfig
from pipeline.schema.learner import (
    CosineLearnerConfig,
    MatchingConfig,
    PrototypeConfig,
    RelationConfig,
    RidgeConfig,
    SupervisedConfig,
    WccnConfig,
)
from pipeline.schema.model import DecoderConfig, RenetConfig, UnetConfig
from pipeline.schema.run import RunConfig
from pipeline.schema.task import (
    ClassBalancedConfig,
    ClassificationConfig,
    CrossEntropyAndDiceConfig,
    CrossEntropyConfig,
    CrossEntropyOfAreasConfig,
    DetectionConfig,
    DiceConfig,
    FocalConfig,
    LossConfig,
    MarginConfig,
    PairSquaresConfig,
    PixelCrossEntropyConfig,
    PixelLossConfig,
    SegmentationConfig,
    SquaredErrorConfig,
    VerificationConfig,
    VerificationLossConfig,
)
from pipeline.schema.values import Config
from pipeline.tasks import pair_losses, pixel_losses
from pipeline.tasks.classification import Classification
from pipeline.tasks.detection import Detection
from pipeline.tasks.distilled import Distilled
from pipeline.tasks.losses import Loss, class_balanced, cross_entropy, focal, squared_error
from pipeline.tasks.segmentation import Segmentation
from pipeline.tasks.task import Task
from pipeline.tasks.verification import Verification


def task(config: RunConfig) -> Task:
    """The task; with a teacher, one whose loss listens to it."""
    made = _task(config)
    if config.teacher is None:
        return made
    return Distilled(made, weight=config.teacher.weight, temperature=config.teacher.temperature)


def _task(config: RunConfig) -> Task:
    match config.task:
        case ClassificationConfig(loss=loss):
            _check_ways(config)
            return Classification(_loss(loss))
        case SegmentationConfig(loss=loss):
            _check_dense(
                config, (UnetConfig, DecoderConfig, RenetConfig), (GradientConfig, PrototypeConfig, RidgeConfig)
            )
            return Segmentation(_pixel_loss(loss))
        case VerificationConfig(loss=loss):
            _check_ways(config)
            is_apart = isinstance(
                config.learner, PrototypeConfig | CosineLearnerConfig | WccnConfig | RelationConfig | SupervisedConfig
            )
            return Verification(_verification_loss(config, loss), is_apart=is_apart)
        case DetectionConfig(box_weight=box_weight):
            _check_dense(config, (UnetConfig,), (GradientConfig, PrototypeConfig))
            return Detection(box_weight=box_weight)
        case _ as never:
            assert_never(never)


def _check_ways(config: RunConfig) -> None:
    for key, ways in (("data.ways", config.data.ways), ("evaluate.ways", config.evaluate.ways)):
        if ways == 1:
            raise InputError(f"{key} = 1: with one class there is nothing to tell apart; set it to 2 or more")


def _check_dense(config: RunConfig, models: tuple[type[Config], ...], learners: tuple[type[Config], ...]) -> None:
    """What of a config is for classification alone, or for the other task of pixels; these models and learners will do."""
    chosen, learner, kind = config.model, config.learner, config.task.kind
    if not isinstance(chosen, models):
        raise InputError(
            f"task.kind = {kind} needs features of every pixel, and model.kind = {chosen.kind} gives none; "
            f"set model.kind = {_kinds(models)}"
        )
    if not isinstance(learner, learners):
        raise InputError(
            f"learner.kind = {learner.kind} does not learn task.kind = {kind}; set learner.kind = {_kinds(learners)}"
        )
    if isinstance(learner, GradientConfig) and not (
        isinstance(learner.initial, LearnedConfig | FreshConfig) and isinstance(learner.head, LinearHeadConfig)
    ):
        raise InputError(
            f"task.kind = {kind} has a linear head that starts learned or fresh; set learner.head.kind = linear and "
            "learner.initial.kind = learned or fresh"
        )
    if isinstance(learner, PrototypeConfig | RidgeConfig) and learner.backward:
        raise InputError("learner.backward counts images of a class, which pixels are not; set it to 0")
    if config.teacher is not None or config.data.rotations:
        key = "teacher" if config.teacher is not None else "data.rotations"
        raise InputError(f"{key} is for task.kind = classification; leave it out")


def _kinds(parts: tuple[type[Config], ...]) -> str:
    *first, last = (part.model_fields["kind"].default for part in parts)
    return f"{', '.join(first)} or {last}" if first else last


def _pixel_loss(chosen: PixelLossConfig) -> pixel_losses.Loss:
    match chosen:
        case PixelCrossEntropyConfig():
            return pixel_losses.cross_entropy
        case DiceConfig():
            return pixel_losses.dice
        case CrossEntropyAndDiceConfig():
            return pixel_losses.both
        case CrossEntropyOfAreasConfig():
            return pixel_losses.with_areas
        case FocalConfig(gamma=gamma):
            return partial(pixel_losses.focal, gamma=gamma)
        case _ as never:
            assert_never(never)


def _verification_loss(config: RunConfig, chosen: VerificationLossConfig) -> Loss:
    match chosen:
        case CrossEntropyConfig(smoothing=smoothing):
            return partial(cross_entropy, smoothing=smoothing)
        case MarginConfig(margin=margin):
            return partial(pair_losses.margin, margin=margin)
        case PairSquaresConfig():
            if isinstance(config.learner, PrototypeConfig | MatchingConfig):
                raise InputError(
                    "task.loss.kind = pair_mse takes the sigmoid of a score for a similarity, and "
                    f"learner.kind = {config.learner.kind} has no score above 0; "
                    "set learner.kind = cosine, or task.loss.kind = margin"
                )
            return pair_losses.pair_squares
        case _ as never:
            assert_never(never)


def _loss(chosen: LossConfig) -> Loss:
    match chosen:
        case CrossEntropyConfig(smoothing=smoothing):
            return partial(cross_entropy, smoothing=smoothing)
        case FocalConfig(gamma=gamma):
            return partial(focal, gamma=gamma)
        case ClassBalancedConfig(beta=beta):
            return partial(class_balanced, beta=beta)
        case SquaredErrorConfig():
            return squared_error
        case _ as never:
            assert_never(never)
