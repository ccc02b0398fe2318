"""The recurrent encoder against torch's own, and gradients of gradients."""

import pytest
import torch
from torch.func import functional_call, grad, vmap

from pipeline.models.rnn import Rnn


def rnn(**options) -> Rnn:
    return Rnn(**{"inputs": 6, "width": 3, "layers": 1, "bidirectional": True, **options}).double()


def images(*samples: int) -> torch.Tensor:
    """Two channels, rows of three pixels."""
    return torch.rand(*samples, 2, 4, 3, dtype=torch.float64)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_it_is_what_torchs_units_compute(layers, bidirectional):
    made, x = rnn(layers=layers, bidirectional=bidirectional), images(5)
    theirs = torch.nn.GRU(6, 3, layers, batch_first=True, bidirectional=bidirectional).double()
    with torch.no_grad():
        for number, layer in enumerate(made.layers):
            for unit, suffix in zip(layer, ("", "_reverse"), strict=False):
                for name, value in (("ih", unit.read), ("hh", unit.recall)):
                    theirs.get_parameter(f"weight_{name}_l{number}{suffix}").copy_(value.weight)
                    theirs.get_parameter(f"bias_{name}_l{number}{suffix}").copy_(value.bias)
    _, last = theirs(x.transpose(1, 2).flatten(2))
    directions = 2 if bidirectional else 1
    assert made.features == 3 * directions
    torch.testing.assert_close(made(x), torch.cat([*last[-directions:]], 1), rtol=1e-10, atol=1e-12)


def test_two_derivatives_equal_central_differences():
    made, x = rnn(width=2), images(2)
    params = {name: value.detach().requires_grad_() for name, value in made.named_parameters()}

    def features(*values):
        return functional_call(made, dict(zip(params, values, strict=True)), (x,))

    assert torch.autograd.gradgradcheck(features, tuple(params.values()), fast_mode=True)


def test_second_derivatives_are_the_same_under_vmap():
    """Tasks with weights of their own, walked back from outside."""
    made, x = rnn(layers=2), images(3, 2)

    def after_a_step(params, x):
        def loss(params):
            return functional_call(made, params, (x,)).square().sum()

        slopes = grad(loss)(params)
        return loss({name: value - 0.1 * slopes[name] for name, value in params.items()})

    found = []
    for run in (lambda p: vmap(after_a_step, (None, 0))(p, x).sum(), lambda p: sum(after_a_step(p, one) for one in x)):
        params = {name: value.detach().requires_grad_() for name, value in made.named_parameters()}
        run(params).backward()
        found.append({name: value.grad for name, value in params.items()})
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, rtol=1e-9, atol=1e-12)
