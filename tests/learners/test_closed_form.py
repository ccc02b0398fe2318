"""Learners with a solver inside, against scikit-learn's solutions of the same problems."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC
from small import episode, make, network

from pipeline.learners.closed_form import LogisticLearner, RidgeLearner, SvmLearner, crammer_singer
from pipeline.learners.learner import Mode
from pipeline.models.norm import by_batch
from pipeline.tasks.classification import Classification
from pipeline.tasks.losses import memberships

SHAPES = [(1, 5, 64, 1.0), (5, 5, 64, 1.0), (5, 3, 6, 1.0), (5, 5, 64, 10.0), (5, 5, 64, 0.1), (3, 8, 16, 1.0)]
"""Samples per class, classes, features, scale of the features; fewer features than samples and more."""


def problem(each: int, ways: int, dim: int, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features as they come from a ReLU, labels, one-hot labels: classes that overlap a little."""
    generator = torch.Generator().manual_seed(each + ways + dim)
    labels = torch.arange(ways).repeat_interleave(each)
    centre, noise = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in (ways, len(labels)))
    return scale * (0.7 * centre[labels] + noise).relu(), labels, memberships(labels, ways, torch.float64)


def nearly(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a share of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def ridge(penalty: float) -> RidgeLearner:
    return RidgeLearner(network(prototype=True), Classification(), penalty=penalty, scale=1.0).double()


def logistic(penalty: float, steps: int) -> LogisticLearner:
    model = network(prototype=True)
    return LogisticLearner(model, Classification(), penalty=penalty, scale=1.0, steps=steps).double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", [0.25, 8.0])
def test_ridge_is_scikit_learns(shape, penalty):
    x, _, members = problem(*shape)
    weights = x.T @ ridge(penalty).coefficients(x @ x.T, members)
    expected = Ridge(alpha=penalty, fit_intercept=False, solver="cholesky").fit(x.numpy(), members.numpy()).coef_.T
    # The penalty starts in float32.
    assert nearly(weights, torch.from_numpy(expected)) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_logistic_tends_to_scikit_learns(shape):
    x, _, members = problem(*shape)
    weights = x.T @ logistic(0.5, steps=20).coefficients(x @ x.T, members)
    fit = LogisticRegression(C=2.0, fit_intercept=False, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    each = [torch.from_numpy(fit.fit(x.numpy(), column.numpy()).coef_[0].copy()) for column in members.T]
    assert nearly(weights, torch.stack(each, 1)) < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_logistic_takes_newton_steps_from_zero(steps):
    """w ← w − H⁻¹ g of Σ log(1 + exp(−y x·w)) + λ/2 |w|²."""
    x, _, members = problem(4, 3, 6, 1.0)
    learner = logistic(0.5, steps)
    penalty = learner.log_penalty.detach().exp()
    found = x.T @ learner.coefficients(x @ x.T, members)
    for way in range(3):
        signs = 2 * members[:, way] - 1

        def objective(w, signs=signs):
            return torch.nn.functional.softplus(-signs * (x @ w)).sum() + penalty / 2 * w.square().sum()

        w = torch.zeros(6, dtype=torch.float64)
        for _ in range(steps):
            hessian, slope = torch.autograd.functional.hessian(objective, w), torch.func.grad(objective)(w)
            w = w - torch.linalg.solve(hessian, slope)
        assert nearly(found[:, way], w) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logistic_bears_classes_that_lie_far_apart(dtype):
    """Where all weights s of the samples are nought but for rounding."""
    x, _, members = problem(5, 3, 64, 100.0)
    x = x.to(dtype).requires_grad_()
    found = logistic(1e-4, steps=15).to(dtype).coefficients(x @ x.T, members.to(dtype))
    (slope,) = torch.autograd.grad(found.square().sum(), x)
    assert found.isfinite().all() and slope.isfinite().all()
    assert ((x @ x.T @ found).argmax(1) == members.argmax(1)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cost", [0.1, 1.0])
def test_svm_decides_as_scikit_learns(shape, cost):
    x, labels, members = problem(*shape)
    decisions = x @ x.T @ crammer_singer(x @ x.T, members, cost)
    fit = LinearSVC(multi_class="crammer_singer", C=cost, fit_intercept=False, tol=1e-8, max_iter=10**6)
    expected = torch.from_numpy(fit.fit(x.numpy(), labels.numpy()).decision_function(x.numpy()))
    assert nearly(decisions, expected) < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_svm_solves_the_dual(shape):
    """It is feasible, and its value is that of the primal: no better solution exists."""
    x, labels, members = problem(*shape)
    found = crammer_singer(x @ x.T, members, 0.3)
    weights, scores = x.T @ found, x @ x.T @ found
    slack = (scores - scores.gather(1, labels[:, None]) + 1 - members).amax(1)
    primal = 0.5 * weights.square().sum() + 0.3 * slack.sum()
    dual = -0.5 * weights.square().sum() + found.gather(1, labels[:, None]).sum()
    assert found.sum(1).abs().max() < 1e-10 and (found <= 0.3 * members + 1e-10).all()
    # As a share of what no weights at all would cost.
    assert 0 < (primal - dual) / (0.3 * len(x)) < 2e-5


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1000.0])
@pytest.mark.parametrize(("each", "ways", "dim"), [(5, 12, 64), (1, 30, 64), (15, 5, 64), (5, 5, 640)])
def test_the_svm_settles_for_features_of_any_scale(each, ways, dim, scale):
    x, _, members = problem(each, ways, dim, scale)
    assert crammer_singer(x @ x.T, members, 0.1).isfinite().all()


def test_an_svm_that_did_not_settle_is_not_taken_for_solved():
    x, _, members = problem(5, 5, 64, 1e12)
    assert crammer_singer(x @ x.T, members, 1e6).isnan().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_through_the_svm_equals_central_differences(shape):
    x, _, members = problem(*shape)
    generator = torch.Generator().manual_seed(0)
    weight, direction = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (members.shape, x.shape))

    def value(x: torch.Tensor) -> torch.Tensor:
        return (crammer_singer(x @ x.T, members, 0.1) * weight).sum()

    eps = 1e-7 * shape[-1]
    expected = (value(x + eps * direction) - value(x - eps * direction)).item() / (2 * eps)
    slope = torch.func.grad(value)(x)
    assert (slope * direction).sum().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["ridge", "logistic", "svm"])
