"""From a config to the encoder that makes features of its images."""

from __future__ import annotations

import math
from typing import assert_never

from torch import nn

from pipeline.data.index import Index
from pipeline.data.modalities import IMAGE
from pipeline.errors import InputError
from pipeline.models.conv4 import BLOCKS, MAP_HALVINGS, Conv4
from pipeline.models.decoder import Decoder
from pipeline.models.features import Features
from pipeline.models.foreign import Foreign
from pipeline.models.late_fusion import LateFusion
from pipeline.models.lora import freeze_all_but_factors
from pipeline.models.network import AS_THEY_ARE
from pipeline.models.renet import Renet
from pipeline.models.resnet12 import ResNet12
from pipeline.models.rnn import Rnn
from pipeline.models.standard import Standard
from pipeline.models.unet import Unet
from pipeline.models.vit import Vit
from pipeline.schema.data import NormaliseConfig
from pipeline.schema.gradient import GradientConfig
from pipeline.schema.model import (
    Conv4Config,
    DecoderConfig,
    FeaturesConfig,
    FusedConfig,
    RenetConfig,
    ResNet12Config,
    RnnConfig,
    TimmConfig,
    UnetConfig,
    VitConfig,
)
from pipeline.schema.run import RunConfig
from pipeline.schema.task import DetectionConfig, SegmentationConfig

Encoder = Conv4 | ResNet12 | Vit | Rnn | Foreign | Unet | Decoder | Renet | Features | LateFusion
PixelModelConfig = UnetConfig | DecoderConfig | RenetConfig


def encoder(config: RunConfig, index: Index) -> Encoder:
    """The encoder for the images, or features, of an index, with random values.

    Raises:
        InputError: it does not take them.
    """
    _check_kind(config, index)
    channels = modality_channels(config, index)
    if isinstance(config.model, FusedConfig) and config.model.fusion == "late":
        return _late(config, index, config.model)
    return _encoder(config, index, sum(channels.values()) + len(told(config)))


def modality_channels(config: RunConfig, index: Index) -> dict[str, int]:
    """Channels of the modalities that are read, by name; InputError for what the data have not."""
    return {name: index.channels(name) for name in config.data.modalities}


def told(config: RunConfig) -> frozenset[str]:
    """The modalities that samples may lack, of which a channel of its own says who has them."""
    return frozenset(config.data.modalities) - {IMAGE} if config.data.missing == "mask" else frozenset()


def _late(config: RunConfig, index: Index, chosen: FusedConfig) -> LateFusion:
    """An encoder for each modality."""
    channels = modality_channels(config, index)
    if len(channels) == 1:
        raise InputError(
            "model.fusion = late: data.modalities names one modality, and nothing is to be fused; leave it out"
        )
    if isinstance(chosen, Conv4Config):
        asked = {"features = map": chosen.features == "map", "context": chosen.context, "warp": chosen.warp}
        if odd := [key for key, value in asked.items() if value]:
            raise InputError(
                f"model.{odd[0]} is for one encoder, and model.fusion = late has several; leave one of them out"
            )
    encoders = {name: _encoder(config, index, count) for name, count in channels.items()}
    features = sum(encoder.features for encoder in encoders.values())
    return LateFusion(encoders, list(channels.values()), features=features, told=told(config))


def _encoder(config: RunConfig, index: Index, channels: int) -> Encoder:
    """The encoder of inputs with so many channels."""
    height, width, _ = index.shape(0)
    size, steps = config.data.size or height, config.learner.steps if isinstance(config.learner, GradientConfig) else 0
    chosen = config.model
    if config.data.size is None and height != width:
        raise InputError(
            f"{index.root}: images are {height} × {width} pixels, {chosen.kind} needs squares; set data.size"
        )
    if isinstance(chosen, PixelModelConfig):
        _check_pixels(config, size)
    match chosen:
        case Conv4Config() | ResNet12Config():
            return _backbone(chosen, channels, size, steps)
        case VitConfig():
            return _vit(chosen, channels, size)
        case RnnConfig(width=units, layers=layers, bidirectional=bidirectional):
            return Rnn(inputs=channels * size, width=units, layers=layers, bidirectional=bidirectional)
        case TimmConfig(name=name):
            return Foreign(_timm(name, channels), channels=channels, size=size)
        case UnetConfig():
            return Unet(channels=channels, steps=steps, **chosen.model_dump(exclude={"kind"}))
        case DecoderConfig(backbone=backbone, width=width, norm=norm, embedding=embedding):
            made = _backbone(backbone, channels, size, steps)
            return Decoder(made, channels=channels, width=width, norm=norm, steps=steps, embedding=embedding)
        case RenetConfig(width=width, patch=patch, layers=layers, norm=norm):
            return Renet(channels=channels, width=width, patch=patch, layers=layers, norm=norm, steps=steps)
        case FeaturesConfig():
            return Features(channels=channels, side=size, encoder=index.encoder)
        case _ as never:
            assert_never(never)


def standard(config: RunConfig, index: Index) -> nn.Module:
    """What images pass in front of the encoder; where its statistics are to be measured or loaded, they are 0 and 1 until then.

    Raises:
        InputError: the statistics that are given are of other channels, or modalities may be lacking.
    """
    asked, channels = config.data.normalise, sum(modality_channels(config, index).values())
    if asked == "none":
        return AS_THEY_ARE
    if told(config):
        raise InputError("data.normalise would take away the zeros of data.missing = mask; leave one of them out")
    made = Standard(channels)
    if isinstance(asked, NormaliseConfig):
        if len(asked.mean) != channels:
            raise InputError(
                f"data.normalise.mean has {len(asked.mean)} numbers, and images of {index.root} have {channels} channels; give "
                "one for each, or data.normalise = measured"
            )
        made.take(asked.mean, asked.std)
    return made


