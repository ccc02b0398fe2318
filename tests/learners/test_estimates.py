"""Every estimate and rule against its defining equation, on problems that can be solved by hand."""

import math

import numpy as np
import pytest
import torch
from small import UNWARPED, episode, evolved_rule, gradient, gradient_learner, make, relative
from torch.func import functional_call

from pipeline.episode import Outcome
from pipeline.errors import InputError
from pipeline.learners.estimators import Evolution, EvolvedRule, FirstOrder, Implicit, Reptile, Unrolled, Warp
from pipeline.learners.initials import Fresh, Learned, Prototypes
from pipeline.learners.learned_rules import Procedure
from pipeline.learners.learner import Mode
from pipeline.learners.rules import PerElement, PerStep, Rule, Sgd
from pipeline.learners.unroll import InnerProblem, trajectory

A, B, C, RATE = 3.0, 2.0, 0.5, 0.1
THETA, OMEGA = 1.5, 0.7


def problem(rule=None, steps: int = 1) -> InnerProblem:
    """Support loss A/2 (φ − ω)², query loss B/2 (φ − C)²; θ is where φ starts, ω does not adapt."""
    rule = rule or Sgd(RATE)
    meta = {name: torch.tensor(value, dtype=torch.float64) for name, value in (("theta", THETA), ("omega", OMEGA))}
    rule.double()
    meta = {name: value.requires_grad_() for name, value in meta.items()}
    meta.update({f"rule.{name}": value for name, value in rule.named_parameters()})

    def own(meta):
        return {name.removeprefix("rule."): value for name, value in meta.items() if name.startswith("rule.")}

    return InnerProblem(
        meta,
        start=lambda meta: {"phi": meta["theta"]},
        support_loss=lambda meta, fast, step: A / 2 * (fast["phi"] - meta["omega"]) ** 2,
        query=lambda meta, fast, step: Outcome(B / 2 * (fast["phi"] - C) ** 2, {}, {}),
        init=lambda meta, fast: rule.init(fast),
        update=lambda meta, g, fast, loss, state, step: functional_call(
            rule, own(meta), (g, fast, loss, state), {"step": step}
        ),
        steps=steps,
    )


def slopes(estimate, one: InnerProblem) -> dict[str, float]:
    estimate(one).loss.backward()
    return {name: value.grad.tolist() if value.grad is not None else None for name, value in one.meta.items()}


def adapted(steps: int) -> float:
    """φ after so many steps: the distance to ω shrinks by 1 − RATE · A each time."""
    return OMEGA + (1 - RATE * A) ** steps * (THETA - OMEGA)


@pytest.mark.parametrize("steps", [1, 4, 17, 18])
@pytest.mark.parametrize("recompute", [False, True])
def test_maml(steps, recompute):
    """dφ/dθ = (1 − rA)ⁿ and dφ/dω = 1 − (1 − rA)ⁿ."""
    found = slopes(Unrolled(steps, recompute=recompute), problem(steps=steps))
    shrink, error = (1 - RATE * A) ** steps, B * (adapted(steps) - C)
    assert found["theta"] == pytest.approx(shrink * error, rel=1e-12)
    assert found["omega"] == pytest.approx((1 - shrink) * error, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 4])
def test_fomaml(steps):
    """dφ/dθ is taken for 1."""
    found = slopes(FirstOrder(), problem(steps=steps))
    assert found["theta"] == pytest.approx(B * (adapted(steps) - C), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 4])
