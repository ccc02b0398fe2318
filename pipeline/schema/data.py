"""The keys of `data`: what is read, which episodes it makes, what becomes of images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pipeline.data.root import Root, root_of
from pipeline.errors import InputError
from pipeline.faults import sentence, shown
from pipeline.schema.values import AtLeastTwo, Config, Number, Part, PositiveFloat, PositiveInt


def _modalities(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise PydanticCustomError("modalities", "input should name modalities, each once, as [image, depth]")
    return names


def root_or_none(given: object) -> Root | None:
    """What a key that need not be given names."""
    return None if given is None else root_of(given)


def text_or_none(root: Root | None) -> str | None:
    """What `root_or_none` took, as text."""
    return None if root is None else str(root)


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


class UniformConfig(Config):
    """Every class has the same chance to be in an episode."""

    kind: Literal["uniform"] = "uniform"


class ScheduledConfig(Config):
    """A part of the training episodes is of classes that go together, by how alike the classes are before training: by their mean
    images, or where data are features by these."""

    share: Annotated[FiniteFloat, Number, Field(gt=0, le=1)] = 0.5
    """Of the episodes; the others are uniform."""
    reach: Annotated[FiniteFloat, Number, Field(ge=0, le=1)] = 0.1
    """Out of what share of the classes left another one is drawn, the nearest or the farthest; 1: out of all, as if uniform."""
    by: Annotated[Root | None, PlainValidator(root_or_none), PlainSerializer(text_or_none)] = None
    """Features of the same samples, made by metashard embed, that are compared instead."""


class DifficultyConfig(ScheduledConfig):
    """Classes that are alike."""

    kind: Literal["difficulty"] = "difficulty"


class DiversityConfig(ScheduledConfig):
    """Classes that are unlike each other."""

    kind: Literal["diversity"] = "diversity"


ClassScheduleConfig = Annotated[UniformConfig | DifficultyConfig | DiversityConfig, Field(discriminator="kind")]


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
    schedule: ClassScheduleConfig = UniformConfig()
    """Which classes training episodes are about; what is measured is always uniform."""
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
