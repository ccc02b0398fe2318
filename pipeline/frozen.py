"""An encoder that no longer changes, out of a run or a file: its features depend on a sample alone, and a hash names it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from pipeline.build_encoder import encoder, standard
from pipeline.data.index import Index
from pipeline.data.modalities import IMAGE
from pipeline.errors import InputError
from pipeline.models.network import Network
from pipeline.models.norm import Given, Running
from pipeline.schema.learner import FilmConfig
from pipeline.schema.model import FeaturesConfig
from pipeline.schema.run import RunConfig
from pipeline.schema.task import ClassificationConfig, VerificationConfig
from pipeline.start import begin


@final
class Frozen(nn.Module):
    """An encoder under the norm statistics that came with it; names of values are those of a learner. With `mirror` features are
    means over an image and its mirror image."""

    def __init__(self, encoder: nn.Module, standard: nn.Module, *, mirror: bool = False):
        super().__init__()
        self.mirror = mirror
        self.model = Network(encoder, nn.Identity(), standard)
        self.running = Running(self.model)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """(samples, channels, height, width) -> (samples, features) or maps"""
        normalise = Given(self.running.statistics())
        features = self.model(inputs, normalise)
        if not self.mirror:
            return features
        other = self.model(inputs.flip(3), normalise)
        # The columns of a map are mirrored back: each lies where it was seen.
        return (features + (other.flip(3) if other.ndim == 4 else other)) / 2


class Known(NamedTuple):
    """A frozen encoder and what it is known by: `settings` (model, form of its images), a hash of these and of all values."""

    encoder: Frozen
    settings: dict[str, Any]
    sha256: str


def frozen_encoder(config: RunConfig, index: Index, path: Path, *, key: str = "embed", mirror: bool = False) -> Known:
    """The encoder of a config, built for the images of `index`, with the values of a run, a checkpoint or a .safetensors file.
    `key` is what the user asked for it by, `mirror` as in `Frozen`.

    Raises:
        InputError: it has no encoder of its own, or one whose features depend on other samples; or the values do not fit.
    """
    if isinstance(config.model, FeaturesConfig):
        raise InputError(f"{path}: has no encoder, only what was learned on features; name the run of the encoder")
    if not isinstance(config.task, ClassificationConfig | VerificationConfig):
        raise InputError(
            f"{path}: task.kind = {config.task.kind} has features of pixels, not of images; name a run of classification"
        )
    if isinstance(config.learner, FilmConfig):
        raise InputError(
            f"{path}: the encoder of learner.kind = film is another one for every support; name a run of another learner"
        )
    made = Frozen(encoder(config, index), standard(config, index), mirror=mirror)
    normalise = config.data.normalise
    if not begin(made, path, needs_statistics=True, normalise=normalise, key=key) and normalise == "measured":
        raise InputError(f"{path}: values without the statistics of their images; give data.normalise: {{mean, std}}")
    made = made.double() if config.meta.precision == "float64" else made
    height, width, channels = index.shape(0)
    size = [config.data.size or height, config.data.size or width, channels]
    settings = {"model": config.model.model_dump(mode="json"), "images": size, "invert": config.data.invert}
    if config.data.modalities != (IMAGE,):
        settings |= {"modalities": list(config.data.modalities), "missing": config.data.missing}
    if mirror:
        settings |= {"mirror": True}
    return Known(made, settings, _sha256(made, settings))


def _sha256(made: Frozen, settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in sorted(made.state_dict().items()):
        digest.update(f"\0{name}\0{tuple(value.shape)}\0{value.dtype}\0".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