def test_reptile(steps):
    found = slopes(Reptile(), problem(steps=steps))
    assert found["theta"] == pytest.approx(THETA - adapted(steps), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("initial", [Unrolled, FirstOrder, Reptile])
def test_warpgrad(steps, initial):
    """dφₖ₊₁/dω = rA at every point by itself; the start has the gradient of its own estimate."""
    of_start = initial(steps) if initial is Unrolled else initial()
    found, alone = (slopes(estimate, problem(steps=steps)) for estimate in (Warp(of_start), of_start))
    each = [RATE * A * B * (adapted(step) - C) for step in range(1, steps + 1)]
    assert found["omega"] == pytest.approx(sum(each) / steps, rel=1e-12)
    assert found["theta"] == pytest.approx(alone["theta"], rel=1e-12)
    assert Warp(of_start)(problem(steps=steps)).loss == of_start(problem(steps=steps)).loss


def test_warpgrad_is_the_slope_of_single_steps_from_points_that_stand_still():
    """On conv4, by central differences over all warps in a random direction; the start as in MAML with warps that are given."""
    learner, one = make("warpgrad"), episode(1)
    learner.outcome(one).loss.backward()
    plain = gradient_learner(UNWARPED, warp=True)
    plain.load_state_dict(learner.state_dict())
    plain.outcome(one).loss.backward()
    theirs = dict(plain.model.named_parameters())
    for name in learner.initial.names:
        assert torch.allclose(learner.model.get_parameter(name).grad, theirs[name].grad, rtol=1e-9, atol=1e-12)
    warps = list(learner.model.encoder.warps.parameters())
    points = list(trajectory(learner._problem(one, learner.steps), second_order=False))[:-1]
    points = [{name: value.detach() for name, value in point.items()} for point in points]

    def objective() -> float:
        losses = []
        for point in points:
            fast = {name: value.requires_grad_() for name, value in point.items()}
            loss = learner.task.loss(functional_call(learner.model, fast, (one.support.inputs,)), one.support.targets)
            slopes = torch.autograd.grad(loss, list(fast.values()))
            after = {name: value - 0.1 * slope for (name, value), slope in zip(fast.items(), slopes, strict=True)}
            predictions = functional_call(learner.model, after, (one.query.inputs,))
            losses.append(learner.task.loss(predictions, one.query.targets).item())
        return sum(losses) / len(losses)

    directions = [torch.randn_like(warp) for warp in warps]
    slope = sum((warp.grad * way).sum().item() for warp, way in zip(warps, directions, strict=True))
    values, eps = [], 1e-6
    for sign in (1, -2):
        with torch.no_grad():
            for warp, way in zip(warps, directions, strict=True):
                warp.add_(sign * eps * way)
        values.append(objective())
    assert (values[0] - values[1]) / (2 * eps) == pytest.approx(slope, rel=2e-6)


@pytest.mark.parametrize("solver,iterations", [("cg", 3), ("neumann", 60)])
def test_imaml(solver, iterations):
    """At the inner optimum φ = (Aω + λθ) / (A + λ) the derivatives are λ / (A + λ) and A / (A + λ)."""
    damping = 5.0
    optimum = (A * OMEGA + damping * THETA) / (A + damping)
    found = slopes(Implicit(damping, solver, iterations, 1.0), problem(steps=300))
    assert found["theta"] == pytest.approx(damping / (A + damping) * B * (optimum - C), rel=1e-9)
    assert found["omega"] == pytest.approx(A / (A + damping) * B * (optimum - C), rel=1e-9)


def test_imaml_marks_an_episode_whose_system_it_cannot_solve():
    """The Neumann series diverges where the curvature exceeds the damping."""
    outcome = Implicit(0.5, "neumann", 20, 1.0)(problem(steps=5))
    assert torch.isnan(outcome.loss) and outcome.metrics["residual"] > 1


def test_meta_sgd():
    """φ = θ − r A (θ − ω): dL/dr = −A (θ − ω) dL/dφ."""
    found = slopes(Unrolled(1), problem(PerElement(RATE, {"phi": torch.tensor(0.0)})))
    error = B * (adapted(1) - C)
    assert found["theta"] == pytest.approx((1 - RATE * A) * error, rel=1e-6)
    assert found["rule.rates.phi"] == pytest.approx(-A * (THETA - OMEGA) * error, rel=1e-6)


def test_per_step_rates_of_maml_pp():
    """Two steps: dφ/dr₁ = −A (1 − r₂A)(θ − ω), dφ/dr₂ = −A (1 − r₁A)(θ − ω)."""
    rule = PerStep(RATE, {"phi": torch.tensor(0.0)}, 2)
    found = slopes(Unrolled(2), problem(rule, steps=2))
    expected = -A * (1 - RATE * A) * (THETA - OMEGA) * B * (adapted(2) - C)
    assert found["rule.rates.phi"] == pytest.approx([expected, expected], rel=1e-6)


def test_steps_beyond_the_learned_ones_use_the_last_rate():
    rule = PerStep(RATE, {"phi": torch.tensor(0.0)}, 2)
    points = [fast["phi"].item() for fast in trajectory(problem(rule, steps=4), second_order=False)]
    assert points == pytest.approx([adapted(n) for n in range(5)], rel=1e-6)


@pytest.mark.parametrize("step,share", [(0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)])
def test_the_multi_step_loss_of_maml_pp(step, share):
    """Every step weighs 1/n at first; all but the last fade out over ten meta-steps. The value is the last query loss."""
    estimate, one = Unrolled(3, multi_step=10), problem(steps=3)
    estimate.begin(step)
    early = (1 - share) / 3
    weights = [early, early, 1 - 2 * early]
    outcome = estimate(one)
    outcome.loss.backward()
    expected = sum(w * (1 - RATE * A) ** n * B * (adapted(n) - C) for n, w in enumerate(weights, 1))
    assert one.meta["theta"].grad.item() == pytest.approx(expected, rel=1e-6)
    assert outcome.loss.item() == pytest.approx(B / 2 * (adapted(3) - C) ** 2, rel=1e-12)


def test_second_derivatives_set_in_at_their_meta_step():
    estimate = Unrolled(2, first_order_until=7)
    found = []
    for step in (6, 7):
        estimate.begin(step)
        found.append(slopes(estimate, problem(steps=2))["theta"])
    assert found[0] == pytest.approx(slopes(FirstOrder(), problem(steps=2))["theta"], rel=1e-12)
    assert found[1] == pytest.approx(slopes(Unrolled(2), problem(steps=2))["theta"], rel=1e-12)


def test_es_with_orthogonal_directions_is_the_exact_gradient():
    """A central difference is exact on a quadratic; d orthogonal directions of length √d, averaged, give the whole gradient."""
    one = problem(steps=3)
    exact = slopes(Unrolled(3), problem(steps=3))
    estimate = Evolution({n: v.detach() for n, v in one.meta.items()}, sigma=0.1, pairs=2, seed=0)
    for number in range(2):
        estimate.get_buffer(f"direction{number}").copy_(2**0.5 * torch.eye(2, dtype=torch.float64)[number][:, None])
    found = slopes(estimate, one)
    assert found["theta"] == pytest.approx(exact["theta"], rel=1e-9)
    assert found["omega"] == pytest.approx(exact["omega"], rel=1e-9)


def test_es_draws_the_same_directions_for_a_meta_step_and_others_for_the_next():
    def drawn(step: int) -> torch.Tensor:
        estimate = Evolution({"theta": torch.zeros(5)}, sigma=0.1, pairs=2, seed=3)
        estimate.begin(step)
        return estimate.get_buffer("direction0")

    assert torch.equal(drawn(4), drawn(4)) and not torch.equal(drawn(4), drawn(5))


def test_es_tends_to_the_exact_gradient_of_a_network():
    """60 pairs on the 21 parameters of the head point where the exact gradient does."""
    exact, approximate = make("anil"), make("anil")
    exact.outcome(episode(1)).loss.backward()
    head = {n: v for n, v in approximate.named_parameters() if "head" in n}
    approximate.estimate = Evolution(head, sigma=1e-3, pairs=60, seed=0).double()
    approximate.begin(0)
    approximate.outcome(episode(1)).loss.backward()
    own, other = (torch.cat([dict(m.named_parameters())[n].grad.flatten() for n in head]) for m in (exact, approximate))
    assert torch.cosine_similarity(own, other, dim=0) > 0.7


def searching(rule: Rule, rest=None, *, sigma: float, pairs: int) -> EvolvedRule:
    searched = {f"rule.{name}": value for name, value in rule.named_parameters()}
    return EvolvedRule(rest or Unrolled(3), Evolution(searched, sigma=sigma, pairs=pairs, seed=0).double())


@pytest.mark.parametrize("rest", [Unrolled(3), Unrolled(3, recompute=True), FirstOrder(), Implicit(5.0, "cg", 3, 1.0)])
def test_what_is_not_the_rule_keeps_the_gradient_of_the_other_estimate(rest):
    one, other = (problem(Procedure(RATE, 3, momentum=0.2, normalised=0.1), steps=3) for _ in range(2))
    expected = slopes(rest, other)
    estimate = searching(Procedure(RATE, 3, momentum=0.2, normalised=0.1), rest, sigma=0.01, pairs=2)
    assert estimate(one).loss.item() == rest(other).loss.item()
    found = slopes(estimate, one)
    assert {name: found[name] for name in ("theta", "omega")} == {name: expected[name] for name in ("theta", "omega")}
    assert all(found[name] for name in found if name.startswith("rule."))


def test_evolving_a_rule_in_every_direction_tends_to_its_exact_gradient():
    """Along the axes, with steps so short that the loss is straight between them."""
    rules = [Procedure(RATE, 3, momentum=0.2, normalised=0.1) for _ in range(2)]
    exact = slopes(Unrolled(3), problem(rules[0], steps=3))
    one, estimate = problem(rules[1], steps=3), searching(rules[1], sigma=1e-5, pairs=4)
    for number in range(4):
        estimate.evolution.get_buffer(f"direction{number}").copy_(2 * torch.eye(4)[:, number, None])
    assert slopes(estimate, one) == pytest.approx(exact, rel=1e-6)


def test_evolving_a_rule_estimates_the_gradient_of_the_smoothed_loss():
    """E[F(x + σε) ε] / σ by Gauss-Hermite quadrature, x = log r / UNIT: 150 pairs are within four standard errors.

    The slope without smoothing is further away.
    """
    rule, sigma, pairs = Procedure(RATE, 1, momentum=1e-9, normalised=1e-9), 0.07, 150
    with torch.no_grad():
        rule.count.fill_(1.0)

    def loss(log_rate):
        phi = THETA - np.exp(rule.UNIT * log_rate) * A * (THETA - OMEGA)
        return B / 2 * (phi - C) ** 2

    at = math.log(RATE) / rule.UNIT
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    smoothed = (weights * loss(at + sigma * nodes) * nodes).sum() / weights.sum() / sigma
    one = problem(rule, steps=1)
    estimate = EvolvedRule(
        Unrolled(1), Evolution({"rule.log_rate": one.meta["rule.log_rate"]}, sigma=sigma, pairs=pairs, seed=0)
    )
    drawn = estimate.evolution.get_buffer("direction0")[:, 0].numpy()
    each = (loss(at + sigma * drawn) - loss(at - sigma * drawn)) * drawn / (2 * sigma)
    found, error = slopes(estimate, one)["rule.log_rate"], each.std() / pairs**0.5
    exact = slopes(Unrolled(1), problem(rule, steps=1))["rule.log_rate"]
    assert found == pytest.approx(each.mean(), rel=1e-5)
    assert abs(found - smoothed) < 4 * error < abs(exact - smoothed)


def member(rule: Rule, number: int) -> InnerProblem:
    """Of a family of quadratics in which support and query have the same minimum."""
    omega = {"omega": torch.tensor(math.sin(7.0 * number), dtype=torch.float64)}
    one = problem(rule, steps=3)
    return one._replace(
        meta={**one.meta, **omega},
        query=lambda meta, fast, step: Outcome(A / 2 * (fast["phi"] - meta["omega"]) ** 2, {}, {}),
    )


@pytest.mark.parametrize("rate", [0.003, 1.0])
def test_evolution_mends_a_bad_rate(rate):
    """Far too small or diverging: the loss of ten other members falls to a fifth, with nothing else learned."""
    rule = Procedure(rate, 3, momentum=0.1, normalised=0.05)
    estimate, optimizer = (
        searching(rule, FirstOrder(), sigma=0.01, pairs=2),
        torch.optim.Adam(rule.parameters(), lr=0.02),
    )

    def judged() -> float:
        return sum(FirstOrder()(member(rule, number)).loss.item() for number in range(100, 110))

    before = judged()
    for step in range(30):
        estimate.begin(step)
        optimizer.zero_grad()
        estimate(member(rule, step)).loss.backward()
        optimizer.step()
    assert judged() < 0.2 * before


def test_a_rule_need_not_be_differentiable_to_evolve():
    """A rate in whole tenths."""

    class Rounded(Rule):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor(0.16))

        def forward(self, gradients, fast, loss, state, *, step):
            return {name: -(self.rate * 10).round() / 10 * g for name, g in gradients.items()}, state

    assert slopes(Unrolled(1), problem(Rounded()))["rule.rate"] == 0
    assert slopes(searching(Rounded(), sigma=0.1, pairs=8), problem(Rounded()))["rule.rate"] < 0


