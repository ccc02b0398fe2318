"""What boxes ask of a dense detector's maps, and how far its maps are from it.

Axes: samples; boxes, places of padded targets; ways; height, width of a map, whose cells are its unit of length. Nothing here
branches on values: all of it works under `torch.func.vmap`, whatever the number of boxes in each image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SPREAD = 0.54 / 6
"""Standard deviation of an object's Gaussian, in sides of its box (TTFNet; Liu et al. 2020, section 3.2)."""
NARROWEST = 0.3
"""Smallest standard deviation in cells: a neighbour of the centre then has next to nothing."""
TINY = 1e-6


class Wanted(NamedTuple):
    """What maps should say.

    heat: (samples, ways, height, width), 1 at the centres of a class's objects and less around them.
    centres: bool, the cells of the centres themselves, of the same shape.
    covered: bool, cells inside an object of the class, of the same shape.
    seen: (samples, 1, height, width) bool, what is looked at.
    boxes: (samples, 4, height, width), of the object that a cell belongs to: left, top, right, bottom in cells.
    weight: (samples, height, width), how much a cell's box counts; 0 where it belongs to none.
    """

    heat: Tensor
    centres: Tensor
    covered: Tensor
    seen: Tensor
    boxes: Tensor
    weight: Tensor


def wanted(targets: Tensor, ways: int, height: int, width: int) -> Wanted:
    """The maps for boxes (samples, boxes, 5) in shares of the sides, 1 + w for class w, negative for what is not looked at.

    An object's heat is a Gaussian as wide as its box at the cell of its centre; where two of a class meet, the warmer counts
    (Zhou et al. 2019, section 3). A cell inside boxes belongs to that whose Gaussian is largest there, and counts by it. What
    lies in a box that is not to be looked at is looked at nowhere but at centres of others.
    """
    size = torch.tensor([width, height, width, height], device=targets.device, dtype=targets.dtype)
    boxes, codes = targets[..., :4] * size, targets[..., 4]
    across, over_x, cell_x = _along(boxes[..., 0], boxes[..., 2], width)
    down, over_y, cell_y = _along(boxes[..., 1], boxes[..., 3], height)
    heat = down[..., :, None] * across[..., None, :]
    inside = over_y[..., :, None] & over_x[..., None, :]
    middle = cell_y[..., :, None] & cell_x[..., None, :]
    labelled, ignored = (codes > 0)[..., None, None], (codes < 0)[..., None, None]
    of_way = [(codes == 1 + way)[..., None, None] for way in range(ways)]
    centre = (middle & labelled).any(1)
    own = heat * ((inside | middle) & labelled)
    chosen = own.argmax(1)
    picked = boxes.gather(1, chosen.flatten(1)[..., None].expand(-1, -1, 4))
    return Wanted(
        heat=torch.stack([(heat * mine).amax(1) for mine in of_way], 1),
        centres=torch.stack([(middle & mine).any(1) for mine in of_way], 1),
        covered=torch.stack([(inside & mine).any(1) for mine in of_way], 1),
        seen=(~(inside & ignored).any(1) | centre)[:, None],
        boxes=picked.transpose(1, 2).unflatten(2, (height, width)),
        weight=own.amax(1),
    )


def _along(low: Tensor, high: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of extents (samples, boxes) along an axis: Gaussian, whether a cell's middle is inside, and the centre's cell, each
    (samples, boxes, cells)."""
    place = torch.arange(cells, device=low.device, dtype=low.dtype)
    at = ((low + high) / 2).floor().clamp(0, cells - 1)[..., None]
    spread = (SPREAD * (high - low)).clamp(min=NARROWEST)[..., None]
    inside = (place + 0.5 > low[..., None]) & (place + 0.5 < high[..., None])
    return torch.exp(-(((place - at) / spread) ** 2) / 2), inside, place == at


def decoded(distances: Tensor) -> Tensor:
    """Boxes in cells from the distances (samples, 4, height, width) of a cell's middle to the four sides (FCOS, equation 1)."""
    height, width = distances.shape[2:]
    x = torch.arange(width, device=distances.device, dtype=distances.dtype) + 0.5
    y = (torch.arange(height, device=distances.device, dtype=distances.dtype) + 0.5)[:, None]
    left, top, right, bottom = distances.unbind(1)
    return torch.stack([x - left, y - top, x + right, y + bottom], 1)


def overlaps(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, union and smallest frame, as areas (…), of boxes whose sides are the last axis (…, 4)."""
    low, high = torch.maximum(one[..., :2], two[..., :2]), torch.minimum(one[..., 2:], two[..., 2:])
    shared = _product((high - low).clamp(min=0))
    union = _area(one) + _area(two) - shared
    frame = torch.maximum(one[..., 2:], two[..., 2:]) - torch.minimum(one[..., :2], two[..., :2])
    return shared, union, _product(frame)


def iou(one: Tensor, two: Tensor) -> Tensor:
    """Intersection over union of boxes (…, 4); 0 where both are empty."""
    shared, union, _ = overlaps(one, two)
    return shared / union.clamp(min=TINY)


def _area(boxes: Tensor) -> Tensor:
    return _product((boxes[..., 2:] - boxes[..., :2]).clamp(min=0))


def _product(sides: Tensor) -> Tensor:
    # Not `prod`: `vmap` has no rule for its second derivative.
    return sides[..., 0] * sides[..., 1]


def heat_loss(logits: Tensor, asked: Wanted) -> Tensor:
    """The focal loss of centres (CornerNet, equation 1, α = 2, β = 4; Law and Deng 2018): summed over all cells that are looked
    at and divided by the number of objects."""
    said, centres = logits.sigmoid(), asked.centres.to(logits.dtype)
    hits = (1 - said) ** 2 * F.softplus(-logits) * centres
    alarms = (1 - asked.heat) ** 4 * said**2 * F.softplus(logits) * (1 - centres) * asked.seen
    return (hits + alarms).sum() / centres.sum().clamp(min=1)


def box_loss(distances: Tensor, asked: Wanted) -> Tensor:
    """1 − generalised IoU (Rezatofighi et al. 2019, algorithm 1) of what the cells of objects say, their weighted mean."""
    said, true = decoded(distances).movedim(1, -1), asked.boxes.movedim(1, -1)
    shared, union, frame = overlaps(said, true)
    generalised = shared / union.clamp(min=TINY) - (frame - union) / frame.clamp(min=TINY)
    return ((1 - generalised) * asked.weight).sum() / asked.weight.sum().clamp(min=TINY)
