"""Law 2 in one process: loop = vmap = chunked in any order, for all learners, on conv4 with norm."""

import shutil
import threading

import pytest
import torch
from laws import LOOP, run
from small import LEARNERS, episode, gradient, make, relative

from pipeline.engine import Engine, Plan, candidates, chunks, measure
from pipeline.episode import Batch

IN_FLOAT32 = {"maml", "maml-max-pool", "maml-vit", "imaml", "meta-lstm", "prototypes", "svm", "cnaps"}
"""One learner of every kind of mathematics that loses digits in a way of its own."""


def assert_agreement(
    learner: torch.nn.Module, plans: list[Plan], dtype: torch.dtype, bound: float, *, count: int
) -> None:
    """Assert that all plans give the loss and the gradient of a loop over the same episodes in the other order."""
    learner.to(dtype)
    episodes = [episode(n).to("cpu", dtype) for n in range(count)]
    loss, expected, _ = run(learner, LOOP, episodes)
    for plan in plans:
        value, found, _ = run(learner, plan, episodes[::-1])
        assert value == pytest.approx(loss, rel=bound)
        assert relative(found, expected) < bound, plan


def test_chunks_under_vmap_and_side_by_side_give_the_meta_gradient_of_a_loop(learner):
    """Three episodes: in chunks of two; on two threads; on two threads of a chunk each."""
    plans = [Plan("vmap", 2), Plan("loop", 1, abreast=2), Plan("vmap", 2, abreast=2)]
    assert_agreement(learner, plans, torch.float64, 1e-10, count=3)


def test_what_is_computed_side_by_side_does_not_depend_on_which_thread_is_faster():
    learner, episodes = make("maml").float(), [episode(n).to("cpu", torch.float32) for n in range(5)]
    found = {run(learner, Plan("loop", 1, abreast=3), episodes)[1].numpy().tobytes() for _ in range(5)}
    assert len(found) == 1


def test_threads_side_by_side_follow_the_learner():
    """Values set for a meta-step, in place or as attributes, and tensors that are replaced."""
    learner, episodes = make("maml++"), [episode(n) for n in range(3)]
    plans = [LOOP, Plan("loop", 1, abreast=2)]
    engines = [Engine(learner, plan) for plan in plans]
    for step in (0, 1, 10_000):
        learner.begin(step)
        found = []
        for engine in engines:
            for part in chunks(episodes, engine.plan):
                engine(part).loss.backward()
            found.append(gradient(learner))
            learner.zero_grad()
        assert relative(*found) < 1e-10
        if step:
            name, buffer = next((n, b) for n, b in learner.named_buffers() if b.is_floating_point())
            at = learner.get_submodule(name.rpartition(".")[0])
            setattr(at, name.rpartition(".")[2], 2 * buffer)


@pytest.mark.parametrize(
    "name", [name if name in IN_FLOAT32 else pytest.param(name, marks=pytest.mark.slow) for name in LEARNERS]
)
def test_every_plan_gives_the_same_meta_gradient_in_float32(name):
    """The slow lane asks all learners."""
    plans = [Plan("loop", 3), Plan("vmap", 2), Plan("vmap", 5), Plan("loop", 1, abreast=2)]
    assert_agreement(make(name), plans, torch.float32, 1e-5, count=5)


def test_plain_autograd_gives_what_transforms_give_in_half_precision_too(monkeypatch):
    learner, episodes, found = make("maml").float(), [episode(n).to("cpu", torch.float32) for n in range(3)], []
    for transforms in (False, True):
        monkeypatch.setattr(type(learner), "transforms", transforms)
        Engine(learner, LOOP, torch.bfloat16)(episodes).loss.backward()
        found.append(gradient(learner))
        learner.zero_grad()
    assert relative(*found) < 0.05 and found[0].dtype == torch.float32


def test_episodes_of_different_shape_share_a_step():
    learner = make("maml")
    episodes = [episode(n, shots=1 + n % 2, queries=2 + n % 3) for n in range(6)]
    loss, expected, _ = run(learner, Plan("loop", 1), episodes)
    value, found, _ = run(learner, Plan("vmap", 4), episodes)
    assert value == pytest.approx(loss, rel=1e-10) and relative(found, expected) < 1e-10
    assert sum(len(part) for part in chunks(episodes, Plan("vmap", 4))) == 6


def test_norm_statistics_are_summed_alike_by_every_plan():
    learner = make("prototypes")
    episodes = [episode(n) for n in range(4)]
    sums = []
    for plan in (Plan("loop", 1), Plan("vmap", 4)):
        _, _, parts = run(learner, plan, episodes)
        sums.append({name: sum(part[name][1] for part in parts) for name in parts[0]})
    assert all(torch.allclose(sums[0][name], sums[1][name], rtol=1e-10) for name in sums[0])


def test_no_episodes_give_a_zero_that_reaches_every_parameter(learner):
    outcome = Engine(learner, LOOP)([])
    outcome.loss.backward()
    assert outcome.loss.item() == 0 and all((p.grad == 0).all() for p in learner.parameters() if p.requires_grad)


