"""Small things that tests share: learners, episodes, configs."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.config import RunConfig, parse
from pipeline.episode import Batch, Episode
from pipeline.learners.estimators import first_order, unrolled
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.initials import Learned
from pipeline.learners.learner import Learner
from pipeline.learners.metric import PrototypeLearner
from pipeline.learners.rules import Sgd
from pipeline.models.conv4 import Conv4
from pipeline.models.network import Network
from pipeline.tasks.classification import Classification

WAYS = 3


def network(downsample: str = "stride", *, prototype: bool = False) -> Network:
    """A conv4 with norm, in float64, for (1, 16, 16) images."""
    features = "mean" if downsample == "stride" else "flatten"
    encoder = Conv4(channels=1, width=6, size=16, downsample=downsample, features=features)
    head = torch.nn.Identity() if prototype else Classification().head(encoder.features, WAYS)
    return Network(encoder, head).double()


def gradient_learner(
    adapts: str = ".*", *, estimate=unrolled, steps: int = 2, downsample: str = "stride", lr: float = 0.1
) -> GradientLearner:
    """MAML and its kin on conv4 with norm."""
    model = network(downsample)
    return GradientLearner(
        model,
        Classification(),
        initial=Learned(model, adapts),
        rule=Sgd(lr),
        estimate=estimate,
        steps=steps,
        test_steps=steps + 1,
    )


LEARNERS = {
    "maml": lambda: gradient_learner(),
    "maml-max-pool": lambda: gradient_learner(downsample="max_pool"),
    "fomaml": lambda: gradient_learner(estimate=first_order),
    "anil": lambda: gradient_learner(r"head\..*"),
    "boil": lambda: gradient_learner(r"encoder\..*"),
    "prototypes": lambda: PrototypeLearner(network(prototype=True), Classification()).double(),
}


def make(name: str) -> Learner:
    """The learner of this name, with the same initial values each time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return LEARNERS[name]()


def episode(number: int, *, shots: int = 2, queries: int = 3) -> Episode:
    """Noise with a class-dependent mean: learnable, so that accuracies differ from chance."""
    generator = torch.Generator().manual_seed(number)
    labels = torch.arange(WAYS)

    def batch(each: int) -> Batch:
        targets = labels.repeat_interleave(each)
        noise = torch.rand(len(targets), 1, 16, 16, generator=generator, dtype=torch.float64)
        ramp = torch.linspace(0, 1, 16, dtype=torch.float64)
        return Batch(noise + targets[:, None, None, None] * ramp, targets)

    return Episode(batch(shots), batch(queries), WAYS)


def gradient(learner: torch.nn.Module) -> torch.Tensor:
    """All gradients in one vector."""
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖"""
    return ((a - b).norm() / b.norm()).item()


def small_config(root: Path, runs: Path, **sections) -> RunConfig:
    """A run of a few meta-steps on the packed glyphs; `sections` replace keys inside the sections of that name."""
    tree = {
        "name": "small",
        "runs": str(runs),
        "data": {"root": str(root), "ways": 3, "shots": 1, "queries": 2},
        "model": {"kind": "conv4", "width": 6, "downsample": "stride", "features": "mean"},
        "learner": {"kind": "gradient", "rule": {"kind": "sgd", "lr": 0.1}, "steps": 1},
        "meta": {"steps": 6, "batch": 4},
        "validation": {"every": 3, "episodes": 4},
        "evaluate": {"episodes": 4},
        "checkpoint": {"every": 2},
        "engine": {"mode": "loop"},
        "workers": {"threads": 1},
    }
    for name, values in sections.items():
        is_part = isinstance(values, dict) and "kind" not in values
        tree[name] = {**tree.get(name, {}), **values} if is_part else values
    return parse(tree, "test")
