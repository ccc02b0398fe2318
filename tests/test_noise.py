"""Counter-based randomness: golden words, uniform draws, independence of streams."""

import numpy as np
import pytest

from pipeline.noise import Noise, Purpose


def test_the_words_are_those_of_philox():
    """Known answer of Philox-4x64-10 for key 0 and counter 1 (NumPy increments before the first block)."""
    bits = np.random.Philox(key=[0, 1], counter=[0, 0, 0, 0])
    assert Noise(0, Purpose.EPISODE).word() == int(bits.random_raw())


def test_golden_draws():
    noise = Noise(3, Purpose.EPISODE, 1, 2, 3)
    assert [noise.below(100) for _ in range(6)] == [51, 63, 36, 35, 45, 59]
    assert noise.subset(10, 4) == [3, 5, 7, 2]
    assert noise.uniform() == 0.8462069586713111


@pytest.mark.parametrize("other", [(4, 1, 2, 3), (3, 2, 2, 3), (3, 1, 3, 3), (3, 1, 2, 4)])
def test_any_other_key_is_another_stream(other):
    seed, *where = other
    assert Noise(seed, Purpose.EPISODE, *where).word() != Noise(3, Purpose.EPISODE, 1, 2, 3).word()
    assert Noise(3, Purpose.DEAL, 1, 2, 3).word() != Noise(3, Purpose.EPISODE, 1, 2, 3).word()


def test_subsets_are_uniform():
    counts, pairs = np.zeros((5, 5), int), np.zeros((5, 5), int)
    for number in range(4000):
        drawn = Noise(0, Purpose.EPISODE, 0, 0, number).subset(5, 3)
        pairs[drawn[0], drawn[1]] += 1
        for place, item in enumerate(drawn):
            counts[place, item] += 1
    # 4,000 / 5 = 800 each, standard deviation 25: six of them.
    assert np.all(np.abs(counts[:3] - 800) < 150) and counts[3:].sum() == 0
    # The first two are any two, in any order, equally often: 200 each, standard deviation 14.
    assert np.all(np.abs(pairs[~np.eye(5, dtype=bool)] - 200) < 84) and pairs.trace() == 0


def test_bounds_near_the_word_size_keep_no_modulo_bias():
    bound = 3 * 2**62
    high = sum(Noise(0, Purpose.EPISODE, 0, 0, n).below(bound) >= 2**63 for n in range(3000))
    assert abs(high - 1000) < 160


def test_words_go_on_where_the_stream_is():
    noise = Noise(1, Purpose.GLYPH)
    assert not np.array_equal(noise.words(4), noise.words(4))