def test_a_searched_rule_draws_anew_for_every_meta_step():
    estimate, drawn = evolved_rule().estimate, []
    for step in (4, 4, 5):
        estimate.begin(step)
        drawn.append(estimate.evolution.get_buffer("direction0").clone())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("steps", [1, 3, 17])
def test_walking_back_gives_the_gradient_of_unrolling(steps):
    """On conv4 with norm, with a learned rule, so that every kind of meta-parameter takes part."""
    found = []
    for recompute in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            learner = gradient_learner(
                estimate=Unrolled(steps, recompute=recompute),
                rule=lambda fast: PerStep(0.1, fast, steps).double(),
                adapts=r"(?!head).*",
                steps=steps,
            )
        learner.outcome(episode(2)).loss.backward()
        found.append(gradient(learner))
    assert relative(found[1], found[0]) < 1e-12


@pytest.mark.parametrize("initial", [Learned, Prototypes, Fresh])
def test_a_head_adapts_on_features_that_are_computed_once(initial):
    """Support and query pass the encoder once (and for prototypes once more), however many steps; the gradient is the same."""
    found, passes = [], []
    for recompute in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            learner = gradient_learner(r"head\..*", estimate=Unrolled(4, recompute=recompute), initial=initial, steps=4)
        count = []
        learner.model.encoder.register_forward_hook(lambda *_, count=count: count.append(1))
        learner.outcome(episode(2)).loss.backward()
        found.append(gradient(learner))
        passes.append(len(count))
    assert relative(found[1], found[0]) < 1e-12
    assert passes[0] == (3 if initial is Prototypes else 2) < passes[1]


