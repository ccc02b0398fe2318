"""Where a learner's fast weights start."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import final

from torch import nn

from pipeline.episode import Batch, Params
from pipeline.errors import InputError


class Initial(nn.Module, ABC):
    """Splits the model's parameters into those that change inside an episode and those that do not."""

    @abstractmethod
    def forward(self, params: Params, support: Batch, ways: int) -> Params:
        """The fast weights at the start of an episode; the other parameters keep the values in `params`."""


@final
class Learned(Initial):
    """Fast weights start at the meta-parameters whose whole name matches the pattern: `.*` MAML, `head\\..*` ANIL."""

    def __init__(self, model: nn.Module, adapts: str):
        super().__init__()
        names = [name for name, _ in model.named_parameters()]
        try:
            self.names = frozenset(name for name in names if re.fullmatch(adapts, name))
        except re.error as error:
            raise InputError(f"learner.adapts = {adapts!r} is not a regular expression: {error}") from error
        if not self.names:
            raise InputError(f"learner.adapts = {adapts!r} matches no parameter; the model has {', '.join(names)}")

    def forward(self, params: Params, support: Batch, ways: int) -> Params:
        return {name: value for name, value in params.items() if name in self.names}
