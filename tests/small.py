"""Small things that tests share: learners, episodes, configs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from pipeline.config import parse
from pipeline.episode import Batch, Episode
from pipeline.learners.amortised import FilmLearner, MetaNetLearner
from pipeline.learners.closed_form import LogisticLearner, RidgeLearner, SvmLearner
from pipeline.learners.distil import DistilledLearner
from pipeline.learners.embedding import EmbeddingLearner
from pipeline.learners.estimators import Evolution, EvolvedRule, FirstOrder, Implicit, Reptile, Unrolled, Warp
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.initials import Context, Fresh, Learned, Prototypes
from pipeline.learners.learned_rules import Curvature, MetaLstm, Mlp, Procedure
from pipeline.learners.learner import Learner
from pipeline.learners.leo import LeoLearner, Terms
from pipeline.learners.metric import (
    ContextualMatchingLearner,
    CosineLearner,
    MatchingLearner,
    PrototypeLearner,
    RelationLearner,
)
from pipeline.learners.rules import PerElement, PerStep, Rule, Sgd
from pipeline.learners.supervised import SupervisedLearner
from pipeline.learners.wccn import WccnLearner
from pipeline.models.conv4 import Conv4
from pipeline.models.drop import DropBlock
from pipeline.models.full_context import FullContext
from pipeline.models.heads import CosineLinear
from pipeline.models.late_fusion import LateFusion
from pipeline.models.lora import freeze_all_but_factors
from pipeline.models.network import Network
from pipeline.models.norm import Normalise, Recorded, Running, by_batch
from pipeline.models.relation import Relation
from pipeline.models.rnn import Rnn
from pipeline.models.vit import Vit
from pipeline.schema.run import RunConfig
from pipeline.tasks.classification import Classification
from pipeline.tasks.distilled import Distilled
from pipeline.tasks.task import Task

WAYS = 3
UNWARPED = r"(?!encoder\.warps).*"


def conv4(downsample: str = "stride", **options) -> Conv4:
    """A conv4 with norm for (1, 16, 16) images."""
    features = "mean" if downsample == "stride" else "flatten"
    return Conv4(channels=1, width=6, size=16, downsample=downsample, features=features, **options)


def vit(*, steps: int = 0, rank: int = 0, frozen: bool = False) -> Vit:
    """A transformer of two blocks for (1, 16, 16) images; its low-rank factors are no longer zero."""
    options = {"depth": 2, "heads": 2, "hidden": 12, "registers": 1, "rank": rank, "alpha": 2.0}
    made = Vit(channels=1, size=16, patch=8, width=8, **options)
    with torch.no_grad():
        for value in made.parameters():
            # Where all weights are small, so are tokens, and layer norm is too steep for a few steps at a common rate.
            value.add_(0.5 * torch.randn(value.shape))
    if frozen:
        freeze_all_but_factors(made)
    return made


def rnn(*, steps: int = 0) -> Rnn:
    """Units in both directions for (1, 16, 16) images."""
    return Rnn(inputs=16, width=4, layers=1, bidirectional=True)


class Dropping(torch.nn.Module):
    """A conv4 that is shown images with holes, so that its noise must come with the episode."""

    def __init__(self, **options):
        super().__init__()
        self.drop, self.inner = DropBlock("images", drop=0.3, block=4), conv4(**options)
        self.features = self.inner.features

    def forward(self, images: torch.Tensor, normalise: Normalise = by_batch) -> torch.Tensor:
        return self.inner(self.drop(images, normalise), normalise)


class TwoEyed(torch.nn.Module):
    """A conv4 for images and one for their mirror images, which darker samples lack."""

    def __init__(self, **options):
        super().__init__()
        left, right = conv4(**options), conv4(**options)
        self.features = left.features + right.features
        encoders = {"left": left, "right": right}
        self.inner = LateFusion(encoders, [1, 1], features=self.features, told=frozenset({"right"}))

    def forward(self, images: torch.Tensor, normalise: Normalise = by_batch) -> torch.Tensor:
        there = (images.mean((1, 2, 3), keepdim=True) > 0.75).to(images).expand(images.shape)
        return self.inner(torch.cat([images, there * images.flip(-1), there], 1), normalise)


def network(
    *, encoder: Callable[..., torch.nn.Module] = conv4, prototype: bool = False, cosine: bool = False, **options
) -> Network:
    """An encoder in float64, with a linear head, a cosine head or none."""
    made = encoder(**options)
    if prototype:
        return Network(made, torch.nn.Identity()).double()
    head = CosineLinear(made.features, WAYS, scale=2.0) if cosine else Classification().head(made.features, WAYS)
    return Network(made, head).double()


def kept_statistics(model: Network) -> Running:
    """Norm statistics as a run leaves them behind: those of one episode."""
    recorded, running = Recorded(), Running(model, momentum=1.0).double()
    model(episode(0).query.inputs, recorded)
    running.absorb(recorded.statistics)
    return running


def gradient_learner(
    adapts: str = ".*",
    *,
    estimate=None,
    initial=Learned,
    rule: Callable[[dict], Rule] = lambda fast: Sgd(0.1),
    steps: int = 2,
    support_weight: float = 0.0,
    kept: bool = False,
    task: Task | None = None,
    **options,
) -> GradientLearner:
    """MAML and its kin on conv4 with norm or another encoder; `kept`: norm statistics of the start; `options`: of the model."""
    model = network(**{"steps": steps, **options})
    start = initial(model) if initial is Context else initial(model, adapts)
    return GradientLearner(
        model,
        task or Classification(),
        initial=start,
        rule=rule({name: value for name, value in model.named_parameters() if name in start.names}).double(),
        estimate=estimate or Unrolled(steps),
        steps=steps,
        test_steps=steps + 1,
        support_weight=support_weight,
        running=kept_statistics(model) if kept else None,
    )


def evolved() -> GradientLearner:
    """ES-MAML with three antithetic pairs."""
    learner = gradient_learner()
    learner.estimate = Evolution(dict(learner.named_parameters()), sigma=1e-3, pairs=3, seed=0)
    return learner


def procedure(fast: dict) -> Procedure:
    """At most two steps, of rate 0.1 at first."""
    return Procedure(0.1, 2, momentum=0.2, normalised=0.1)


def evolved_rule() -> GradientLearner:
    """A procedure found by evolution strategies; the weights are MAML's."""
    learner = gradient_learner(rule=procedure)
    searched = {f"rule.{name}": value for name, value in learner.rule.named_parameters()}
    learner.estimate = EvolvedRule(Unrolled(2), Evolution(searched, sigma=0.01, pairs=3, seed=0).double())
    return learner


