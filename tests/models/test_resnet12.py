"""ResNet-12: its size, its names, and gradients of gradients."""

import pytest
import torch
from torch.func import functional_call, grad, vmap

from pipeline.models.resnet12 import ResNet12


def made(**options) -> ResNet12:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResNet12(**{"channels": 3, "width": 4, **options}).double()


def test_it_has_as_many_parameters_as_in_the_literature():
    """12.4 million in 640-wide ResNet-12 (Lee et al. 2019); norms included, without a head."""
    with torch.device("meta"):
        count = sum(value.numel() for value in ResNet12(channels=3, width=64).parameters())
    assert count == pytest.approx(12.42e6, rel=0.01)


@pytest.mark.parametrize("size", [16, 28, 32, 84])
def test_features_are_as_many_as_it_says(size):
    model = made()
    assert model(torch.rand(2, 3, size, size, dtype=torch.float64)).shape == (2, model.features)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_second_derivatives_are_the_same_under_vmap(norm):
    """Two tasks at once or one after another; the gradient of a squared gradient."""
    model = made(norm=norm)
    params = {name: value.detach() for name, value in model.named_parameters()}
    images = torch.rand(2, 3, 3, 16, 16, dtype=torch.float64)

    def loss(params, images):
        return functional_call(model, params, (images,)).square().sum()

    def steep(params, images):
        slope = grad(loss)(params, images)
        return torch.stack([value.square().sum() for value in slope.values()]).sum()

    together = vmap(grad(steep), in_dims=(None, 0))(params, images)
    for number in range(2):
        alone = grad(steep)(params, images[number])
        # Next to the largest: what should cancel out is rounding of it.
        assert all((together[name][number] - v).abs().max() <= 1e-10 * v.abs().max() for name, v in alone.items())
