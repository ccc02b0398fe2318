"""The norm with derivatives written out is PyTorch's, to the second derivative and no further."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from pipeline.calculus import around
from pipeline.models import norm
from pipeline.models.batch_norm import EPS, batch_norm
from pipeline.models.norm import Norm, by_batch


def arguments(*shape: int, layout=torch.contiguous_format, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, dtype=dtype)
    x = x.to(memory_format=layout) if x.ndim == 4 else x
    weight, bias = torch.rand(2, shape[1], generator=generator, dtype=dtype)
    return x.requires_grad_(), (weight + 0.5).requires_grad_(), bias.requires_grad_()


def native(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, True, eps=EPS)


def derivatives(norm, x, weight, bias):
    """Of a loss in which every output matters, the first and the second."""
    values = (x, weight, bias)
    loss = (norm(*values).tanh() ** 2).sum() + (norm(2 * x, weight, bias) ** 3).sum()
    once = torch.autograd.grad(loss, values, create_graph=True)
    return once + torch.autograd.grad(sum((each**3).sum() for each in once), values)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 3)])
def test_both_derivatives_are_those_of_finite_differences(shape):
    values = arguments(*shape)
    assert gradcheck(batch_norm, values) and gradgradcheck(batch_norm, values)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-4)])
def test_it_is_the_norm_of_pytorch(layout, dtype, bound):
    values = arguments(5, 7, 6, 4, layout=layout, dtype=dtype)
    for own, theirs in zip(derivatives(batch_norm, *values), derivatives(native, *values), strict=True):
        assert ((own - theirs).norm() / theirs.norm()).item() < bound


def test_a_third_derivative_is_refused():
    values = arguments(5, 3)
    (once,) = torch.autograd.grad((batch_norm(*values) ** 3).sum(), values[0], create_graph=True)
    (twice,) = torch.autograd.grad((once**3).sum(), values[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        twice.sum().backward()


def test_only_where_nothing_is_around_a_layer_uses_it(monkeypatch):
    seen = []
    monkeypatch.setattr(norm, "batch_norm", lambda *values: seen.append(1) or native(*values))
    layer, x = Norm("n", 3), torch.rand(4, 3, 2, 2)
    expected = layer(x, by_batch)
    for what, times in (("vmap", 0), ("func", 0), ("nothing", 1)):
        with around(what):
            torch.testing.assert_close(layer(x, by_batch), expected)
        assert len(seen) == times
