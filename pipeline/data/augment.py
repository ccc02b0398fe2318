"""What is done to the images of training episodes: a function of the episode and its key, wherever the episode lies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.images import GREY
from pipeline.episode import Batch, Episode
from pipeline.labels import IGNORED
from pipeline.noise import Noise, Purpose

_NUMBERS = 9
"""Uniform numbers that each image takes, whatever of them is used, so that one option does not change another's draws."""


class Augment(NamedTuple):
    """Every image of support and query on its own; masks and boxes go with their images.

    `flip`: half of them are mirrored. `crop`: up to so much of the sides is cut away, and what is left resized; an image that
    would lose a class of its mask, or the middle of a box, keeps all of itself. `colour`: brightness, contrast and, of three
    channels, saturation are changed by up to so much. `cutout`: a square, its side so much of the image's, becomes the image's
    mean (DeVries and Taylor 2017), in a mask not to be looked at.
    """

    flip: bool = False
    crop: float = 0.0
    colour: float = 0.0
    cutout: float = 0.0
    channels: tuple[int, ...] = ()
    """Where inputs hold several modalities, how many channels each has: places are changed in all alike, a square that is blotted
    out becomes the mean of its own modality."""
    image: int | None = 0
    """Which of them is the image, whose colours are changed; none: no modality is."""

    def __call__(self, episode: Episode) -> Episode:
        """Inputs are (samples, channels, height, width) in 0…1, and stay there."""
        noise = Noise(int(episode.key), Purpose.AUGMENT)
        support, query = (self._batch(batch, noise) for batch in (episode.support, episode.query))
        return episode._replace(support=support, query=query)

    def _batch(self, batch: Batch, noise: Noise) -> Batch:
        inputs, targets = batch
        if not len(inputs):
            return batch
        words = noise.words(len(inputs) * _NUMBERS) >> np.uint64(11)
        drawn = torch.from_numpy(words * 2.0**-53).to(inputs.device, inputs.dtype)
        mirrored, scale, across, down, *colours, left, top = drawn.reshape(len(inputs), _NUMBERS).unbind(1)
        are_boxes = targets.is_floating_point()
        is_mask = targets.ndim == 3 and not are_boxes
        if self.flip:
            inputs = _where(mirrored < 0.5, inputs.flip(-1), inputs)
            other = targets.flip(-1) if is_mask else _mirrored(targets) if are_boxes else targets
            targets = _where(mirrored < 0.5, other, targets)
        if self.crop:
            scale = 1 - self.crop * scale
            grid = _crop(inputs, scale, across, down)
            cut, is_whole, labels = (
                F.grid_sample(inputs, grid, align_corners=False),
                torch.ones_like(scale) > 0,
                targets,
            )
            if is_mask:
                labels = F.grid_sample(targets[:, None].to(inputs.dtype), grid, mode="nearest", align_corners=False)
                labels = labels[:, 0].to(targets.dtype)
                is_whole = _classes(labels).eq(_classes(targets)).all(1)
            elif are_boxes:
                labels, is_whole = _cut(targets, scale, across, down)
            inputs, targets = _where(is_whole, cut, inputs), _where(is_whole, labels, targets)
        parts: list[Tensor] = list(inputs.split(list(self.channels) or [inputs.shape[1]], 1))
        if self.colour:
            strengths = [self.colour * (2 * each - 1) for each in colours]
            parts = [_coloured(part, *strengths) if n == self.image else part for n, part in enumerate(parts)]
        if self.cutout:
            hole = _square(inputs, self.cutout, left, top)
            parts = [torch.where(hole[:, None], part.mean((1, 2, 3), keepdim=True), part) for part in parts]
            targets = torch.where(hole, IGNORED, targets) if is_mask else targets
        return Batch(torch.cat(parts, 1) if len(parts) > 1 else parts[0], targets)


def _where(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Samples of `one` where `chosen` (samples,), else of the other."""
    return torch.where(chosen.reshape(-1, *[1] * (one.ndim - 1)), one, other)


def _crop(inputs: Tensor, scale: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """A sampling grid of a part of each image, `scale` of its sides, anywhere inside."""
    zero = torch.zeros_like(scale)
    places = [(1 - scale) * (2 * place - 1) for place in (across, down)]
    rows = [torch.stack([scale, zero, places[0]], 1), torch.stack([zero, scale, places[1]], 1)]
    return F.affine_grid(torch.stack(rows, 1), list(inputs.shape), align_corners=False)


def _mirrored(boxes: Tensor) -> Tensor:
    """Boxes (samples, boxes, 5) of mirrored images: left, top, right, bottom as shares of the sides, and a code, 0 for no box."""
    left, top, right, bottom, code = boxes.unbind(2)
    is_there = code != 0
    return torch.stack([(1 - right) * is_there, top, (1 - left) * is_there, bottom, code], 2)


def _cut(boxes: Tensor, scale: Tensor, across: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes in a part of their images, and whether the middles of all lie in there (samples,)."""
    corner = torch.stack([(1 - scale) * across, (1 - scale) * down], 1)[:, None]
    *_, code = boxes.unbind(2)
    first, last = ((boxes[..., side : side + 2] - corner) / scale[:, None, None] for side in (0, 2))
    middle = (first + last) / 2
    is_whole = (((middle > 0) & (middle < 1)).all(2) | (code == 0)).all(1)
    kept = torch.cat([first.clamp(0, 1), last.clamp(0, 1)], 2) * (code != 0)[..., None]
    return torch.cat([kept, code[..., None]], 2).to(boxes.dtype), is_whole


def _classes(labels: Tensor) -> Tensor:
    """Whether a mask (samples, height, width) has each of its values: (samples, values)."""
    there = torch.zeros(len(labels), IGNORED + 1, dtype=torch.bool, device=labels.device)
    return there.scatter_(1, labels.flatten(1), value=True)[:, 1:IGNORED]


def _coloured(inputs: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    brightness, contrast, saturation = (1 + each[:, None, None, None] for each in (brightness, contrast, saturation))
    inputs = inputs * brightness
    middle = inputs.mean((1, 2, 3), keepdim=True)
    inputs = middle + contrast * (inputs - middle)
    if inputs.shape[1] == 3:
        grey = torch.einsum("schw,c->shw", inputs, inputs.new_tensor(GREY))[:, None]
        inputs = grey + saturation * (inputs - grey)
    return inputs.clamp(0, 1)


def _square(inputs: Tensor, share: float, left: Tensor, top: Tensor) -> Tensor:
    """The pixels (samples, height, width) of a square that may lie anywhere inside."""
    *_, height, width = inputs.shape
    side = max(1, round(share * min(height, width)))
    inside = []
    for start, length in ((top, height), (left, width)):
        first = (start * (length - side + 1)).floor()[:, None]
        places = torch.arange(length, device=inputs.device)
        inside.append((places >= first) & (places < first + side))
    return inside[0][:, :, None] & inside[1][:, None, :]
