"""Rules that are themselves learned: curvature, an LSTM, a small network."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.episode import Params
from pipeline.learners.rules import Rule, State, key
from pipeline.models.rnn import lstm

SMALLEST_LOG = 10.0
"""p of Andrychowicz et al. 2016, appendix A: gradients below e⁻ᵖ are taken as they are."""


@final
class Curvature(Rule):
    """Meta-Curvature (Park and Oliva 2019, equations 5 to 7): φ ← φ − r · G ×₃ M_f ×₂ M_i ×₁ M_o.

    A convolution's gradient (out, in, pixels of the kernel) is multiplied along each axis by a learned matrix, a linear
    layer's along two, a vector by one; all start as the identity, so that training starts from plain gradient descent.
    """

    def __init__(self, lr: float, fast: Params):
        super().__init__()
        self.lr = lr
        self.matrices = nn.ParameterDict()
        for name, value in fast.items():
            for axis, size in enumerate(value.flatten(2).shape if value.ndim > 2 else value.shape):
                self.matrices[f"{key(name)}:{axis}"] = nn.Parameter(torch.eye(size, dtype=value.dtype))

    def forward(
        self, gradients: Params, fast: Params, loss: Tensor, state: State, *, step: int
    ) -> tuple[Params, State]:
        return {name: -self.lr * self._turned(name, gradient) for name, gradient in gradients.items()}, state

    def _turned(self, name: str, gradient: Tensor) -> Tensor:
        flat = gradient.flatten(2) if gradient.ndim > 2 else gradient
        for axis in range(flat.ndim):
            matrix = self.matrices[f"{key(name)}:{axis}"]
            flat = (flat.movedim(axis, -1) @ matrix.t()).movedim(-1, axis)
        return flat.reshape(gradient.shape)


def scaled(value: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers of similar size for a gradient or loss of any size (Andrychowicz et al. 2016, appendix A)."""
    size = value.abs()
    is_large = size >= math.exp(-SMALLEST_LOG)
    # The log of what is small is never used, but its gradient would be infinite.
    log = torch.where(is_large, size, 1.0).log() / SMALLEST_LOG
    return torch.where(is_large, log, -1.0), torch.where(is_large, value.sign(), math.exp(SMALLEST_LOG) * value)