def test_protomaml_starts_as_the_prototype_classifier():
    """Before its first step the logits are those of negative squared distances, up to what is the same for all classes."""
    learner, one = gradient_learner(initial=Prototypes), episode(3)
    before, *_ = learner.predictors(one.support, one.ways, mode=Mode.TRANSDUCTIVE)
    embed = learner.model.encoder
    support, query = embed(one.support.inputs), embed(one.query.inputs)
    means = torch.stack([support[one.support.targets == way].mean(0) for way in range(one.ways)])
    difference = before(one.query.inputs) + torch.cdist(query, means) ** 2
    assert torch.allclose(difference, difference[:, :1].expand_as(difference), atol=1e-9)


def test_cavia_adapts_its_context_from_zero_and_nothing_else():
    """φ₀ = 0 in every episode, φ₁ = −r ∇L(φ₀); the network's own weights stay as they are."""
    learner, one = make("cavia"), episode(3)
    with torch.no_grad():
        learner.model.encoder.film.context.fill_(9.0)
    problem = learner._problem(one, 1)
    before, after = trajectory(problem, second_order=False)
    assert before.keys() == {"encoder.film.context"} and (before["encoder.film.context"] == 0).all()
    context = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    loss = problem.support_loss(problem.meta, {"encoder.film.context": context}, 0)
    (slope,) = torch.autograd.grad(loss, context)
    assert torch.allclose(after["encoder.film.context"], -0.1 * slope) and slope.abs().max() > 0


