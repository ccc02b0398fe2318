"""Learned rules against their equations, and that they start as gradient descent."""

import math

import pytest
import torch

from pipeline.learners.learned_rules import Curvature, MetaLstm, Mlp, Procedure, scaled

SHAPES = {"conv.weight": (4, 3, 2, 2), "head.weight": (5, 4), "head.bias": (5,)}
LOSS = torch.tensor(1.3, dtype=torch.float64)


def values(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


@pytest.fixture(params=[lambda: Curvature(0.2, values(0)), lambda: Mlp(0.2, 8).double()], ids=["curvature", "mlp"])
def rule(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return request.param()


def test_it_starts_as_gradient_descent(rule):
    fast, gradients = values(0), values(1)
    updates, _ = rule(gradients, fast, LOSS, rule.init(fast), step=0)
    assert all(torch.allclose(updates[name], -0.2 * gradient) for name, gradient in gradients.items())


def test_curvature_is_a_kronecker_product_of_its_matrices():
    """vec(G ×₁ A ×₂ B ×₃ C) = (A ⊗ B ⊗ C) vec(G)."""
    rule, gradients = Curvature(0.2, values(0)), values(1)
    with torch.no_grad():
        for number, matrix in enumerate(rule.matrices.values()):
            matrix.copy_(torch.randn(matrix.shape, generator=torch.Generator().manual_seed(number), dtype=matrix.dtype))
    updates, _ = rule(gradients, values(0), LOSS, {}, step=0)
    for name, gradient in gradients.items():
        whole = torch.eye(1, dtype=torch.float64)
        for axis in range(min(3, gradient.ndim)):
            whole = torch.kron(whole, rule.matrices[f"{name.replace('.', '/')}:{axis}"])
        assert torch.allclose(updates[name].flatten(), -0.2 * whole @ gradient.flatten())


def test_a_value_is_scaled_as_in_the_paper():
    """(log|g| / p, sign g) from e⁻ᵖ on, (−1, eᵖ g) below, p = 10."""
    found = scaled(torch.tensor([-2.0, 1e-6, 0.0], dtype=torch.float64))
    expected = [[math.log(2) / 10, -1.0, -1.0], [-1.0, math.exp(10) * 1e-6, 0.0]]
    assert torch.stack(found).tolist() == [pytest.approx(row) for row in expected]


def test_scaling_zero_has_a_finite_gradient():
    at = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(sum(part.sum() for part in scaled(at)), at)
    assert slope.isfinite().all()


def test_meta_lstm_starts_near_gradient_descent():
    rule, fast, gradients = MetaLstm(0.05, 4).double(), values(0), values(1)
    updates, state = rule(gradients, fast, LOSS, rule.init(fast), step=0)
    for name, gradient in gradients.items():
        assert torch.allclose(updates[name], -0.05 * gradient, atol=0.02 * fast[name].abs().max().item())
    assert state["rate"]["head.bias"].mean().item() == pytest.approx(0.05, rel=0.1)


def test_meta_lstm_is_the_cell_of_an_lstm():
    """φₜ = fₜ φₜ₋₁ − iₜ g with the gates of equations 2 and 3, and h from torch's own LSTM cell; two steps."""
    rule, fast = MetaLstm(0.05, 4).double(), {"w": torch.tensor([0.3, -1.2], dtype=torch.float64)}
    with torch.no_grad():
        for number, parameter in enumerate(rule.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    cell = torch.nn.LSTMCell(4, 4).double()
    with torch.no_grad():
        cell.weight_ih.copy_(rule.read.weight[:, :4])
        cell.weight_hh.copy_(rule.read.weight[:, 4:])
        cell.bias_ih.copy_(rule.read.bias)
        cell.bias_hh.zero_()
        cell.bias_hh[4:8] = 1.0
    state, own = rule.init(fast), fast["w"].clone()
    hidden = memory = torch.zeros(2, 4, dtype=torch.float64)
    rate = forget = torch.zeros(2, 1, dtype=torch.float64)
    for step in range(2):
        gradient = torch.tensor([0.4, -0.1], dtype=torch.float64) * (step + 1)
        updates, state = rule({"w": gradient}, fast, LOSS, state, step=step)
        fast = {"w": fast["w"] + updates["w"]}
        seen = torch.stack([*scaled(gradient), *(part.expand(2) for part in scaled(LOSS))], 1)
        hidden, memory = cell(seen, (hidden, memory))
        rate = torch.sigmoid(rule.rate(torch.cat([hidden, own[:, None], rate], 1)))
        forget = torch.sigmoid(rule.forget(torch.cat([hidden, own[:, None], forget], 1)))
        own = (forget * own[:, None] - rate * gradient[:, None])[:, 0]
        assert torch.allclose(fast["w"], own)


def stepped(rule: Procedure, steps: int) -> dict[str, torch.Tensor]:
    """What the rule makes of the same gradients, so many times."""
    fast = values(0)
    state = rule.init(fast)
    for step in range(steps):
        updates, state = rule(values(1), fast, LOSS, state, step=step)
        fast = {name: value + updates[name] for name, value in fast.items()}
    return fast


def test_a_procedure_is_its_equation():
    """Rate 0.2, momentum 0.6, 2.25 of 4 steps, 30 % of every step of one length."""
    rule = Procedure(0.2, 4, momentum=0.6, normalised=0.3).double()
    found = stepped(rule, 4)
    for name, gradient in values(1).items():
        expected, velocity = values(0)[name], 0.0
        for weight in (1.0, 1.0, 0.25, 0.0):
            velocity = gradient + 0.6 * velocity
            size = (velocity**2).sum().div(velocity.numel()).sqrt()
            expected = expected - 0.2 * weight * (0.7 * velocity + 0.3 * velocity / size)
        assert torch.allclose(found[name], expected, rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 3, 9])
def test_a_procedure_of_whole_steps_is_gradient_descent_of_so_many(count):
    rule = Procedure(0.2, 4, momentum=1e-12, normalised=1e-12).double()
    with torch.no_grad():
        rule.count.fill_(count / rule.UNIT)
    found = stepped(rule, 4)
    assert all(torch.allclose(found[n], v - 0.2 * min(count, 4) * values(1)[n]) for n, v in values(0).items())
