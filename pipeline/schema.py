"""What a run may be: every key of a config, its type, its range and its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pipeline.data.root import Root, Url, root_of
from pipeline.errors import InputError
from pipeline.faults import sentence, shown

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
Share = Annotated[FiniteFloat, Number, Field(gt=0, lt=1)]
Part = Annotated[FiniteFloat, Number, Field(ge=0, lt=1)]


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


def _modalities(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise PydanticCustomError("modalities", "input should name modalities, each once, as [image, depth]")
    return names


class Config(BaseModel):
    """Every part of a config: frozen, and a key that nothing reads is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=())


class AugmentConfig(Config):
    """What is done to every image that is trained on; nothing, unless said: it may change what a class is."""

    flip: bool = False
    """Half of them are mirrored. A mirrored character is another one."""
    crop: Part = 0.0
    """Up to so much of the sides is cut away, and what is left resized."""
    colour: Part = 0.0
    """Up to so much of brightness, contrast and saturation is taken away or added."""
    cutout: Part = 0.0
    """Side of a square, as a share of the image's, that is blotted out."""


class FixedConfig(Config):
    """Every episode has `ways` classes, and `shots` and `queries` samples of each."""

    kind: Literal["fixed"] = "fixed"


class VariedConfig(Config):
    """Ways and shots are drawn for every episode, shots for every class (Meta-Dataset). `ways` and `queries` are the most there
    are, `shots` the most that a class adds to the size of a support; the paper has 50, 10 and 100."""

    kind: Literal["varied"] = "varied"
    least_ways: AtLeastTwo = 5
    support: PositiveInt = 500
    """The most support samples of an episode."""


class LongTailedConfig(Config):
    """`ways` classes and `shots` samples of each on average, ever fewer from class to class; `queries` of each."""

    kind: Literal["long_tailed"] = "long_tailed"
    imbalance: Annotated[FiniteFloat, Number, Field(gt=1)] = 10.0
    """How many times as many shots the largest class has as the smallest."""


ShapeConfig = Annotated[FixedConfig | VariedConfig | LongTailedConfig, Field(discriminator="kind")]


class PartConfig(Config):
    """A further data set that training episodes come from; its splits are called as those of the first."""

    root: Annotated[Root, PlainValidator(root_of), PlainSerializer(str)]
    weight: PositiveFloat = 1.0
    """In proportion to these an episode comes from a data set."""


class NormaliseConfig(Config):
    """Statistics of pixels in 0…1, a number for each channel, as published weights come with."""

    mean: Annotated[tuple[Annotated[FiniteFloat, Number], ...], Field(min_length=1)]
    std: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _paired(self) -> NormaliseConfig:
        if len(self.mean) != len(self.std):
            raise InputError(
                f"mean has {len(self.mean)} channels and std {len(self.std)}; give one of each per channel"
            )
        return self


def normalise_of(given: object) -> object:
    """What `data.normalise` names: a word, or statistics."""
    match given:
        case "none" | "measured" | NormaliseConfig():
            return given
        case dict():
            try:
                return NormaliseConfig.model_validate(given)
            except ValidationError as error:
                raise InputError(sentence(error.errors()[0], NormaliseConfig)) from error
        case _:
            raise InputError(f"{shown(given)} is not none, measured or {{mean: […], std: […]}}; give one of them")


class DataConfig(Config):
    """A packed data set and the shape of the episodes drawn from its training split."""

    root: Annotated[Root, PlainValidator(root_of), PlainSerializer(str)]
    """A folder, or a URL of one, as s3://bucket/birds."""
    weight: PositiveFloat = 1.0
    """Where there is a mixture: in proportion to these an episode comes from a data set."""
    mixture: tuple[PartConfig, ...] = ()
    """Further data sets. Each is evaluated by itself; validation is the mean over all."""
    ways: PositiveInt = 5
    shots: PositiveInt = 1
    queries: PositiveInt = 15
    shape: ShapeConfig = FixedConfig()
    """What becomes of these three in an episode."""
    rotations: bool = False
    """Every class counts four times, once per quarter turn."""
    invert: bool = False
    """Black ink on white becomes white on black."""
    size: PositiveInt | None = None
    """Side in pixels to which images are resized when read; none: as packed."""
    modalities: Annotated[tuple[str, ...], AfterValidator(_modalities)] = ("image",)
    """What of a sample is read, as [image, depth]; their channels come one after another."""
    missing: Literal["error", "mask"] = "error"
    """A sample without a modality besides the image: an error; or zeros, and a channel that says who has it."""
    augment: AugmentConfig = AugmentConfig()
    normalise: Annotated[Literal["none", "measured"] | NormaliseConfig, BeforeValidator(normalise_of)] = "none"
    """Images reach the encoder less a mean and divided by a deviation: those of the training split, measured when the run begins,
    or {mean: […], std: […]}. Checkpoints keep them."""
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


