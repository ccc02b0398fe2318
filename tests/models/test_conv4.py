"""Conv4 and its norm: sizes, where statistics come from, and gradients of gradients."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from pipeline.models.conv4 import Conv4
from pipeline.models.norm import EPS, Given, Norm, Recorded, Running, by_batch

DOWNSAMPLES, FEATURES = ("stride", "max_pool"), ("mean", "flatten")


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def conv4(**options) -> Conv4:
    settings = {"channels": 1, "width": 6, "size": 16, "downsample": "max_pool", "features": "flatten", **options}
    made = Conv4(**settings).double()
    for norm in made.norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    return made


def images(count=6, *, channels=1, size=16) -> torch.Tensor:
    return torch.rand(count, channels, size, size, dtype=torch.float64)


@pytest.mark.parametrize("downsample", DOWNSAMPLES)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("size", [16, 17, 28, 31, 32, 84])
def test_features_are_as_many_as_it_says(downsample, features, size):
    made = conv4(channels=3, size=size, downsample=downsample, features=features, width=4)
    assert made(images(2, channels=3, size=size)).shape == (2, made.features)


@pytest.mark.parametrize(
    ("size", "downsample", "expected"), [(28, "max_pool", 64), (28, "stride", 256), (84, "max_pool", 1600)]
)
def test_features_of_the_literature(size, downsample, expected):
    """Omniglot at 28 pixels: 64 pooled (Vinyals 2016), 2 × 2 × 64 strided; mini-ImageNet at 84 pixels: 1,600."""
    assert conv4(size=size, downsample=downsample, width=64).features == expected
    assert conv4(size=size, downsample=downsample, width=64, features="mean").features == 64


def test_parameters_are_named_by_block_and_convolutions_have_no_bias():
    names = {name for name, _ in conv4().named_parameters()}
    assert names == {f"convs.{b}.weight" for b in range(4)} | {
        f"norms.{b}.{n}" for b in range(4) for n in ("weight", "bias")
    }


@pytest.mark.parametrize("downsample", DOWNSAMPLES)
def test_it_is_what_the_textbook_layers_compute(downsample):
    made, x = conv4(downsample=downsample), images()
    y = x
    for conv, norm in zip(made.convs, made.norms, strict=True):
        y = F.conv2d(y, conv.weight, stride=2 if downsample == "stride" else 1, padding=1)
        y = F.relu(F.batch_norm(y, None, None, norm.weight, norm.bias, training=True, eps=EPS))
        y = F.max_pool2d(y, 2) if downsample == "max_pool" else y
    torch.testing.assert_close(made(x), y.flatten(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("downsample", DOWNSAMPLES)
def test_warps_are_convolutions_behind_those_of_the_blocks_and_start_as_the_identity(downsample):
    made, warped, x = conv4(downsample=downsample), conv4(downsample=downsample, warp=True), images()
    missing = warped.load_state_dict(made.state_dict(), strict=False).missing_keys
    assert missing == [f"warps.{block}.weight" for block in range(4)]
    torch.testing.assert_close(warped(x), made(x), rtol=1e-10, atol=1e-12)
    # Two linear maps in a row: 1×1 warps are folded into the convolutions before them.
    for conv, plain, warp in zip(warped.convs, made.convs, warped.warps, strict=True):
        mixing = torch.randn(6, 6, dtype=torch.float64)
        with torch.no_grad():
            warp.weight.zero_()[:, :, 1, 1] = mixing
            plain.weight.copy_(torch.einsum("oi,ichw->ochw", mixing, conv.weight))
    torch.testing.assert_close(warped(x), made(x), rtol=1e-8, atol=1e-10)


def test_a_batch_norm_has_mean_zero_and_variance_one():
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64) * 7 + 2
    y = by_batch("any", x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.var((0, 2, 3), unbiased=False), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5, 5)])
def test_recorded_statistics_are_those_of_the_batch(shape):
    x = (torch.randn(shape, dtype=torch.float64) * 3 + 1).requires_grad_()
    recorded = Recorded()
    assert torch.equal(recorded("a", x), by_batch("a", x))
    mean, var = recorded.statistics["a"]
    others = [axis for axis in range(len(shape)) if axis != 1]
    torch.testing.assert_close(mean, x.detach().mean(others), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(var, x.detach().var(others, unbiased=False), rtol=1e-9, atol=1e-12)
    assert not mean.requires_grad and not var.requires_grad


@pytest.mark.parametrize("downsample", DOWNSAMPLES)
def test_given_its_own_statistics_a_batch_is_normalised_as_by_itself(downsample):
    made, x = conv4(downsample=downsample), images()
    recorded = Recorded()
    expected = made(x, recorded)
    assert sorted(recorded.statistics) == [f"block{block}" for block in range(4)]
    torch.testing.assert_close(made(x, Given(recorded.statistics)), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(expected, made(x), rtol=0, atol=0)


def test_given_statistics_make_a_sample_independent_of_its_company():
    """Law 8; by the batch it is not."""
    made, x = conv4(), images()
    recorded = Recorded()
    made(images(), recorded)
    given = Given(recorded.statistics)
    torch.testing.assert_close(made(x, given)[:1], made(x[:1], given), rtol=1e-10, atol=1e-12)
    assert (made(x)[:1] - made(x[:3])[:1]).abs().max() > 1e-3


class Scaled(torch.nn.Module):
    """A norm whose input depends on a parameter, so that second-order gradients go through it."""

    def __init__(self):
        super().__init__()
        self.scale, self.norm = torch.nn.Parameter(torch.ones(3)), Norm("a", 3)

    def forward(self, x, normalise):
        return self.norm(torch.tanh(x * self.scale.reshape(1, -1, 1, 1)), normalise)


def after_a_step(module, params, x, y):
    """The loss after one inner step from `params`."""

    def loss(values):
        return F.mse_loss(functional_call(module, values, (x, by_batch)), y)

    inner = grad(loss)(params)
    return loss({name: value - 0.1 * inner[name] for name, value in params.items()})


def errors_under_vmap(module, x, y) -> dict[str, float]:
    """Relative error of the meta-gradient of tasks under vmap against a loop, both walked back from outside."""
    params = dict(module.named_parameters())
    together = vmap(lambda a, b: after_a_step(module, params, a, b))(x, y).sum()
    alone = sum(after_a_step(module, params, a, b) for a, b in zip(x, y, strict=True))
    pairs = zip(*(torch.autograd.grad(value, list(params.values())) for value in (together, alone)), strict=True)
    return {name: ((a - b).norm() / b.norm()).item() for name, (a, b) in zip(params, pairs, strict=True)}


def test_second_order_gradients_of_the_norm_are_the_same_under_vmap():
    """F.batch_norm with weight and bias batched, as they are after an inner step, is silently wrong here, many times over."""
    module = Scaled().double()
    for values in module.parameters():
        torch.nn.init.normal_(values)
    x, y = (torch.randn(4, 5, 3, 4, 4, dtype=torch.float64) for _ in range(2))
    assert max(errors_under_vmap(module, x, y).values()) < 1e-10


@pytest.mark.parametrize("downsample", DOWNSAMPLES)
def test_second_order_gradients_of_conv4_are_the_same_under_vmap(downsample):
    made = conv4(downsample=downsample, width=2, features="mean")
    x, y = torch.rand(2, 3, 1, 16, 16, dtype=torch.float64), torch.randn(2, 3, 2, dtype=torch.float64)
    found = errors_under_vmap(made, x, y)
    assert max(found.values()) < 1e-10, found


def test_second_order_gradient_of_the_norm_equals_central_differences():
    module = Scaled().double()
    x, y = (torch.randn(6, 3, 2, 2, dtype=torch.float64) for _ in range(2))
    params = {name: torch.randn(3, dtype=torch.float64, requires_grad=True) for name, _ in module.named_parameters()}
    slopes = torch.autograd.grad(after_a_step(module, params, x, y), list(params.values()))
    directions = {name: torch.randn(3, dtype=torch.float64) for name in params}
    slope = sum((a * b).sum() for a, b in zip(slopes, directions.values(), strict=True))
    eps = 1e-6
    high, low = (
        after_a_step(module, {n: p.detach() + sign * eps * directions[n] for n, p in params.items()}, x, y)
        for sign in (1, -1)
    )
    torch.testing.assert_close(slope, (high - low) / (2 * eps), rtol=1e-7, atol=1e-9)


def test_running_averages_start_at_zero_and_one_and_move_by_the_momentum():
    made = conv4()
    running = Running(made, momentum=0.25).double()
    assert all((mean == 0).all() and (var == 1).all() for mean, var in running.statistics().values())
    news = [{f"block{b}": (torch.full((6,), 1.0 + b), torch.full((6,), 3.0)) for b in range(4)}] * 2
    for new in news:
        running.absorb(new)
    # 1 − 0.75² of the way from 0 to 1 + b, and from 1 to 3.
    for block in range(4):
        mean, var = running.statistics()[f"block{block}"]
        assert mean.tolist() == [pytest.approx(0.4375 * (1 + block))] * 6 and var.tolist() == [pytest.approx(1.875)] * 6


def test_running_averages_are_saved_and_are_no_parameters():
    running = Running(conv4())
    assert sorted(running.state_dict()) == sorted(f"block{b}_{s}" for b in range(4) for s in ("mean", "var"))
    assert not list(running.parameters())
    made, x = conv4(), images()
    made(x, Given(running.double().statistics()))
