"""The keys of `model`, by kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
)

from pipeline.schema.values import Config, NonNegativeInt, Part, PositiveFloat, PositiveInt

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
