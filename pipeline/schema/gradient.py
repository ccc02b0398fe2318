"""The keys of `learner.kind: gradient`: rule, initial values, head, estimate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    FiniteFloat,
)

from pipeline.schema.values import Config, NonNegativeInt, Number, PositiveFloat, PositiveInt, Share


class _Rated(Config):
    lr: PositiveFloat = 0.01
    """The inner rate, or where learned ones start."""


class SgdConfig(_Rated):
    kind: Literal["sgd"] = "sgd"


class PerElementConfig(_Rated):
    """Meta-SGD: a learned rate for every weight."""

    kind: Literal["per_element"] = "per_element"


class PerStepConfig(_Rated):
    """MAML++: a learned rate for every tensor and inner step."""

    kind: Literal["per_step"] = "per_step"


class CurvatureConfig(_Rated):
    """Meta-Curvature: a learned matrix for every axis of a gradient."""

    kind: Literal["curvature"] = "curvature"


class LstmConfig(Config):
    """Meta-LSTM: the cell of an LSTM as an optimizer."""

    kind: Literal["lstm"] = "lstm"
    lr: Share = 0.01
    """Where the input gate starts."""
    hidden: PositiveInt = 20


class MlpConfig(_Rated):
    """A small network as an optimizer."""

    kind: Literal["mlp"] = "mlp"
    hidden: PositiveInt = 32


class ProcedureConfig(_Rated):
    """Rate, momentum, number of steps (up to learner.steps) and share of normalised steps as four learned numbers."""

    kind: Literal["procedure"] = "procedure"
    momentum: Share = 0.1
    """Where the momentum starts."""
    normalised: Share = 0.1
    """Where the share of steps of one length starts."""


RuleConfig = Annotated[
    SgdConfig | PerElementConfig | PerStepConfig | CurvatureConfig | LstmConfig | MlpConfig | ProcedureConfig,
    Field(discriminator="kind"),
]


class LearnedConfig(Config):
    kind: Literal["learned"] = "learned"


class PrototypesConfig(Config):
    """ProtoMAML: the head starts as the support's prototype classifier."""

    kind: Literal["prototypes"] = "prototypes"


class ContextConfig(Config):
    """CAVIA: only a context vector adapts, from zero."""

    kind: Literal["context"] = "context"


class FreshConfig(Config):
    """Fine-tuning: the head starts anew in every episode, at zero or (cosine) at imprinted weights."""

    kind: Literal["fresh"] = "fresh"


InitialConfig = Annotated[LearnedConfig | PrototypesConfig | ContextConfig | FreshConfig, Field(discriminator="kind")]


class LinearHeadConfig(Config):
    kind: Literal["linear"] = "linear"


class CosineHeadConfig(Config):
    """Scores by direction alone (Baseline++)."""

    kind: Literal["cosine"] = "cosine"
    scale: PositiveFloat = 10.0
    """Where the learned scale of the cosines starts."""


HeadConfig = Annotated[LinearHeadConfig | CosineHeadConfig, Field(discriminator="kind")]


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


class EvolvedRuleConfig(Config):
    """The parameters of a learned rule evolve; another estimate serves all others."""

    kind: Literal["es_rule"] = "es_rule"
    sigma: PositiveFloat = 0.01
    pairs: PositiveInt = 4
    """Antithetic pairs per meta-step."""
    rest: Annotated[UnrolledConfig | FirstOrderConfig | ReptileConfig | ImplicitConfig, Field(discriminator="kind")] = (
        FirstOrderConfig()
    )


class WarpConfig(Config):
    """WarpGrad: what does not adapt learns from every inner step by itself."""

    kind: Literal["warp"] = "warp"
    initial: Literal["unrolled", "first_order", "reptile"] = "unrolled"
    """The estimate by which what adapts learns where to start."""


EstimateConfig = Annotated[
    UnrolledConfig
    | FirstOrderConfig
    | ReptileConfig
    | ImplicitConfig
    | EvolutionConfig
    | EvolvedRuleConfig
    | WarpConfig,
    Field(discriminator="kind"),
]


class GradientConfig(Config):
    kind: Literal["gradient"] = "gradient"
    adapts: str = ".*"
    """Pattern on whole parameter names, as `encoder.convs.0.weight`, `head.bias`."""
    head: HeadConfig = LinearHeadConfig()
    initial: InitialConfig = LearnedConfig()
    rule: RuleConfig = SgdConfig()
    steps: PositiveInt = 5
    test_steps: PositiveInt | None = None
    """Inner steps outside training; none: as in training."""
    estimate: EstimateConfig = UnrolledConfig()
    support_weight: Annotated[FiniteFloat, Number, Field(ge=0)] = 0.0
    """Weight of the adapted support loss beside the query loss in the meta-loss."""
    statistics: Literal["support", "start"] = "support"
    """By what norm layers normalise inductively: the support's own statistics, or those kept by the run in `start`."""