def sparing(learner: EmbeddingLearner, backward: int = 1) -> EmbeddingLearner:
    """With gradients through so many support samples of each class."""
    learner.spare(backward)
    return learner


def relation(**options) -> RelationLearner:
    """A relation network on maps of 4 × 4 pixels."""
    encoder = Conv4(channels=1, width=6, size=16, downsample="max_pool", features="map")
    comparison = Relation(width=6, side=encoder.side)
    return RelationLearner(Network(encoder, torch.nn.Identity()), Classification(), comparison, **options).double()


def maml_pp() -> GradientLearner:
    """MAML++: rates and norm parameters per step, the multi-step loss half faded."""
    learner = gradient_learner(
        estimate=Unrolled(2, multi_step=10),
        rule=lambda fast: PerStep(0.1, fast, 2),
        norm="batch_per_step",
    )
    learner.begin(5)
    return learner


def stirred(learner: Learner, by: float, *parts: torch.nn.Module) -> Learner:
    """With parts that start at zero somewhere else, as after some training."""
    with torch.no_grad():
        for value in torch.nn.ModuleList(parts).parameters():
            value.add_(by * torch.randn_like(value))
    return learner


def film(**options) -> FilmLearner:
    """CNAPs."""
    model = network(prototype=True, **options)
    set_encoder = Conv4(channels=1, width=5, size=16, downsample="stride", features="mean", norm="group")
    learner = FilmLearner(model, Classification(), set_encoder, context=5, features=6, hidden=7).double()
    stirred(learner, 0.2, learner.films)
    return learner