NormName = Literal["batch", "batch_per_step", "group", "layer"]
"""batch_per_step: an own scale and shift for every inner step (MAML++)."""


class FusedConfig(Config):
    """An encoder of images, which may have several modalities."""

    fusion: Literal["early", "late"] = "early"
    """early: their channels go into one encoder; late: each has an encoder of its own, whose features are put side by side."""


class Conv4Config(FusedConfig):
    kind: Literal["conv4"] = "conv4"
    width: PositiveInt = 64
    downsample: Literal["stride", "max_pool"] = "max_pool"
    features: Literal["mean", "flatten", "map"] = "flatten"
    """map: for relation networks alone; only the first two blocks downsample."""
    norm: NormName = "batch"
    context: NonNegativeInt = 0
    """Length of the context vector that modulates the third block (CAVIA); 0: none."""
    warp: bool = False
    """A convolution behind each block's own, at first the identity (WarpGrad); leave `encoder.warps` out of learner.adapts."""


class ResNet12Config(FusedConfig):
    kind: Literal["resnet12"] = "resnet12"
    width: PositiveInt = 64
    """Channels of the first block; the others have 2.5, 5 and 10 times as many."""
    norm: NormName = "batch"
    drop: Part = 0.0
    """Share of the activations behind every block that training leaves out (DropBlock)."""
    block: PositiveInt = 5
    """Side in pixels of the squares that are left out behind the last two blocks; behind the first two it is 1."""


class VitConfig(FusedConfig):
    """A vision transformer; its weights have the names and shapes of DINOv2's."""

    kind: Literal["vit"] = "vit"
    width: PositiveInt = 64
    depth: PositiveInt = 4
    heads: PositiveInt = 4
    patch: PositiveInt = 4
    """Side of a patch in pixels."""
    mlp: PositiveFloat = 4.0
    """Width of the hidden layers, in widths."""
    registers: NonNegativeInt = 0
    layer_scale: PositiveFloat = 1.0
    """Where the learned scales of the residual branches start."""
    lora: NonNegativeInt = 0
    """Rank of what is added to the attention's weights; 0: nothing."""
    lora_alpha: PositiveFloat = 4.0
    """What is added is multiplied by lora_alpha / lora."""
    freeze: bool = False
    """All but the low-rank factors keep the values that they start from."""


class RnnConfig(FusedConfig):
    """Gated recurrent units that read an image row by row."""

    kind: Literal["rnn"] = "rnn"
    width: PositiveInt = 64
    layers: PositiveInt = 1
    bidirectional: bool = True


class TimmConfig(FusedConfig):
    """A convolutional network of the timm package, from random weights."""

    kind: Literal["timm"] = "timm"
    # A colon would send timm to a hub or a folder.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")] = "resnet10t"


class FeaturesConfig(Config):
    """No encoder: the data are features that a frozen one made before (`metashard embed`)."""

    kind: Literal["features"] = "features"


class UnetConfig(Config):
    """Features of every pixel, for segmentation and detection."""

    kind: Literal["unet"] = "unet"
    width: PositiveInt = 16
    """Channels at full size; twice as many at each halving, up to eight times."""
    depth: Annotated[int, Field(ge=1, le=6)] = 3
    """Halvings."""
    downsample: Literal["stride", "max_pool"] = "max_pool"
    norm: NormName = "batch"
    stride: Literal[1, 2, 4, 8] = 1
    """Pixels of the image to one of the features, along each side; detection needs no finer ones than 4."""
    bottom: PositiveInt = 1
    """Convolutions at the smallest size."""
    embedding: NonNegativeInt = 0
    """Features of a pixel, sums of linear maps of what all levels say of it; 0: those of the last level."""


class DecoderConfig(Config):
    """Features of every pixel from a conv4 or resnet12, of random values or (`start`) of a run that classified."""

    kind: Literal["decoder"] = "decoder"
    backbone: Annotated[Conv4Config | ResNet12Config, Field(discriminator="kind")] = Conv4Config()
    width: PositiveInt = 32
    """Channels on the way up."""
    norm: NormName = "batch"
    """Of the way up."""
    embedding: NonNegativeInt = 0
    """As of a U-Net."""


class RenetConfig(Config):
    """Features of every pixel from recurrent units that sweep rows and columns."""

    kind: Literal["renet"] = "renet"
    width: PositiveInt = 32
    """Units of each sweep, and features of a pixel."""
    patch: PositiveInt = 4
    """Side in pixels of what a unit reads at a time."""
    layers: PositiveInt = 1
    norm: NormName = "batch"


ModelConfig = Annotated[
    Conv4Config
    | ResNet12Config
    | VitConfig
    | RnnConfig
    | TimmConfig
    | UnetConfig
    | DecoderConfig
    | RenetConfig
    | FeaturesConfig,
    Field(discriminator="kind"),
]


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