def test_logits_are_scaled_products_with_the_weights(name):
    learner, one = make(name), episode(1)
    features = learner.model(torch.cat([one.support.inputs, one.query.inputs]), by_batch)
    support, query = features[: len(one.support.inputs)], features[len(one.support.inputs) :]
    weights = support.T @ learner.coefficients(support @ support.T, memberships(one.support.targets, 3, query.dtype))
    logits = learner.adapt(one.support, one.ways, mode=Mode.TRANSDUCTIVE)(one.query.inputs)
    assert torch.allclose(logits, learner.log_scale.exp() * query @ weights, rtol=1e-9)


@pytest.mark.parametrize("name", ["ridge", "logistic", "svm"])
def test_where_features_are_not_finite_the_loss_is_not_either(name):
    """So that the meta-step is skipped and counted, as for other learners."""
    learner = make(name)
    with torch.no_grad():
        learner.model.encoder.convs[0].weight.fill_(torch.nan)
    assert not learner.outcome(episode(2)).loss.isfinite()


@pytest.mark.parametrize("name", ["ridge", "logistic", "svm"])
def test_solvers_keep_their_digits_under_autocast(name):
    learner, one = make(name).float(), episode(3).to("cpu", torch.float32)
    exact = learner.outcome(one).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        outcome = learner.outcome(one)
    outcome.loss.backward()
    assert outcome.loss.dtype == torch.float32 and outcome.loss.item() == pytest.approx(exact, rel=0.1)


def test_what_must_be_positive_stays_so():
    learner = SvmLearner(network(prototype=True), Classification(), cost=0.1, scale=2.0)
    assert learner.log_scale.exp().item() == pytest.approx(2.0)
    assert ridge(0.5).log_penalty.exp().item() == pytest.approx(0.5)