def metanet() -> Learner:
    """Meta networks with a representation of five units."""
    sizes = {"features": 6, "ways": WAYS, "representation": 5, "hidden": 7}
    learner = MetaNetLearner(network(prototype=True), Classification(), **sizes).double()
    return stirred(learner, 0.02, learner.write_representation, learner.write_head)


def leo(*, penalty: float = 0.0, is_frozen: bool = False) -> LeoLearner:
    """LEO with codes of four numbers; without a penalty its gradient is that of its value."""
    sizes = {"features": 6, "latent": 4, "steps": 2, "tuning_steps": 2, "lr": 0.5, "tuning_lr": 0.1}
    terms = Terms(divergence=0.1, penalty=penalty, orthogonality=0.2)
    model = network(prototype=True)
    return LeoLearner(model, Classification(), **sizes, terms=terms, is_frozen=is_frozen).double()


def supervised(*, cosine: bool = False) -> SupervisedLearner:
    """A classifier of the three classes that `episode` has."""
    head = network(cosine=cosine).head
    return SupervisedLearner(network(prototype=True), Classification(), head).double()


def rfs() -> LogisticLearner:
    """Logistic regression on features of length one."""
    return LogisticLearner(
        network(prototype=True), Classification(), penalty=0.5, scale=2.0, steps=5, unit=True
    ).double()


def distilled(*, weight: float = 0.5) -> DistilledLearner:
    """MAML that listens to prototypes on a wider network."""
    task = Distilled(Classification(), weight=weight, temperature=3.0)
    encoder = Conv4(channels=1, width=8, size=16, downsample="stride", features="mean")
    teacher = PrototypeLearner(Network(encoder, torch.nn.Identity()), Classification())
    return DistilledLearner(gradient_learner(task=task), teacher).double()


