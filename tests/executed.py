"""Episodes executed by a plan."""

import torch
from small import gradient

from pipeline.engine import Engine, Plan, chunks

LOOP = Plan("loop", 1)


def run(learner: torch.nn.Module, plan: Plan, episodes) -> tuple[float, torch.Tensor, list[dict]]:
    """The summed loss, the gradient and the norm statistics of every part."""
    engine, loss, statistics = Engine(learner, plan), 0.0, []
    for part in chunks(episodes, plan):
        outcome = engine(part)
        outcome.loss.backward()
        loss += outcome.loss.item()
        statistics.append(outcome.statistics)
    flat = gradient(learner)
    learner.zero_grad()
    return loss, flat, statistics
