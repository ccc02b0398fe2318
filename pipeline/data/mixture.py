"""Episodes out of several data sets: each episode comes from one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.data.index import Index
from pipeline.data.loader import Reader
from pipeline.data.sampler import Draw, Sampler, classes_of
from pipeline.episode import Episode
from pipeline.noise import Noise, Purpose


class PartDraw(NamedTuple):
    """An episode before anything is read, and the number of the data set that it comes from."""

    part: int
    draw: Draw


class Mixture:
    """Draws episode `number` of meta-step `step` from one of the data sets, with a probability in proportion to its weight.

    Which one is a pure function of (weights, seed, step, number), and what is drawn there is the episode of this step and number
    that its own sampler draws.
    """

    lanes = 1

    def __init__(self, samplers: Sequence[Sampler], weights: Sequence[float], *, seed: int):
        self.samplers, self.seed = samplers, seed
        whole = math.fsum(weights)
        self.ends = [math.fsum(weights[: place + 1]) / whole for place in range(len(weights))]

    def part(self, step: int, number: int) -> int:
        """The number of the data set that an episode comes from."""
        where = Noise(self.seed, Purpose.MIXTURE, step, number).uniform()
        return next((place for place, end in enumerate(self.ends) if where < end), len(self.ends) - 1)

    def costs(self, step: int, batch: int) -> list[float]:
        """What every episode of a meta-step costs."""
        return [self.samplers[self.part(step, number)].cost(step, number) for number in range(batch)]

    def draw(self, step: int, number: int) -> PartDraw:
        """The episode `number` of meta-step `step`; `InputError` as of the samplers."""
        part = self.part(step, number)
        return PartDraw(part, self.samplers[part].draw(step, number))


class InTurns:
    """Draws from the data sets in turns, so that what is measured on its episodes is a mean over data sets."""

    def __init__(self, samplers: Sequence[Sampler]):
        self.samplers = samplers

    def draw(self, step: int, number: int) -> PartDraw:
        """Episode `number` is one of the data set `number` mod as many as there are, in the order of its own episodes."""
        turn, part = divmod(number, len(self.samplers))
        return PartDraw(part, self.samplers[part].draw(step, turn))


class MixedReader:
    """Reads what was drawn from one of several data sets."""

    def __init__(self, readers: Sequence[Reader]):
        self.readers = readers

    def episode(self, draw: PartDraw) -> Episode:
        """As `Reader.episode` of its data set."""
        return self.readers[draw.part].episode(draw.draw)


def seen(trained: Index, training: str, other: Index, split: str) -> list[str]:
    """The classes of a split that a learner knows from the training split of the same data set, by name; data sets are the same
    if they are called the same or have the same hash, however they were packed or split.

    Raises:
        InputError: there is no such split.
    """
    if trained.name != other.name and trained.fingerprint != other.fingerprint:
        return []
    known = {trained.class_names[number] for number in classes_of(trained, training)}
    return sorted(known & {other.class_names[number] for number in classes_of(other, split)})
