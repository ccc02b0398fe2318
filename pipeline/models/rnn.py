"""Recurrent units in plain operations, and an encoder that reads the rows of an image with them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from pipeline.models.norm import Normalise, by_batch


class Gru(nn.Module):
    """Gated recurrent units in one direction (Cho et al. 2014, section 2.3, with the reset gate where cuDNN has it).

    In plain operations: `nn.GRU` cannot be differentiated twice under vmap. `read` and `recall` hold what `nn.GRU` calls
    weight_ih, bias_ih and weight_hh, bias_hh: reset gate, update gate, new state.
    """

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.width = width
        self.read, self.recall = nn.Linear(inputs, 3 * width), nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(samples, time, inputs) -> the states after each time (samples, time, width)"""
        state, states = x.new_zeros(x.shape[0], self.width), []
        for seen in self.read(x).unbind(1):
            (reset, keep, new), (reset_by, keep_by, new_by) = seen.chunk(3, 1), self.recall(state).chunk(3, 1)
            candidate = torch.tanh(new + torch.sigmoid(reset + reset_by) * new_by)
            state = candidate + torch.sigmoid(keep + keep_by) * (state - candidate)
            states.append(state)
        return torch.stack(states, 1)


def lstm(gates: Tensor, cell: Tensor, *, keeping: float = 0.0) -> tuple[Tensor, Tensor]:
    """A step of long short-term memory: the output and the new cell (samples, width) (Hochreiter and Schmidhuber 1997).

    `gates` (samples, 4 · width) are input, forget, new value and output as `nn.LSTM` orders them, not yet squashed; `keeping` is
    added to the forget gate. In plain operations: `nn.LSTMCell` cannot be differentiated twice under vmap.
    """
    into, keep, new, out = gates.chunk(4, 1)
    cell = torch.sigmoid(keep + keeping) * cell + torch.sigmoid(into) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(cell), cell


class Lstm(nn.Module):
    """Long short-term memory in one direction; `read` and `recall` as in `Gru`."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.width = width
        self.read, self.recall = nn.Linear(inputs, 4 * width), nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(samples, time, inputs) -> the outputs at each time (samples, time, width)"""
        state, states = x.new_zeros(x.shape[0], self.width), []
        cell = state
        for seen in self.read(x).unbind(1):
            state, cell = lstm(seen + self.recall(state), cell)
            states.append(state)
        return torch.stack(states, 1)


@final
class Rnn(nn.Module):
    """`layers` of units read an image from top to bottom; the features are the last layer's last state.

    With `bidirectional` as many units read from bottom to top in every layer; a layer gets what both made of the one below,
    and the features are both last states. `inputs` are the values of a row, channels × pixels. Nothing looks at other samples,
    so `normalise` is not asked.
    """

    def __init__(self, *, inputs: int, width: int, layers: int, bidirectional: bool):
        super().__init__()
        directions = 2 if bidirectional else 1
        self.features = directions * width
        sizes = [inputs] + [self.features] * (layers - 1)
        self.layers = nn.ModuleList(nn.ModuleList(Gru(size, width) for _ in range(directions)) for size in sizes)

    def forward(self, images: Tensor, normalise: Normalise = by_batch) -> Tensor:
        """(samples, channels, height, width) -> (samples, features)"""
        x, last = images.transpose(1, 2).flatten(2), []
        for layer in self.layers:
            down, *up = layer.children()
            states = [down(x), *(each(x.flip(1)).flip(1) for each in up)]
            # Those that read upwards end at the first row.
            x, last = torch.cat(states, 2), [states[0][:, -1], *(state[:, 0] for state in states[1:])]
        return torch.cat(last, 1)