@final
class MetaLstm(Rule):
    """The cell of an LSTM as an optimizer (Ravi and Larochelle 2017, equations 2 to 4 and section 3.2).

    φₜ = fₜ ⊙ φₜ₋₁ − iₜ ⊙ ∇L. The gates iₜ = σ(W_i [h, φₜ₋₁, iₜ₋₁] + b_i) and fₜ = σ(W_f [h, φₜ₋₁, fₜ₋₁] + b_f) see every weight
    alone, with shared parameters; h is the state of an LSTM of `hidden` units that reads gradient and loss in the scale of
    Andrychowicz et al. Biases start so that i is about `lr` and f about one. Gradients and losses that the LSTM reads are
    taken as constants, as in the paper (section 3.3).
    """

    def __init__(self, lr: float, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.read = nn.Linear(4 + hidden, 4 * hidden)
        self.rate = nn.Linear(hidden + 2, 1)
        self.forget = nn.Linear(hidden + 2, 1)
        for gate, bias in ((self.rate, math.log(lr / (1 - lr))), (self.forget, 6.0)):
            nn.init.uniform_(gate.weight, -0.01, 0.01)
            nn.init.constant_(gate.bias, bias)

    def init(self, fast: Params) -> State:
        def zeros(value: Tensor, *more: int) -> Tensor:
            return value.new_zeros((value.numel(), *more))

        return {
            "hidden": {name: zeros(value, self.hidden) for name, value in fast.items()},
            "cell": {name: zeros(value, self.hidden) for name, value in fast.items()},
            "rate": {name: zeros(value, 1) for name, value in fast.items()},
            "forget": {name: zeros(value, 1) for name, value in fast.items()},
        }

    def forward(
        self, gradients: Params, fast: Params, loss: Tensor, state: State, *, step: int
    ) -> tuple[Params, State]:
        updates: Params = {}
        after: State = {part: {} for part in state}
        for name, gradient in gradients.items():
            slope, weight = gradient.detach().reshape(-1, 1), fast[name].reshape(-1, 1)
            seen = [*scaled(slope), *(part.expand_as(slope) for part in scaled(loss.detach()))]
            read = self.read(torch.cat([*seen, state["hidden"][name]], 1))
            hidden, cell = lstm(read, state["cell"][name], keeping=1.0)
            rate, forget = (
                torch.sigmoid(gate(torch.cat([hidden, weight, state[part][name]], 1)))
                for part, gate in (("rate", self.rate), ("forget", self.forget))
            )
            updates[name] = ((forget - 1) * weight - rate * slope).reshape(gradient.shape)
            for part, value in (("hidden", hidden), ("cell", cell), ("rate", rate), ("forget", forget)):
                after[part][name] = value
        return updates, after


@final
class Mlp(Rule):
    """A small network that sees each weight's gradient and momentum (a learned optimizer as in Metz et al. 2019, section 2.2).

    φ ← φ − r · (g + d · exp(s / 10)) where (d, s) = network(scaled gradient, scaled momentum) and the momentum has decay 0.9. Its
    last layer starts at zero: training starts from plain gradient descent.
    """

    DECAY = 0.9

    def __init__(self, lr: float, hidden: int):
        super().__init__()
        self.lr = lr
        self.first, self.last = nn.Linear(4, hidden), nn.Linear(hidden, 2)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def init(self, fast: Params) -> State:
        return {"momentum": {name: torch.zeros_like(value) for name, value in fast.items()}}

    def forward(
        self, gradients: Params, fast: Params, loss: Tensor, state: State, *, step: int
    ) -> tuple[Params, State]:
        updates: Params = {}
        after: State = {"momentum": {}}
        for name, gradient in gradients.items():
            momentum = self.DECAY * state["momentum"][name] + (1 - self.DECAY) * gradient
            after["momentum"][name] = momentum
            seen = torch.stack([*scaled(gradient.flatten()), *scaled(momentum.flatten())], 1)
            direction, size = self.last(F.relu(self.first(seen))).unbind(1)
            learned = (direction * torch.exp(size / 10)).reshape(gradient.shape)
            updates[name] = -self.lr * (gradient + learned)
        return updates, after


@final
class Procedure(Rule):
    """A learning procedure as four numbers to be searched: rate r, momentum μ, number of steps n, share s of normalised steps.

    vₜ = gₜ + μ vₜ₋₁ and φ ← φ − r wₜ ((1 − s) vₜ + s vₜ / rms(vₜ)) with wₜ = n − t cut to 0 … 1, rms being over a tensor: between
    gradient descent and steps of one length, the last of them a fraction. n starts in the middle of 0 … `steps`, off the whole
    numbers, where w has a kink. All `steps` are computed, however small n is.

    Kept are log r, n and the logits of μ and s, each divided by `UNIT`: an outer optimizer moves them by about its rate a
    meta-step, as it does weights, and they have a longer way to go.
    """

    UNIT = 10.0

    SMALLEST = 1e-12
    """Added to a mean square, so that a gradient of zero gives no step."""

    def __init__(self, lr: float, steps: int, *, momentum: float, normalised: float):
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor(math.log(lr) / self.UNIT))
        self.count = nn.Parameter(torch.tensor((steps + 0.5) / 2 / self.UNIT))
        self.momentum = nn.Parameter(torch.tensor(momentum).logit() / self.UNIT)
        self.normalised = nn.Parameter(torch.tensor(normalised).logit() / self.UNIT)

    def init(self, fast: Params) -> State:
        return {"velocity": {name: torch.zeros_like(value) for name, value in fast.items()}}

    def forward(
        self, gradients: Params, fast: Params, loss: Tensor, state: State, *, step: int
    ) -> tuple[Params, State]:
        log_rate, count, *logits = (self.UNIT * x for x in (self.log_rate, self.count, self.momentum, self.normalised))
        rate, (keep, share) = log_rate.exp() * (count - step).clamp(0, 1), (logit.sigmoid() for logit in logits)
        updates: Params = {}
        after: State = {"velocity": {}}
        for name, gradient in gradients.items():
            velocity = gradient + keep * state["velocity"][name]
            after["velocity"][name] = velocity
            size = (velocity.square().mean() + self.SMALLEST).sqrt()
            updates[name] = -rate * ((1 - share) * velocity + share * velocity / size)
        return updates, after
