"""What the tests of the loop run on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist
from small import episode, gradient, make, ragged

from pipeline import ranks
from pipeline.data.loader import Share
from pipeline.data.sampler import assign
from pipeline.engine import Engine, Plan
from pipeline.episode import Episode
from pipeline.judging import Score
from pipeline.loop import Budget, Hooks, Progress, meta_step, meta_train, wrap
from pipeline.notices import Notices

BATCH = 5


class Feed:
    """Episodes of noise; those in `broken` (step, number) have a NaN in a query image."""

    waited_s = 0.0

    def __init__(self, dtype: torch.dtype, broken: frozenset[tuple[int, int]] = frozenset()):
        self.dtype, self.broken = dtype, broken
        self.numbers = assign([1] * BATCH, ranks.world())[ranks.rank()]

    def share(self, step: int, *, last: int) -> Share:
        made = []
        for number in self.numbers:
            one = episode(step * BATCH + number).to("cpu", self.dtype)
            if (step, number) in self.broken:
                one.query.inputs[0, 0, 0, 0] = float("nan")
            made.append(one)
        return Share(self.numbers, made)


def ragged_share(dtype: torch.dtype) -> list[Episode]:
    """This rank's episodes of a step in which ways and shots differ, shared out by what they cost."""
    episodes = [ragged(number, 2 + number % 4).to("cpu", dtype) for number in range(BATCH)]
    costs = [len(one.support.inputs) + len(one.query.inputs) for one in episodes]
    return [episodes[number] for number in assign(costs, ranks.world())[ranks.rank()]]


def one_gradient(name: str, dtype: torch.dtype, plan: Plan, *, is_ragged: bool) -> list[float]:
    """The reduced meta-gradient of the first step."""
    learner = make(name).to(dtype)
    engine = Engine(learner, plan)
    module = wrap(engine)
    episodes = ragged_share(dtype) if is_ragged else Feed(dtype).share(0, last=1).episodes
    meta_step(module, engine, episodes, scale=ranks.world() / BATCH)
    return gradient(learner).tolist()


GRADIENTS = (
    ("maml", Plan("loop", 1), False),
    ("maml-max-pool", Plan("vmap", 2), False),
    ("prototypes", Plan("loop", 1), False),
    ("prototypes", Plan("vmap", 2), True),
    ("protomaml", Plan("loop", 1), True),
)
"""Learner, plan, and whether episodes are ragged."""


def gradients() -> dict[tuple[str, torch.dtype, bool], list[float]]:
    """The reduced meta-gradients of all cases: starting ranks takes seconds, so they do them all at once."""
    return {
        (name, dtype, is_ragged): one_gradient(name, dtype, plan, is_ragged=is_ragged)
        for name, plan, is_ragged in GRADIENTS
        for dtype in (torch.float32, torch.float64)
    }


def left_alone() -> str:
    """What a rank says whose group is ended under it."""
    assert ranks.gather([1.0], torch.device("cpu")).shape == (2, 1)
    dist.destroy_process_group()
    try:
        return str(ranks.gather([1.0], torch.device("cpu")))
    except ranks.GroupEnded as error:
        return str(error)


def long_losses() -> dict[str, list[float]]:
    """Losses of twenty meta-steps in float64."""
    return {name: some_steps(name, 20, Plan("loop", 1))["losses"] for name in ("maml", "prototypes")}


def gradients_and_losses() -> tuple[dict[tuple[str, torch.dtype, bool], list[float]], dict[str, object]]:
    """Both of the above, for the price of starting the ranks once."""
    return gradients(), long_losses()


def some_steps(
    name: str,
    steps: int,
    plan: Plan,
    broken: frozenset[tuple[int, int]] = frozenset(),
    stop_on: int = -1,
    leaving: tuple[str, ...] = (),
) -> dict[str, object]:
    """Losses, final values, progress and saved steps of a short run.

    Rank `stop_on` asks to stop in its third step; of `leaving` a node is known to be taken away at every other step.
    """
    learner = make(name)
    losses: list[float] = []
    asked: list[int] = []

    def stop_asked() -> bool:
        asked.append(1)
        return ranks.rank() == stop_on and len(asked) == 3

    saved: list[int] = []
    named: list[str] = []

    def known() -> frozenset[str]:
        named.append("")
        return frozenset(leaving[: len(named) // 2])

    hooks = Hooks(
        place=lambda e: e,
        rate=lambda step: 1e-2,
        validate=lambda: Score(0.0, 0.0, 2),
        record=lambda step, values: (
            losses.append(values.get("train/loss", float("nan"))) if "train/loss" in values else None
        ),
        save=lambda progress: saved.append(progress.step),
        stop_asked=stop_asked,
        notices=Notices(known, every_s=0),
    )
    budget = Budget(
        steps=steps, batch=BATCH, clip=10.0, skip_limit=3, validate_every=100, patience=0, checkpoint_every=100
    )
    progress = meta_train(
        Engine(learner, plan),
        torch.optim.Adam(learner.parameters()),
        Feed(torch.float64, broken),
        budget=budget,
        hooks=hooks,
        progress=Progress(),
        device=torch.device("cpu"),
    )
    values = torch.cat([value.flatten() for value in learner.state_dict().values()]).tolist()
    return {"losses": losses, "values": values, "progress": progress, "saved": saved}
