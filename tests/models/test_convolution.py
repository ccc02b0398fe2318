"""Convolutions from patches are convolutions, and a norm folded into one is that norm."""

import pytest
import torch
from torch.func import functional_call, grad
from torch.nn import functional as F

from pipeline.models import convolution
from pipeline.models.convolution import Convolution, normalised
from pipeline.models.norm import EPS, Given, Norm, Recorded, by_batch


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("channels", [1, 3, 7])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("size", [4, 7])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_every_form_is_a_convolution(channels, kernel, stride, size, layout, monkeypatch):
    """With many weights on few places too: 7 channels count as that here."""
    monkeypatch.setattr(convolution, "MANY_WEIGHTS", 0)
    made = Convolution(channels, 64, kernel, stride).double().to(memory_format=layout)
    x = torch.rand(2, channels, size, size, dtype=torch.float64)
    torch.testing.assert_close(made(x), F.conv2d(x, made.weight, stride=stride, padding=kernel // 2))


def test_wide_layers_on_small_maps_are_products(monkeypatch):
    """640 × 640 channels on 4 × 4 maps of five samples, the last block of resnet12; not conv4's layers of that size."""
    seen = []
    monkeypatch.setattr(Convolution, "_patches", lambda self, x: seen.append(self.out_channels) or x.movedim(1, -1))
    for width in (64, 640):
        monkeypatch.setattr(Convolution, "_matrix", lambda self: self.weight[:, :, 0, 0].t())
        Convolution(width, width, 3)(torch.rand(5, width, 4, 4))
    assert seen == [640]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_folded_norm_is_that_norm_and_so_are_its_derivatives(channels, stride):
    conv, norm = Convolution(channels, 5, 3, stride).double(), Norm("n", 5).double()
    torch.nn.init.uniform_(norm.weight, -1.0, 1.0)
    weights = {"weight": conv.weight.detach(), "scale": norm.weight.detach(), "shift": norm.bias.detach()}
    x = torch.rand(6, channels, 8, 8, dtype=torch.float64)

    def textbook(weights):
        plain = F.conv2d(x, weights["weight"], stride=stride, padding=1)
        mean, var = plain.mean((0, 2, 3), keepdim=True), plain.var((0, 2, 3), keepdim=True, correction=0)
        normal = (plain - mean) / (var + EPS).sqrt()
        return normal * weights["scale"].reshape(1, -1, 1, 1) + weights["shift"].reshape(1, -1, 1, 1)

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv, norm

        def forward(self):
            return normalised(self.conv, self.norm, x, by_batch)

    def ours(weights):
        names = {"conv.weight": "weight", "norm.weight": "scale", "norm.bias": "shift"}
        return functional_call(Both(), {full: weights[name] for full, name in names.items()}, ())

    def steep(function):
        def squared(weights):
            slopes = grad(lambda w: function(w).pow(3).sum())(weights)
            return torch.stack([slope.square().sum() for slope in slopes.values()]).sum()

        return grad(squared)(weights)

    torch.testing.assert_close(ours(weights), textbook(weights))
    for name, expected in steep(textbook).items():
        torch.testing.assert_close(steep(ours)[name], expected, rtol=1e-8, atol=1e-8)


def test_a_folded_norm_tells_its_statistics_and_takes_given_ones():
    conv, norm = Convolution(1, 5, 3).double(), Norm("n", 5).double()
    x, other = torch.rand(2, 6, 1, 8, 8, dtype=torch.float64)
    recorded = Recorded()
    first = normalised(conv, norm, x, recorded)
    plain = conv(x)
    mean, var = recorded.statistics["n"]
    torch.testing.assert_close(mean, plain.mean((0, 2, 3)).detach())
    torch.testing.assert_close(var, plain.var((0, 2, 3), correction=0).detach())
    given = Given(recorded.statistics)
    torch.testing.assert_close(normalised(conv, norm, x, given), first)
    torch.testing.assert_close(normalised(conv, norm, other, given), norm(conv(other), given))


def test_in_float32_it_is_closer_to_the_truth_than_the_kernel():
    """Images of two grey levels, as ink on paper: their sums of squares are all of one size."""
    images = F.interpolate((torch.rand(40, 1, 4, 4) > 0.7).float(), size=(28, 28))
    conv, norm = Convolution(1, 32, 3), Norm("n", 32)
    folded, kernel = normalised(conv, norm, images, by_batch), norm(conv(images), by_batch)
    exact = normalised(conv.double(), norm.double(), images.double(), by_batch)
    errors = [(found.double() - exact).norm() / exact.norm() for found in (folded, kernel)]
    assert errors[0] < 1e-6
    assert errors[0] < errors[1]
