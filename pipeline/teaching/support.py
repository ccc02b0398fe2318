"""A support set: labelled samples as a learner takes them, and what becomes of it as classes come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.episode import Batch
from pipeline.errors import InputError


class Support(NamedTuple):
    """Samples of named classes.

    classes: what way 0, 1, … is called.
    inputs: (samples, channels, height, width).
    targets: as a task has them: ways (samples,); or (samples, height, width), 1 + way, 0 for none, 255 for what is not looked at;
        or boxes (samples, boxes, 5), shares of the sides and 1 + way, minus that for what is not looked at, 0 for no box.
    names: what people call the samples, as their files' names.
    """

    classes: tuple[str, ...]
    inputs: Tensor
    targets: Tensor
    names: tuple[str, ...]

    @property
    def ways(self) -> int:
        return len(self.classes)

    @property
    def batch(self) -> Batch:
        return Batch(self.inputs, self.targets)

    def to(self, device: torch.device) -> Support:
        return self._replace(inputs=self.inputs.to(device), targets=self.targets.to(device))

    def members(self) -> Tensor:
        """Which samples show which class: (samples, ways) bool."""
        if self.targets.ndim == 1:
            return self.targets[:, None] == torch.arange(self.ways, device=self.targets.device)
        codes = self.targets[..., 4] if self.targets.is_floating_point() else self.targets.flatten(1)
        # One after another: all at once would take a place for every pixel and class.
        members = torch.zeros(len(codes), self.ways, dtype=torch.bool, device=codes.device)
        for way in range(self.ways):
            members[:, way] = (codes == 1 + way).any(1)
        return members


def joined(one: Support, *others: Support) -> Support:
    """All of them: classes of one name are one class.

    Raises:
        InputError: their samples are of different forms.
    """
    for other in others:
        if one.inputs.shape[1:] != other.inputs.shape[1:]:
            raise InputError(
                f"samples of shape {tuple(other.inputs.shape[1:])} (channels, height, width) do not go with those of "
                f"{tuple(one.inputs.shape[1:])}; give images of one size"
            )
    every = (one, *others)
    ways = {name: way for way, name in enumerate(dict.fromkeys(name for each in every for name in each.classes))}
    targets = [_renumbered(each.targets, [ways[name] for name in each.classes]) for each in every]
    return Support(
        tuple(ways),
        torch.cat([each.inputs for each in every]),
        torch.cat(_alike(targets)),
        tuple(name for each in every for name in each.names),
    )


def without(support: Support, way: int) -> Support:
    """The support as if nobody had ever told of the class `way`: what showed it alone is gone."""
    numbers: list[int | None] = [None if n == way else n - (n > way) for n in range(support.ways)]
    targets = _renumbered(support.targets, numbers)
    left = support._replace(classes=support.classes[:way] + support.classes[way + 1 :], targets=targets)
    return chosen(left, left.members().any(1))


def chosen(support: Support, samples: Tensor) -> Support:
    """The samples (samples,) bool of a support; its classes stay, also where nothing shows them any more."""
    names = tuple(name for name, is_in in zip(support.names, samples.tolist(), strict=True) if is_in)
    return support._replace(inputs=support.inputs[samples], targets=support.targets[samples], names=names)


def _renumbered(targets: Tensor, numbers: Sequence[int | None]) -> Tensor:
    """Targets in which class n is called `numbers[n]`; none: nobody knows of it."""
    if targets.ndim == 1:
        return _looked_up(targets, [-1 if n is None else n for n in numbers])
    codes = torch.tensor([0, *(0 if n is None else 1 + n for n in numbers)], device=targets.device)
    if not targets.is_floating_point():
        found = targets.clone()
        seen = targets <= len(numbers)
        found[seen] = codes[targets[seen]]
        return found
    values = targets[..., 4].long()
    renamed = values.sign() * codes[values.abs()]
    return torch.cat([targets[..., :4], renamed[..., None].to(targets.dtype)], -1) * (renamed != 0)[..., None]


def _looked_up(targets: Tensor, numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, device=targets.device)[targets]


def _alike(targets: list[Tensor]) -> list[Tensor]:
    """All with places for as many boxes, where they are boxes."""
    if targets[0].ndim != 3 or not targets[0].is_floating_point():
        return targets
    most = max(each.shape[1] for each in targets)
    return [torch.nn.functional.pad(each, (0, 0, 0, most - each.shape[1])) for each in targets]