def _backbone(chosen: Conv4Config | ResNet12Config, channels: int, size: int, steps: int) -> Conv4 | ResNet12:
    pools = isinstance(chosen, ResNet12Config) or chosen.downsample == "max_pool"
    halvings = MAP_HALVINGS if isinstance(chosen, Conv4Config) and chosen.features == "map" else BLOCKS
    if pools and size < 2**halvings:
        way_out = "" if isinstance(chosen, ResNet12Config) else " or model.downsample = stride"
        raise InputError(
            f"images of {size} pixels are too small for {chosen.kind}, which halves them {halvings} times; "
            f"use ≥ {2**halvings}{way_out}"
        )
    match chosen:
        case Conv4Config():
            return Conv4(
                channels=channels,
                width=chosen.width,
                size=size,
                downsample=chosen.downsample,
                features=chosen.features,
                norm=chosen.norm,
                steps=steps,
                context=chosen.context,
                warp=chosen.warp,
            )
        case ResNet12Config():
            return ResNet12(
                channels=channels,
                width=chosen.width,
                norm=chosen.norm,
                steps=steps,
                drop=chosen.drop,
                block=chosen.block,
            )
        case _ as never:
            assert_never(never)


def _check_pixels(config: RunConfig, size: int) -> None:
    """Whether a model that gives features of pixels is asked for them, and whether its images divide as it needs."""
    chosen = config.model
    if not isinstance(config.task, SegmentationConfig | DetectionConfig):
        raise InputError(
            f"model.kind = {chosen.kind} gives features of pixels, not of images; set task.kind = segmentation or detection, or "
            "another model.kind"
        )
    match chosen:
        case UnetConfig(depth=depth, stride=stride):
            unit, way_out = 2**depth, "or a smaller model.depth"
            if isinstance(config.task, SegmentationConfig) and stride > 1:
                raise InputError(
                    f"model.stride = {stride} is for task.kind = detection: masks have every pixel; set it to 1"
                )
            if stride > unit:
                raise InputError(
                    f"model.stride = {stride} is more than model.depth = {depth} halvings make; lower the one or raise the other"
                )
        case DecoderConfig(backbone=backbone):
            unit, way_out = 2**BLOCKS, "or model.kind = unet"
            if isinstance(backbone, Conv4Config) and backbone.features != "flatten":
                raise InputError(
                    f"model.backbone.features = {backbone.features} is for learners of whole images; leave it out"
                )
        case RenetConfig(patch=patch):
            unit, way_out = patch, "or another model.patch"
        case _:
            return
    if size % unit:
        nearest = max(1, round(size / unit)) * unit
        raise InputError(
            f"images of {size} pixels do not divide by {unit}, as model.kind = {chosen.kind} needs; set data.size = {nearest}, "
            f"{way_out}"
        )


def _timm(name: str, channels: int) -> nn.Module:
    try:
        import timm  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError as error:
        raise InputError('model.kind = timm needs the package timm: pip install "metashard[timm]"') from error
    if not timm.is_model(name):
        raise InputError(f"model.name = {name!r}: timm has no such model; timm.list_models() names those it has")
    return timm.create_model(name, pretrained=False, in_chans=channels, num_classes=0)


def _vit(chosen: VitConfig, channels: int, size: int) -> Vit:
    if size % chosen.patch:
        way_out = f"data.size = {math.ceil(size / chosen.patch) * chosen.patch} or another model.patch"
        raise InputError(
            f"images of {size} pixels do not divide into patches of model.patch = {chosen.patch}; set {way_out}"
        )
    if chosen.width % chosen.heads:
        way_out = f"model.width = {math.ceil(chosen.width / chosen.heads) * chosen.heads} or another number of heads"
        raise InputError(f"model.width = {chosen.width} does not divide by model.heads = {chosen.heads}; set {way_out}")
    made = Vit(
        channels=channels,
        size=size,
        patch=chosen.patch,
        width=chosen.width,
        depth=chosen.depth,
        heads=chosen.heads,
        hidden=max(1, round(chosen.width * chosen.mlp)),
        registers=chosen.registers,
        layer_scale=chosen.layer_scale,
        rank=chosen.lora,
        alpha=chosen.lora_alpha,
    )
    if chosen.freeze:
        freeze_all_but_factors(made)
    return made


def _check_kind(config: RunConfig, index: Index) -> None:
    """Images go to encoders; features, of which nothing is turned, inverted or resized, to `model.kind = features`."""
    if not isinstance(config.model, FeaturesConfig):
        if index.encoder:
            raise InputError(
                f"{index.root}: holds features, and model.kind = {config.model.kind} takes images; set model.kind = features"
            )
        return
    if not index.encoder:
        raise InputError(
            f"{index.root}: holds images, not features; make them with metashard embed, or choose a model.kind"
        )
    data = config.data
    asked = {"data.rotations": data.rotations, "data.invert": data.invert, "data.size": data.size}
    asked["data.normalise"] = data.normalise != "none"
    asked |= {"data.modalities": data.modalities != (IMAGE,)}
    if named := [key for key, value in asked.items() if value]:
        raise InputError(f"{named[0]} is for images, and {index.root} holds features; leave it out")


def gives_maps(encoder: Encoder) -> bool:
    """Whether its features are maps, of which learners other than relation networks make nothing."""
    match encoder:
        case Conv4(form=form):
            return form == "map"
        case Features(side=side):
            return side > 1
        case _:
            return False
