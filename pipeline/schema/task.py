"""The keys of `task`, with its losses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    FiniteFloat,
)

from pipeline.schema.values import Config, Number, Part, PositiveFloat, PositiveInt


class CrossEntropyConfig(Config):
    kind: Literal["cross_entropy"] = "cross_entropy"
    smoothing: Part = 0.0
    """What of a label is spread over all ways."""


class FocalConfig(Config):
    """Samples that are classified surely count less."""

    kind: Literal["focal"] = "focal"
    gamma: Annotated[FiniteFloat, Number, Field(ge=0)] = 2.0


class ClassBalancedConfig(Config):
    """Cross-entropy in which classes with many samples do not drown the others."""

    kind: Literal["class_balanced"] = "class_balanced"
    beta: Part = 0.999
    """0: every sample counts alike; near 1: every class."""


class SquaredErrorConfig(Config):
    """Squared distance of logits to one-hot labels."""

    kind: Literal["mse"] = "mse"


LossConfig = Annotated[
    CrossEntropyConfig | FocalConfig | ClassBalancedConfig | SquaredErrorConfig, Field(discriminator="kind")
]


class PixelCrossEntropyConfig(Config):
    """The mean over pixels."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class DiceConfig(Config):
    """How far prediction and truth overlap, class by class."""

    kind: Literal["dice"] = "dice"


class CrossEntropyAndDiceConfig(Config):
    kind: Literal["cross_entropy_dice"] = "cross_entropy_dice"


class CrossEntropyOfAreasConfig(Config):
    """Beside that of pixels the cross-entropy of each object's mean logits."""

    kind: Literal["cross_entropy_areas"] = "cross_entropy_areas"


PixelLossConfig = Annotated[
    PixelCrossEntropyConfig | DiceConfig | CrossEntropyAndDiceConfig | CrossEntropyOfAreasConfig | FocalConfig,
    Field(discriminator="kind"),
]


class SegmentationConfig(Config):
    """Which class of the episode, or none, every pixel belongs to."""

    kind: Literal["segmentation"] = "segmentation"
    loss: PixelLossConfig = PixelCrossEntropyConfig()
    """Of support and query alike."""


class DetectionConfig(Config):
    """Boxes around the objects of the episode's classes."""

    kind: Literal["detection"] = "detection"
    boxes: PositiveInt = 100
    """Most boxes of an image that an episode may be about, to which its targets are padded; fewer are faster."""
    box_weight: PositiveFloat = 1.0
    """Weight of how well boxes fit beside how well their centres are found, in the losses of support and query."""


class ClassificationConfig(Config):
    kind: Literal["classification"] = "classification"
    loss: LossConfig = CrossEntropyConfig()
    """Of support and query alike."""


class MarginConfig(Config):
    """Cross-entropy in which the true class has to win by a margin (AM-Softmax)."""

    kind: Literal["margin"] = "margin"
    margin: PositiveFloat = 3.0
    """In units of scores: with cosines, what papers give times the scale."""


class PairSquaresConfig(Config):
    """Squared distance of the similarity of every pair of a query and a class to 1 or 0."""

    kind: Literal["pair_mse"] = "pair_mse"


VerificationLossConfig = Annotated[CrossEntropyConfig | MarginConfig | PairSquaresConfig, Field(discriminator="kind")]


class VerificationConfig(Config):
    """Whether two images are of one class, and of which of the known ones a third is, if any: persons, as a rule."""

    kind: Literal["verification"] = "verification"
    loss: VerificationLossConfig = CrossEntropyConfig()
    """Of support and query alike."""


TaskConfig = Annotated[
    ClassificationConfig | SegmentationConfig | VerificationConfig | DetectionConfig, Field(discriminator="kind")
]
