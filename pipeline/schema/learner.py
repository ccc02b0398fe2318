"""The keys of `learner`, by kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    FiniteFloat,
)

from pipeline.schema.gradient import GradientConfig, HeadConfig, LinearHeadConfig
from pipeline.schema.values import AtLeastTwo, Config, NonNegativeInt, Number, PositiveFloat, PositiveInt


class EmbeddingConfig(Config):
    """Learners that decide from features."""

    backward: NonNegativeInt = 0
    """Support samples per class through which a meta-gradient flows back, scaled up (LITE); 0: all of them."""


class PrototypeConfig(EmbeddingConfig):
    """Prototypical networks; in segmentation PANet: a prototype for each class and the ground; in detection one for the objects
    of each class."""

    kind: Literal["prototype"] = "prototype"
    align: Annotated[FiniteFloat, Number, Field(ge=0)] = 0.0
    """In segmentation: weight of the loss by which the queries, as they were labelled, segment the support."""
    threshold: Annotated[FiniteFloat, Number, Field(gt=-1, lt=1)] | None = None
    """In segmentation: the cosine that a class must exceed, learned from here on; none: whatever is likest (ADNet)."""


class CosineLearnerConfig(EmbeddingConfig):
    """Cosines with the mean direction of a class, a learned scale and a learned offset (GE2E)."""

    kind: Literal["cosine"] = "cosine"
    scale: PositiveFloat = 10.0
    """Where the learned scale of the cosines starts."""
    offset: FiniteFloat = -5.0
    """Where the learned offset starts, which only task.loss.kind = pair_mse moves."""


class WccnConfig(EmbeddingConfig):
    """Cosines of features, less how samples of one class differ (within-class covariance normalisation)."""

    kind: Literal["wccn"] = "wccn"
    scale: PositiveFloat = 10.0
    """Where the learned scale of the cosines starts."""
    shrink: PositiveFloat = 0.3
    """Variance added in every direction, in mean variances within classes."""


class MatchingConfig(EmbeddingConfig):
    """Matching networks."""

    kind: Literal["matching"] = "matching"
    reads: NonNegativeInt = 0
    """Times that a query's embedding reads the support, which knows of itself too (full context embeddings); 0: none of it."""


class RelationConfig(EmbeddingConfig):
    """Relation networks; they need model.features = map."""

    kind: Literal["relation"] = "relation"
    loss: Literal["mse", "task"] = "mse"
    """mse: squared distance of sigmoid scores to one-hot labels, as in the paper; task: the task's loss of plain scores."""


class RidgeConfig(EmbeddingConfig):
    """R2D2; in segmentation the same for pixels."""

    kind: Literal["ridge"] = "ridge"
    penalty: PositiveFloat = 1.0
    """Where the learned weight of |W|² starts."""
    scale: PositiveFloat = 10.0
    """Where the learned scale of the logits starts; a regression of one-hot labels gives about 0 and 1."""
    normalise: bool = False
    """Whether features are divided by their length."""


class LogisticConfig(EmbeddingConfig):
    """LRD2."""

    kind: Literal["logistic"] = "logistic"
    penalty: PositiveFloat = 1.0
    """Where the learned weight of |W|² starts."""
    scale: PositiveFloat = 1.0
    """Where the learned scale of the logits starts."""
    steps: PositiveInt = 5
    """Steps of Newton's method."""
    normalise: bool = False
    """Whether features are divided by their length (RFS)."""


class SvmConfig(EmbeddingConfig):
    """MetaOptNet."""

    kind: Literal["svm"] = "svm"
    cost: PositiveFloat = 0.1
    """Weight of the slack beside |W|² / 2."""
    scale: PositiveFloat = 1.0
    """Where the learned scale of the logits starts."""
    normalise: bool = False
    """Whether features are divided by their length."""


class SupervisedConfig(Config):
    """A classifier of the training split's classes; new classes go to the nearest centroid of its features."""

    kind: Literal["supervised"] = "supervised"
    head: HeadConfig = LinearHeadConfig()
    samples: AtLeastTwo = 64
    """Images per part of a mini-batch; `meta.batch` parts make a step."""
    window: PositiveInt | None = None
    """Images of a lane that are shuffled, and held in memory as packed, at a time; null: as many as 256 MiB of the tars hold,
    over all lanes. Too few know few classes, and training on them forgets the others."""


class FilmConfig(EmbeddingConfig):
    """CNAPs."""

    kind: Literal["film"] = "film"
    hidden: PositiveInt = 64
    """Channels of the set encoder, and units of the networks that write scales, shifts and the classifier."""


class MetaNetConfig(EmbeddingConfig):
    """Meta networks."""

    kind: Literal["metanet"] = "metanet"
    representation: PositiveInt = 64
    """Units of the layer that has slow and fast weights."""
    hidden: PositiveInt = 20
    """Units of the networks that turn gradients into fast weights."""


class LeoConfig(Config):
    """LEO."""

    kind: Literal["leo"] = "leo"
    latent: PositiveInt = 64
    """Length of a class's code."""
    steps: PositiveInt = 5
    """Inner steps on the codes."""
    lr: PositiveFloat = 0.1
    """Where their learned rate starts."""
    tuning_steps: PositiveInt = 5
    """Inner steps on the weights that the codes are decoded into."""
    tuning_lr: PositiveFloat = 0.001
    """Where their learned rate starts."""
    divergence: Annotated[FiniteFloat, Number, Field(ge=0)] = 1e-3
    """Weight of the codes' divergence from a standard normal distribution."""
    penalty: Annotated[FiniteFloat, Number, Field(ge=0)] = 1e-3
    """Weight of the squared way of the codes in the inner loop, which draws their start to where they went."""
    orthogonality: Annotated[FiniteFloat, Number, Field(ge=0)] = 1e-3
    """Weight of the squared correlations between what the decoder makes of each latent dimension."""
    freeze: bool = False
    """The encoder keeps weights and norm statistics of `start`."""


LearnerConfig = Annotated[
    GradientConfig
    | PrototypeConfig
    | CosineLearnerConfig
    | WccnConfig
    | MatchingConfig
    | RelationConfig
    | RidgeConfig
    | LogisticConfig
    | SvmConfig
    | FilmConfig
    | MetaNetConfig
    | LeoConfig
    | SupervisedConfig,
    Field(discriminator="kind"),
]
