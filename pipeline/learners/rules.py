"""How an inner gradient becomes an update of the fast weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from pipeline.episode import Params

State = dict[str, Params]
"""What a rule carries from one inner step to the next; tensors, so that `vmap` sees through it."""


class Rule(nn.Module, ABC):
    """`init` and `update`, as in an optax transformation; parameters of a learned rule are meta-parameters."""

    def init(self, fast: Params) -> State:
        """The state before the first inner step; most rules have none."""
        return {}

    @abstractmethod
    def forward(
        self, gradients: Params, fast: Params, loss: Tensor, state: State, *, step: int
    ) -> tuple[Params, State]:
        """What is to be added to each fast weight at inner step `step`, and the state after it.

        `loss` is the support loss (a scalar) at `fast`, of which `gradients` are the gradients.
        """


@final
class Sgd(Rule):
    """Plain gradient descent with a fixed rate."""

    def __init__(self, lr: float):
        super().__init__()
        self.lr = lr

    def forward(
        self, gradients: Params, fast: Params, loss: Tensor, state: State, *, step: int
    ) -> tuple[Params, State]:
        return {name: -self.lr * gradient for name, gradient in gradients.items()}, state


def key(name: str) -> str:
    """A parameter's name as a key of `nn.ParameterDict`, which may hold no dot."""
    return name.replace(".", "/")


class _Rates(Rule):
    """Gradient descent with learned rates, kept by the name of the fast weight they belong to."""

    def __init__(self, rates: Iterable[tuple[str, Tensor]]):
        super().__init__()
        self.rates = nn.ParameterDict({key(name): nn.Parameter(rate) for name, rate in rates})

    def rate(self, name: str) -> Tensor:
        return self.rates[key(name)]


@final
class PerElement(_Rates):
    """A learned rate for every single weight (Meta-SGD; Li et al. 2017, equation 2); it may become negative."""

    def __init__(self, lr: float, fast: Params):
        super().__init__((name, torch.full_like(value, lr)) for name, value in fast.items())

    def forward(
        self, gradients: Params, fast: Params, loss: Tensor, state: State, *, step: int
    ) -> tuple[Params, State]:
        return {name: -self.rate(name) * gradient for name, gradient in gradients.items()}, state


@final
class PerStep(_Rates):
    """A learned rate for every tensor and inner step (MAML++; Antoniou et al. 2019, "LSLR").

    Steps beyond the last learned one, as at test time, use the last.
    """

    def __init__(self, lr: float, fast: Params, steps: int):
        super().__init__((name, value.new_full((steps,), lr)) for name, value in fast.items())
        self.steps = steps

    def forward(
        self, gradients: Params, fast: Params, loss: Tensor, state: State, *, step: int
    ) -> tuple[Params, State]:
        at = min(step, self.steps - 1)
        return {name: -self.rate(name)[at] * gradient for name, gradient in gradients.items()}, state
