"""How an inner gradient becomes an update of the fast weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

from torch import nn

from pipeline.episode import Params

State = dict[str, Any]
"""What a rule carries from one inner step to the next, by name; tensors, so that `vmap` sees through it."""


class Rule(nn.Module, ABC):
    """`init` and `update`, as in an optax transformation; parameters of a learned rule are meta-parameters."""

    @abstractmethod
    def init(self, fast: Params) -> State:
        """The state before the first inner step."""

    @abstractmethod
    def update(self, gradients: Params, state: State, *, step: int) -> tuple[Params, State]:
        """What is to be added to each fast weight at inner step `step`, and the state after it."""


@final
class Sgd(Rule):
    """Plain gradient descent with a fixed rate."""

    def __init__(self, lr: float):
        super().__init__()
        self.lr = lr

    def init(self, fast: Params) -> State:
        return {}

    def update(self, gradients: Params, state: State, *, step: int) -> tuple[Params, State]:
        return {name: -self.lr * gradient for name, gradient in gradients.items()}, state
