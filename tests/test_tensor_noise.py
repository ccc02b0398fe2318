"""Randomness in tensor operations: the published words, uniform and normal draws, the same under vmap and in a graph."""

import math
import shutil

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.tensor_noise import Chance, philox

KNOWN = [
    ((0, 0), 0, (0xFF1DAE59, 0x6CD10DF2)),
    ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF, (0x2C3F628B, 0xAB4FD7AD)),
    ((0x243F6A88, 0x85A308D3), 0x13198A2E, (0xDD7CE038, 0xF62A4C12)),
]
"""Counter, key and words of Philox-2x32-10, as its authors publish them."""


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_words_are_those_of_philox(counter, key, words):
    found = philox(torch.tensor(counter[0]), torch.tensor(counter[1]), torch.tensor(key))
    assert tuple(word.item() for word in found) == words


def test_words_are_uniform_and_those_of_other_places_and_keys_are_others():
    chance = Chance(torch.tensor(9)).at("here")
    words = chance.words(2, 5000)
    assert words.shape == (2, 5000) and words.dtype == torch.int64
    # 10,000 / 16 = 625 each, standard deviation 24: five of them. So for the highest and the lowest bits.
    for part in (words >> 28, words & 15):
        assert (torch.bincount(part.flatten(), minlength=16) - 625).abs().max() < 120
    assert torch.equal(words, chance.words(10000).reshape(2, 5000))
    for other in (chance.at("more"), Chance(torch.tensor(9)).at("there"), Chance(torch.tensor(10)).at("here")):
        assert (other.words(2, 5000) == words).sum() < 3


def test_deviates_are_normal():
    drawn = Chance(torch.tensor(1)).normals(3, 6667, dtype=torch.float64)
    assert drawn.shape == (3, 6667) and drawn.isfinite().all()
    # Four standard errors of 20,001 deviates.
    assert abs(drawn.mean()) < 4 / math.sqrt(20001) and abs(drawn.var() - 1) < 4 * math.sqrt(2 / 20001)
    assert abs((drawn.abs() < 1).double().mean() - 0.6827) < 0.014
    assert Chance(torch.tensor(1)).normals(4, dtype=torch.float32).dtype == torch.float32


def test_draws_are_the_same_under_vmap_and_in_a_graph():
    keys = torch.tensor([3, 2**32 - 1, 70000])

    def draw(key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return Chance(key).words(2, 3), Chance(key).normals(5, dtype=torch.float64)

    apart = [torch.stack(each) for each in zip(*map(draw, keys), strict=True)]
    graph = make_fx(torch.func.vmap(draw))(keys.flip(0))
    for together in (torch.func.vmap(draw)(keys), graph(keys)):
        assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_compiled_graph_draws_the_same_words():
    """TorchInductor computes in 32 bits what it takes for an index: no product may be one."""
    keys = torch.tensor([3, 2**32 - 1])

    def draw(keys: torch.Tensor) -> torch.Tensor:
        return torch.func.vmap(lambda key: Chance(key).words(101))(keys)

    assert torch.equal(torch.compile(make_fx(draw)(keys.flip(0)), dynamic=False)(keys), draw(keys))
