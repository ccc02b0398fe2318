"""DropBlock: how much goes, in what shapes, and that nothing goes where nothing is to be drawn."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.models.drop import DropBlock
from pipeline.models.norm import ByBatch, by_batch
from pipeline.tensor_noise import Chance

CHANCE = Chance(torch.tensor(4))


def kept(drop: float, block: int, *shape: int) -> torch.Tensor:
    return DropBlock("any", drop=drop, block=block).kept(torch.zeros(shape, dtype=torch.float64), CHANCE)


@pytest.mark.parametrize(("block", "side"), [(1, 8), (3, 9), (5, 9), (2, 2), (5, 3)])
def test_each_activation_is_left_with_the_probability_that_no_square_covers_it(block, side):
    """(1 − γ)ⁿ with equation 1's γ, n being the squares that would cover it; where but one fits, whole channels go."""
    drop, count = 0.2, 4000
    found = kept(drop, block, count // 8, 8, side, side)
    fitting = min(block, side)
    places = side - fitting + 1
    gamma = drop / fitting**2 * side**2 / places**2
    covering = torch.zeros(side, side)
    for row in range(places):
        for column in range(places):
            covering[row : row + fitting, column : column + fitting] += 1
    expected = (1 - gamma) ** covering.double()
    # Four and a half standard errors, each of up to 81 places; the same for all places together, drop being near γ n.
    assert (found.mean((0, 1)) - expected).abs().max() < 4.5 * (drop / count) ** 0.5
    assert set(found.unique().tolist()) == {0.0, 1.0}
    if places == 1:
        assert torch.equal(found.amax((2, 3)), found.amin((2, 3)))


def test_what_goes_is_made_of_squares_and_every_channel_has_its_own():
    gone = 1 - kept(0.15, 3, 4, 5, 12, 12)
    # Erosion finds the squares that fit into what is gone; together they are all of it.
    whole = 1 - F.max_pool2d(1 - gone, 3, stride=1)
    assert torch.equal(F.max_pool2d(F.pad(whole, (2, 2, 2, 2)), 3, stride=1), gone) and gone.mean() > 0.05
    assert len(gone.flatten(0, 1).flatten(1).unique(dim=0)) == 20


def test_what_is_left_is_scaled_so_that_the_mean_stays():
    layer, x = DropBlock("any", drop=0.3, block=2), torch.ones(3, 4, 6, 6, dtype=torch.float64)
    y = layer(x, ByBatch(0, CHANCE))
    assert y.mean().item() == pytest.approx(1, rel=1e-12) and len(y.unique()) == 2 and y.min() == 0
    assert torch.equal(layer(2 * x, ByBatch(0, CHANCE)), 2 * y)


def test_nothing_goes_in_a_pass_without_noise_or_at_rate_zero():
    x = torch.rand(2, 3, 6, 6)
    assert DropBlock("any", drop=0.5, block=2)(x, by_batch) is x
    assert DropBlock("any", drop=0.0, block=2)(x, ByBatch(0, CHANCE)) is x


def test_a_map_of_which_nothing_is_left_is_zero():
    layer, x = DropBlock("any", drop=0.9, block=2), torch.ones(1, 1, 2, 2)
    left = [layer(x, ByBatch(0, Chance(torch.tensor(key)))).sum().item() for key in range(30)]
    assert set(left) == {0.0, 4.0}
