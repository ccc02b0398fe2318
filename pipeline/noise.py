"""Counter-based randomness: the same numbers for the same key on any machine, thread, rank or restart.

Law 1 needs draws that depend on nothing but their key. NumPy promises no stream stability for `Generator`
methods, but the words of Philox-4x64-10 (Salmon et al., SC 2011) are fixed by its definition; so this file
takes raw words and makes integers, subsets and uniforms of them itself.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeVar

import numpy as np

T = TypeVar("T")
WORD = 2**64
_BUFFER = 64


class Purpose(IntEnum):
    """What a stream is for; streams of different purposes never share words. Numbers are part of the format."""

    EPISODE = 1
    DEAL = 2
    AUGMENT = 3
    LEARNER = 4
    INITIALISE = 5
    PACK = 6
    GLYPH = 7
    TUNE = 8
    STREAM = 9
    CHANCE = 10
    SCENE = 11
    INSTANCE = 12
    MIXTURE = 13
    CHOICE = 14


class Noise:
    """A stream of words keyed by (seed, purpose, a, b, c); equal keys give equal streams.

    `a`, `b`, `c` are the caller's coordinates, for an episode (split, step, number).
    """

    def __init__(self, seed: int, purpose: Purpose, a: int = 0, b: int = 0, c: int = 0):
        # Counter word 0 counts blocks inside the stream, so the coordinates never collide with it.
        self._bits = np.random.Philox(key=[seed % WORD, int(purpose)], counter=[0, a % WORD, b % WORD, c % WORD])
        self._words: list[int] = []

    def word(self) -> int:
        """The next 64-bit word."""
        if not self._words:
            self._words = self._bits.random_raw(_BUFFER).tolist()[::-1]
        return self._words.pop()

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound), without modulo bias (rejection)."""
        limit = WORD - WORD % bound
        while (word := self.word()) >= limit:
            pass
        return word % bound

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A uniform float64 in [low, high)."""
        return low + (high - low) * ((self.word() >> 11) * 2.0**-53)

    def subset(self, population: int, size: int) -> list[int]:
        """`size` different integers below `population`, in random order (Floyd's sampling, then a shuffle)."""
        assert 0 <= size <= population
        chosen: dict[int, None] = {}
        for last in range(population - size, population):
            candidate = self.below(last + 1)
            chosen[last if candidate in chosen else candidate] = None
        return self.shuffled(list(chosen))

    def shuffled(self, items: list[T]) -> list[T]:
        """The items in random order (Fisher-Yates)."""
        items = list(items)
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]
        return items

    def words(self, count: int) -> np.ndarray:
        """The next `count` words as a uint64 array, for noise by the array.

        They follow the last block taken by `word()`, whose rest stays there: a stream is still a pure function of its key
        and the order of calls.
        """
        return self._bits.random_raw(count)

    def normals(self, count: int) -> np.ndarray:
        """The next `count` standard normal deviates, float64 (Box and Muller 1958)."""
        radius, angle = ((self.words(2 * -(-count // 2)) >> np.uint64(11)) * 2.0**-53).reshape(2, -1)
        length = np.sqrt(-2 * np.log1p(-radius))
        return np.concatenate([length * np.cos(2 * np.pi * angle), length * np.sin(2 * np.pi * angle)])[:count]
