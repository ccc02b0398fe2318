"""A derivative is the same by `torch.func` and by plain autograd, with all that it is a function of."""

import pytest
import torch

from pipeline.calculus import around, gradient, pull

WAYS = ("vmap", "func", "nothing")


def tree():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(3, generator=generator, dtype=torch.float64).requires_grad_() for name in "ab"}


def judged(scale):
    def function(fast, other):
        value = (scale * fast["a"] ** 3 + other**2 * fast["a"]).sum()
        return value, {"value": value}

    return function


def through(what):
    """A gradient, and what a loss of it says of everything that went into it."""
    fast, other = tree(), torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    with around(what):
        (to_fast, to_other), others = gradient(judged(scale), fast, other)
        (to_fast["a"].square().sum() + to_other.sum() + others["value"]).backward()
    return [*to_fast.values(), to_other, others["value"], fast["a"].grad, other.grad, scale.grad]


@pytest.mark.parametrize("what", WAYS[1:])
def test_the_way_does_not_matter(what):
    for own, expected in zip(through(what), through("vmap"), strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("what", WAYS)
def test_without_gradients_it_is_a_constant(what):
    with around(what), torch.no_grad():
        (to_fast, _), others = gradient(judged(torch.tensor(1.0)), tree(), torch.ones(3, dtype=torch.float64))
    assert to_fast["a"].abs().sum() > 0 and not to_fast["b"].any()
    assert not any(value.requires_grad for value in (*to_fast.values(), others["value"]))


@pytest.mark.parametrize("what", WAYS)
def test_the_same_tensor_known_from_elsewhere_is_a_constant_of_the_inner_gradient(what):
    """Fast weights start as the meta-parameters themselves, which the loss may know too, as a proximal term does."""
    meta = torch.tensor([3.0], requires_grad=True)
    with around(what):
        ((slope,), _) = gradient(lambda fast: ((fast * meta).sum(), ()), meta)
        slope.backward()
    assert slope.item() == 3.0 and meta.grad.item() == 1.0


@pytest.mark.parametrize("what", WAYS)
def test_where_nothing_depends_on_anything_gradients_are_zero(what):
    """As a head that starts at zero in every episode does not depend on what was learned."""
    at = torch.ones(2)
    with around(what):
        ((found,), _) = gradient(lambda at: (torch.zeros(()), ()), at)
        with torch.no_grad():
            (pulled,) = pull(lambda at: torch.zeros(3), at)(torch.ones(3))
    assert found.tolist() == pulled.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("what", WAYS)
def test_a_pull_carries_gradients_back_any_number_of_times(what):
    fast = {name: value.detach() for name, value in tree().items()}
    with around(what), torch.no_grad():
        back = pull(lambda fast: ({"square": fast["a"] ** 2}, torch.ones(())), fast)
        for factor in (1.0, 2.0):
            (found,) = back(({"square": torch.full((3,), factor, dtype=torch.float64)}, torch.ones(())))
            torch.testing.assert_close(found["a"], 2 * factor * fast["a"])
            assert not found["b"].any()
