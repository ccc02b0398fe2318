"""Where a learner's fast weights start."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from pipeline.episode import Batch, Params
from pipeline.errors import InputError
from pipeline.learners.metric import class_means, imprinted
from pipeline.models.heads import CosineLinear
from pipeline.models.network import Network

Embed = Callable[[Params, Tensor], Tensor]
"""(parameters, inputs) -> features (samples, features) of the encoder."""


def matching(model: nn.Module, adapts: str) -> frozenset[str]:
    """The names of the parameters that a pattern means.

    Raises:
        InputError: it is no regular expression, or matches none.
    """
    names = [name for name, _ in model.named_parameters()]
    try:
        found = frozenset(name for name in names if re.fullmatch(adapts, name))
    except re.error as error:
        raise InputError(f"learner.adapts = {adapts!r} is not a regular expression: {error}") from error
    if not found:
        raise InputError(f"learner.adapts = {adapts!r} matches no parameter; the model has {', '.join(names)}")
    return found


class Initial(nn.Module, ABC):
    """Splits the model's parameters into those that change inside an episode (`names`) and those that do not."""

    names: frozenset[str]
    replaced: frozenset[str] = frozenset()
    """Parameters of the model whose own values are never read, because the start is something else: they are frozen."""

    @abstractmethod
    def forward(self, params: Params, support: Batch, ways: int, embed: Embed) -> Params:
        """The fast weights at the start of an episode; the other parameters keep the values in `params`."""


@final
class Learned(Initial):
    """Fast weights start at the meta-parameters whose whole name matches the pattern: `.*` MAML, `head\\..*` ANIL."""

    def __init__(self, model: nn.Module, adapts: str):
        super().__init__()
        self.names = matching(model, adapts)

    def forward(self, params: Params, support: Batch, ways: int, embed: Embed) -> Params:
        return {name: value for name, value in params.items() if name in self.names}


@final
class Prototypes(Initial):
    """The linear head starts as the prototype classifier of the support set (ProtoMAML; Triantafillou et al. 2020, section 3).

    weight = 2 c, bias = −|c|² for the class means c: the logits of negative squared distances. The head has no
    meta-parameters of its own, so `ways` may differ from episode to episode; what else adapts is a pattern as in `Learned`.
    """

    HEAD = ("head.weight", "head.bias")

    def __init__(self, model: nn.Module, adapts: str):
        super().__init__()
        self.replaced = frozenset(self.HEAD)
        self.names = matching(model, adapts) | self.replaced

    def forward(self, params: Params, support: Batch, ways: int, embed: Embed) -> Params:
        means = class_means(embed(params, support.inputs), support.targets, ways)
        head = {"head.weight": 2 * means, "head.bias": -means.square().sum(1)}
        return {name: value for name, value in params.items() if name in self.names} | head


@final
class Fresh(Initial):
    """The head starts anew in every episode, so that `ways` may differ: the Baseline of Chen et al. 2019.

    A linear head starts at zero. A cosine head, which has no direction there, starts as the imprinted weights of the support;
    its scale is kept. What else adapts is a pattern as in `Learned`. `beyond`: outputs that the head has besides one a way;
    `per_way`: the names in a linear head of what has them, all else of it is kept (TFA's box regressor; Wang et al. 2020).
    """

    def __init__(self, model: Network, adapts: str, *, beyond: int = 0, per_way: Sequence[str] = ("weight", "bias")):
        super().__init__()
        self.beyond = beyond
        self.is_cosine = isinstance(model.head, CosineLinear)
        self.replaced = frozenset(f"head.{name}" for name in (("weight",) if self.is_cosine else per_way))
        self.names = matching(model, adapts) | self.replaced

    def forward(self, params: Params, support: Batch, ways: int, embed: Embed) -> Params:
        if self.is_cosine:
            head = {"head.weight": imprinted(embed(params, support.inputs), support.targets, ways)}
        else:
            head = {
                name: params[name].new_zeros((ways + self.beyond, *params[name].shape[1:])) for name in self.replaced
            }
        return {name: value for name, value in params.items() if name in self.names} | head


@final
class Context(Initial):
    """Only a context vector adapts, and starts at zero in every episode (CAVIA; Zintgraf et al. 2019, section 3)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = frozenset(name for name, _ in model.named_parameters() if name.endswith("context"))
        if not self.names:
            raise InputError("learner.initial.kind = context needs a model with a context; set model.context = 100")
        self.replaced = self.names

    def forward(self, params: Params, support: Batch, ways: int, embed: Embed) -> Params:
        return {name: torch.zeros_like(value) for name, value in params.items() if name in self.names}