def test_per_step_norms_of_maml_pp_use_the_row_of_their_step():
    learner, one = make("maml++"), episode(3)
    problem = learner._problem(one, 2)
    changed = dict(problem.meta)
    rows = changed["model.encoder.norms.0.weight"].detach().clone()
    rows[1] = 3.0
    changed["model.encoder.norms.0.weight"] = rows
    losses = [[problem.support_loss(meta, {}, step).item() for step in range(3)] for meta in (problem.meta, changed)]
    assert [a == b for a, b in zip(*losses, strict=True)] == [True, False, True]


@pytest.mark.parametrize(
    ("make_it", "said"),
    [
        (
            lambda: gradient_learner(estimate=Reptile(), rule=lambda f: PerElement(0.1, f)),
            "no gradient to the learned rule",
        ),
        (lambda: gradient_learner(estimate=Implicit(1.0, "cg", 5, 1.0), rule=lambda f: PerStep(0.1, f, 2)), "PerStep"),
        (lambda: gradient_learner(r"head\..*", estimate=Reptile()), "encoder.convs.0.weight"),
        (lambda: gradient_learner(initial=Prototypes, estimate=Reptile()), "head.bias"),
    ],
)
def test_a_composition_without_a_gradient_is_refused_with_a_way_out(make_it, said):
    with pytest.raises(InputError, match=r"use learner\.estimate\.kind = unrolled") as caught:
        make_it()
    assert said in str(caught.value)