@pytest.mark.parametrize("count,tried", [(1, {"loop × 1", "vmap × 3"}), (2, {"loop × 1, 2 side by side"})])
def test_measuring_leaves_no_gradient_and_gives_plans_the_fastest_first(threads, count, tried):
    threads(count)
    learner = make("maml")
    trials = measure(learner, [episode(n) for n in range(3)])
    assert {str(trial.plan) for trial in trials} == {f"{plan}, channels last" for plan in tried}
    assert [trial.seconds for trial in trials] == sorted(trial.seconds for trial in trials)
    assert all(p.grad is None for p in learner.parameters())


def test_a_learner_that_cannot_be_copied_for_other_threads_runs_in_a_loop(threads):
    threads(2)
    learner = make("maml")
    learner.handle = threading.Lock()
    best, *others = measure(learner, [episode(n) for n in range(4)])
    assert best.plan == LOOP and {plan.abreast for plan, *_ in others} == {2}
    assert all("pickle" in trial.reason for trial in others)


def test_an_error_of_the_learner_itself_is_raised(threads, monkeypatch):
    threads(2)
    learner = make("maml")
    monkeypatch.setattr(type(learner), "forward", lambda self, one: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure(learner, [episode(n) for n in range(4)])


def test_what_does_not_fit_the_memory_budget_is_not_tried():
    trials = measure(make("maml"), [episode(n) for n in range(3)], memory=1)
    assert {trial.plan for trial in trials} == {LOOP}


def test_compiling_is_tried_for_long_runs_alone():
    asked = {"room": 100, "threads": 1}
    modes = [{plan.mode for plan in candidates(8, **asked, patient=patient)} for patient in (False, True)]
    assert modes == [{"loop", "vmap"}, {"loop", "vmap", "compiled"}]
    assert candidates(16, **asked, patient=False) == [Plan("loop", 1), Plan("vmap", 8)]
    assert {Plan("compiled", 8), Plan("vmap", 16), Plan("loop", 1, "first")} <= set(
        candidates(16, **asked, patient=True)
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_episodes_of_one_image_are_stacked_with_the_channels_first(threads):
    plans = candidates(16, room=100, threads=threads, patient=True, layout="first")
    assert {plan.layout for plan in plans if plan.chunk > 1} == {"first"} and LOOP in plans
    assert len(set(plans)) == len(plans)


def test_only_plans_that_may_stack_one_image_do(monkeypatch):
    stacked = []
    monkeypatch.setattr("pipeline.engine._together", lambda learner, episodes: stacked.append(len(episodes)) or 1 / 0)
    episodes = [one._replace(query=Batch(*(part[:1] for part in one.query))) for one in map(episode, range(2))]
    Engine(make("maml"), Plan("vmap", 2))(episodes)
    assert not stacked
    with pytest.raises(ZeroDivisionError):
        Engine(make("maml"), Plan("vmap", 2, "first"))(episodes)


@pytest.mark.parametrize(
    "count,room,threads,quick",
    [
        (32, 100, 2, [(1, 2), (8, 2)]),
        (32, 100, 64, [(1, 32), (8, 4)]),
        (4, 100, 2, [(1, 2), (2, 2)]),
        (3, 100, 2, [(1, 2)]),
        (32, 5, 8, [(1, 5), (2, 2)]),
        (32, 1, 8, [(1, 1)]),
        (1, 100, 8, [(1, 1)]),
    ],
)
def test_side_by_side_are_as_many_as_threads_episodes_and_memory_allow(count, room, threads, quick):
    """(chunk, abreast) of what a short run tries; a long one tries more, and no more at once than there is room for."""
    plans = candidates(count, room=room, threads=threads, patient=False)
    assert [(plan.chunk, plan.abreast) for plan in plans] == quick
    more = candidates(count, room=room, threads=threads, patient=True)
    assert more[: len(plans)] == plans and len(set(more)) == len(more) and {LOOP, Plan("compiled", 1)} <= set(more)
    assert all(plan.chunk * plan.abreast <= min(count, room) for plan in more)


def test_the_best_plans_of_a_long_run_are_timed_again_before_one_is_chosen(monkeypatch):
    """Nothing is compiled here: a plan that fails is left out with its reason."""
    seen = []

    def time_of(engine, episodes) -> float:
        seen.append(engine.plan)
        if engine.plan.mode == "compiled":
            raise RuntimeError("no compiler\nat all")
        # The first look at vmap falls on a disturbance.
        return 1.0 if engine.plan.mode == "loop" else 1.5 if seen.count(engine.plan) == 1 else 0.5

    monkeypatch.setattr("pipeline.engine._time", time_of)
    trials = measure(make("maml"), [episode(n) for n in range(3)], steps=10_000)
    assert trials[0].plan == Plan("vmap", 3) and trials[0].seconds == 0.5
    assert {trial.reason for trial in trials if trial.plan.mode == "compiled"} == {"RuntimeError: no compiler"}


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name,chunk", [("prototypes", 1), ("maml", 2)])
def test_a_compiled_plan_gives_the_same_meta_gradient(name, chunk):
    """Without a C++ compiler there is no compiled mode, and `measure` leaves it out."""
    if shutil.which("g++") is None:
        with pytest.raises(Exception, match="[Cc]ompiler"):
            run(make(name), Plan("compiled", chunk), [episode(n) for n in range(2)])
        return
    learner, episodes = make(name), [episode(n) for n in range(3)]
    loss, expected, _ = run(learner, LOOP, episodes)
    value, found, _ = run(learner, Plan("compiled", chunk), episodes)
    assert value == pytest.approx(loss, rel=1e-10) and relative(found, expected) < 1e-10
