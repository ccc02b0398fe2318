"""Losses against their formulas, their limits, and their second derivatives, alone and under vmap."""

import math
from functools import partial

import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional as F

from pipeline.tasks.classification import Classification
from pipeline.tasks.losses import class_balanced, cross_entropy, focal, squared_error

LOSSES = {
    "cross_entropy": cross_entropy,
    "smoothed": partial(cross_entropy, smoothing=0.1),
    "focal": partial(focal, gamma=2.0),
    "focal of a broken power": partial(focal, gamma=0.5),
    "class_balanced": partial(class_balanced, beta=0.9),
    "mse": squared_error,
}
LABELS = torch.tensor([0, 0, 0, 0, 2, 2, 3])
"""Of four ways; one has no sample."""


def logits(*more: int) -> torch.Tensor:
    return 2 * torch.randn(*more, len(LABELS), 4, dtype=torch.float64)


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


def by_formula(scores: torch.Tensor, each) -> float:
    """The mean over the samples of `each(probabilities, scores, true class)`, in plain numbers."""
    rows = [
        each(row.softmax(0).tolist(), row.tolist(), true) for row, true in zip(scores, LABELS.tolist(), strict=True)
    ]
    return sum(rows) / len(rows)


def test_smoothed_cross_entropy_is_that_of_mixed_labels():
    def each(p, _, true):
        return -sum((0.9 * (way == true) + 0.1 / 4) * math.log(p[way]) for way in range(4))

    scores = logits()
    assert cross_entropy(scores, LABELS, smoothing=0.1).item() == pytest.approx(by_formula(scores, each), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_is_its_formula(gamma):
    scores = logits()
    expected = by_formula(scores, lambda p, _, true: -((1 - p[true]) ** gamma) * math.log(p[true]))
    assert focal(scores, LABELS, gamma=gamma).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("beta", [0.5, 0.999])
def test_class_balanced_loss_is_its_formula(beta):
    counts = {0: 4, 2: 2, 3: 1}
    weights = {way: (1 - beta) / (1 - beta**count) for way, count in counts.items()}
    mean, scores = sum(weights.values()) / 3, logits()
    expected = by_formula(scores, lambda p, _, true: -weights[true] / mean * math.log(p[true]))
    assert class_balanced(scores, LABELS, beta=beta).item() == pytest.approx(expected, rel=1e-9)


def test_squared_error_is_its_formula():
    scores = logits()
    expected = by_formula(scores, lambda _, s, true: sum((s[way] - (way == true)) ** 2 for way in range(4)) / 4)
    assert squared_error(scores, LABELS).item() == pytest.approx(expected, rel=1e-12)


LIMITS = [partial(cross_entropy, smoothing=0.0), partial(focal, gamma=0.0), partial(class_balanced, beta=0.0)]


@pytest.mark.parametrize("limit", LIMITS, ids=["cross_entropy", "focal", "class_balanced"])
def test_the_limit_is_cross_entropy(limit):
    scores = logits()
    assert limit(scores, LABELS).item() == pytest.approx(F.cross_entropy(scores, LABELS).item(), rel=1e-12)


def test_among_equal_classes_class_balanced_is_cross_entropy():
    scores, labels = logits()[:6], torch.tensor([0, 1, 2, 0, 1, 2])
    assert class_balanced(scores, labels, beta=0.99).item() == pytest.approx(F.cross_entropy(scores, labels).item())


def test_near_one_every_class_weighs_alike_in_float32_too():
    """The pull on a score of the rare class is that on all of the frequent one together."""
    labels = torch.tensor([0] * 9 + [1])
    for beta, expected in ((0.0, 9.0), (1 - 1e-12, 1.0)):
        pull = grad(partial(class_balanced, beta=beta))(torch.zeros(10, 2), labels)
        assert (pull[:9, 0].sum() / pull[9, 1]).item() == pytest.approx(expected, rel=1e-5)


def test_two_derivatives_equal_central_differences(loss):
    scores = logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, LABELS), scores)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, LABELS), scores)


def test_a_vmap_gives_the_same_as_one_after_another(loss):
    """Values, and gradients of squared gradients walked back from outside."""
    scores, labels = logits(3), torch.stack([LABELS, LABELS.flip(0), LABELS.roll(1)])

    def steep(x, y):
        return grad(loss)(x, y).square().sum()

    together, apart = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    vmap(steep)(together, labels).sum().backward()
    torch.stack([steep(*one) for one in zip(apart, labels, strict=True)]).sum().backward()
    torch.testing.assert_close(together.grad, apart.grad, rtol=1e-10, atol=1e-14)
    values = torch.stack([loss(*one) for one in zip(scores, labels, strict=True)])
    torch.testing.assert_close(vmap(loss)(scores, labels), values, rtol=1e-12, atol=0)


def test_certainty_leaves_derivatives_finite(loss):
    """A probability that rounds to one, or to zero."""
    scores = 800 * F.one_hot(LABELS, 4).double() * torch.tensor([1, 1, 1, 1, 1, 1, -1])[:, None]
    for derivative in (grad(loss), grad(lambda x, y: grad(loss)(x, y).square().sum())):
        assert derivative(scores, LABELS).isfinite().all()


def test_the_task_takes_its_loss():
    scores = logits()
    assert Classification().loss(scores, LABELS) == F.cross_entropy(scores, LABELS)
    assert Classification(squared_error).loss(scores, LABELS) == squared_error(scores, LABELS)