LEARNERS = {
    "maml": lambda: gradient_learner(),
    "maml-max-pool": lambda: gradient_learner(downsample="max_pool"),
    "maml-recomputed": lambda: gradient_learner(estimate=Unrolled(2, recompute=True)),
    "maml-regularised": lambda: gradient_learner(support_weight=0.5),
    # One group, not several: of three channels on a map of one pixel, float32 would keep three digits of a gradient.
    "maml-layer-norm": lambda: gradient_learner(norm="layer"),
    "fomaml": lambda: gradient_learner(estimate=FirstOrder()),
    "reptile": lambda: gradient_learner(estimate=Reptile()),
    "imaml": lambda: gradient_learner(estimate=Implicit(300.0, "cg", 5, 1.0), rule=lambda fast: Sgd(0.003)),
    "imaml-neumann": lambda: gradient_learner(
        estimate=Implicit(300.0, "neumann", 5, 1.0), rule=lambda fast: Sgd(0.003)
    ),
    "es-maml": evolved,
    "anil": lambda: gradient_learner(r"head\..*"),
    "boil": lambda: gradient_learner(r"encoder\..*"),
    "bitfit": lambda: gradient_learner(r".*\.bias"),
    "film": lambda: gradient_learner(r"encoder\.norms\..*"),
    "protomaml": lambda: gradient_learner(initial=Prototypes, rule=lambda fast: Sgd(0.01)),
    "cavia": lambda: gradient_learner(initial=Context, context=4),
    "meta-sgd": lambda: gradient_learner(rule=lambda fast: PerElement(0.1, fast)),
    "meta-curvature": lambda: gradient_learner(rule=lambda fast: Curvature(0.1, fast)),
    "meta-lstm": lambda: gradient_learner(rule=lambda fast: MetaLstm(0.1, 3)),
    "mlp-optimizer": lambda: gradient_learner(rule=lambda fast: Mlp(0.1, 4)),
    "procedure": lambda: gradient_learner(rule=procedure),
    "evolved-rule": evolved_rule,
    "maml++": maml_pp,
    "warpgrad": lambda: gradient_learner(UNWARPED, estimate=Warp(Unrolled(2)), warp=True),
    "maml-dropping": lambda: gradient_learner(encoder=Dropping),
    "maml-two-eyed": lambda: gradient_learner(r"encoder\.inner\.right\..*|head\..*", encoder=TwoEyed),
    "maml-vit": lambda: gradient_learner(encoder=vit),
    "maml-lora": lambda: gradient_learner(r".*lora_[ab]", encoder=partial(vit, rank=2)),
    "maml-lora-frozen": lambda: gradient_learner(r".*lora_[ab]", encoder=partial(vit, rank=2, frozen=True)),
    "prototypes": lambda: PrototypeLearner(network(prototype=True), Classification()).double(),
    "prototypes-dropping": lambda: PrototypeLearner(
        network(encoder=Dropping, prototype=True), Classification()
    ).double(),
    "prototypes-two-eyed": lambda: PrototypeLearner(
        network(encoder=TwoEyed, prototype=True), Classification()
    ).double(),
    "prototypes-sparing": lambda: sparing(
        PrototypeLearner(network(prototype=True, norm="group"), Classification()).double()
    ),
    "prototypes-rnn": lambda: PrototypeLearner(network(encoder=rnn, prototype=True), Classification()).double(),
    "matching": lambda: MatchingLearner(network(prototype=True), Classification()).double(),
    "matching-full": lambda: ContextualMatchingLearner(
        network(prototype=True), Classification(), FullContext(6, steps=3)
    ).double(),
    "cosine": lambda: CosineLearner(network(prototype=True), Classification(), scale=5.0, offset=-1.0).double(),
    "wccn": lambda: WccnLearner(network(prototype=True), Classification(), features=6, scale=5.0, shrink=0.3).double(),
    "relation": relation,
    "relation-task-loss": lambda: relation(loss="task"),
    "ridge": lambda: RidgeLearner(network(prototype=True), Classification(), penalty=0.5, scale=3.0).double(),
    "logistic": lambda: LogisticLearner(
        network(prototype=True), Classification(), penalty=0.5, scale=2.0, steps=5
    ).double(),
    "supervised": supervised,
    "supervised-cosine": lambda: supervised(cosine=True),
    "fine-tuned": lambda: gradient_learner(initial=Fresh),
    "fine-tuned-kept": lambda: gradient_learner(r"head\..*", initial=Fresh, kept=True),
    "baseline++": lambda: gradient_learner(r"head\.weight", initial=Fresh, cosine=True, kept=True),
    "rfs": rfs,
    "distilled": distilled,
    "svm": lambda: SvmLearner(network(prototype=True), Classification(), cost=0.5, scale=3.0).double(),
    "cnaps": film,
    "metanet": metanet,
    "leo": leo,
}

ORDERED = {"matching-full"}
"""Embedding learners that read the support as a sequence."""

OWN_HEAD = {"metanet"}
"""Embedding learners with a classifier of their own, of a fixed number of ways."""


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

    return Episode(batch(shots), batch(queries), WAYS, torch.tensor(number))


def ragged(number: int, ways: int = WAYS) -> Episode:
    """As `episode`; class c has 1 + (c + number) mod 3 support samples, and all have two queries."""
    generator = torch.Generator().manual_seed(number)

    def batch(counts: list[int]) -> Batch:
        targets = torch.arange(ways).repeat_interleave(torch.tensor(counts))
        noise = torch.rand(len(targets), 1, 16, 16, generator=generator, dtype=torch.float64)
        return Batch(noise + targets[:, None, None, None] * torch.linspace(0, 1, 16, dtype=torch.float64), targets)

    support = batch([1 + (label + number) % 3 for label in range(ways)])
    return Episode(support, batch([2] * ways), ways, torch.tensor(number))


def gradient(learner: torch.nn.Module) -> torch.Tensor:
    """All gradients in one vector."""
    return torch.cat([p.grad.flatten() for p in learner.parameters() if p.requires_grad])


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
