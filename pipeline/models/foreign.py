"""Encoders of other libraries, whose norm layers are made ones that keep no statistics of their own."""

from __future__ import annotations

from contextvars import ContextVar
from typing import final

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models.norm import EPS, Norm, Normalise, by_batch

_asked: ContextVar[Normalise] = ContextVar("asked", default=by_batch)


@final
class AskingNorm(Norm):
    """A norm layer that is called with activations alone, and asks how to normalise where its `Foreign` was told."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x, _asked.get())


KNOWN = (nn.Conv2d, nn.Linear, AskingNorm)
"""What may own weights, `nn.BatchNorm2d` having been exchanged."""


@final
class Foreign(nn.Module):
    """Another library's model, told how to normalise as our own are; names of weights are kept, after `model.`.

    It gives (samples, features) for square images of `channels` and a side of `size` pixels. Batch norm layers are exchanged
    in the model itself.

    Raises:
        InputError: a part of it is not known to obey the laws, or it does not take such images.
    """

    def __init__(self, model: nn.Module, *, channels: int, size: int):
        super().__init__()
        for name, module in list(model.named_modules()):
            if type(module) is nn.BatchNorm2d:
                model.set_submodule(name, _asking(name, module))
        _check(model)
        self.model = model
        try:
            with torch.no_grad():
                _, self.features = self(torch.zeros(2, channels, size, size)).shape
        except (AssertionError, RuntimeError, ValueError) as error:
            told = " ".join(str(error).split())
            raise InputError(
                f"the model gives no vectors for images of {size} pixels: {told}; choose another one"
            ) from error

    def forward(self, images: Tensor, normalise: Normalise = by_batch) -> Tensor:
        """(samples, channels, height, width) -> (samples, features)"""
        token = _asked.set(normalise)
        try:
            return self.model(images)
        finally:
            _asked.reset(token)


def _asking(name: str, layer: nn.BatchNorm2d) -> AskingNorm:
    if not layer.affine or layer.eps != EPS:
        raise InputError(
            f"the layer {name} normalises with eps = {layer.eps}, affine = {layer.affine}; choose another model"
        )
    made = AskingNorm(name.replace(".", "_"), layer.num_features)
    made.weight, made.bias = layer.weight, layer.bias
    return made


def _check(model: nn.Module) -> None:
    """Other parts may keep state, or use kernels whose second derivatives are wrong under vmap, as that of layer norm."""
    for name, module in model.named_modules():
        owned = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if owned and not isinstance(module, KNOWN):
            raise InputError(
                f"{name or 'the model'} is a {type(module).__name__}, but no other layers than convolutions, linear ones and "
                "nn.BatchNorm2d can be used here; choose another model"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise InputError(f"{name} is dropout, which draws random numbers of its own; choose another model")
