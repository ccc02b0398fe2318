"""Whatever a config can express either takes a meta-step or is refused in one sentence that says what to change."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest
import torch
from small import small_config

from pipeline import build, build_outer
from pipeline.config import flatten
from pipeline.data.index import Index
from pipeline.episode import Batch, Episode
from pipeline.errors import InputError
from pipeline.schema.gradient import EstimateConfig, EvolvedRuleConfig, HeadConfig, InitialConfig, RuleConfig
from pipeline.schema.learner import LearnerConfig
from pipeline.schema.model import Conv4Config, ModelConfig
from pipeline.schema.task import LossConfig

TINY = {
    "conv4": {"width": 2, "downsample": "stride", "features": "mean"},
    "resnet12": {"width": 2},
    "vit": {"width": 4, "depth": 1, "heads": 1, "patch": 8, "mlp": 1.0},
    "rnn": {"width": 2},
}
"""timm is an extra that need not be there."""
SETTLED = {"es": {"pairs": 1}, "es_rule": {"pairs": 1}, "implicit": {"damping": 100.0, "tolerance": 1e9}}
"""What makes an estimate cheap, and its episodes finite."""


def kinds(union: Any) -> list[str]:
    """What may stand behind `kind`."""
    members = get_args(get_args(union)[0]) or get_args(union)
    return [member.model_fields["kind"].default for member in members]


def of(kind: str, known: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"kind": kind, **known.get(kind, {}), **more}


def estimates() -> list[dict[str, Any]]:
    """All of them: the ways to unroll, and `es_rule` beside every other one."""
    annealed = [{"recompute": True}, {"multi_step": 5}, {"first_order_until": 5}, {"recompute": True, "multi_step": 5}]
    rests = [of(kind, SETTLED) for kind in kinds(EvolvedRuleConfig.model_fields["rest"].annotation)]
    return [
        *(of(kind, SETTLED) for kind in kinds(EstimateConfig) if kind != "es_rule"),
        *(of("unrolled", SETTLED, **options) for options in annealed),
        *(of("es_rule", SETTLED, rest=rest) for rest in rests),
    ]


def models() -> list[dict[str, Any]]:
    """All kinds that images of any size will do for, with every norm and every kind of features."""
    found = [
        of(kind, TINY) for kind in kinds(ModelConfig) if kind not in ("timm", "features", "unet", "decoder", "renet")
    ]
    norms = get_args(Conv4Config.model_fields["norm"].annotation)
    found += [of(kind, TINY, norm=norm) for kind in ("conv4", "resnet12") for norm in norms]
    found += [of("conv4", TINY, features=features) for features in ("flatten", "map")]
    return [*found, of("vit", TINY, lora=1), of("vit", TINY, freeze=True), of("vit", TINY, lora=1, freeze=True)]


@pytest.fixture(scope="module")
def attempt(glyphs_root, tmp_path_factory):
    """Builds the learner of a config and takes a meta-step with it; why not, if it is refused."""
    index, runs = Index.open(glyphs_root), tmp_path_factory.mktemp("runs")
    images = torch.rand(6, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1])
    one = Episode(Batch(images[:2], labels), Batch(images[2:], labels.repeat(2)), 2)

    def take(**sections: Any) -> str:
        usual = {"data": {"ways": 2}, "meta": {"precision": "float64"}, "model": of("conv4", TINY)}
        config = small_config(glyphs_root, runs, **{**usual, **sections})
        try:
            learner = build.learner(config, index)
        except InputError as error:
            return str(error)
        trained = {name: value for name, value in learner.named_parameters() if value.requires_grad}
        optimizer = build_outer.optimizer(config, trained.values())
        learner.begin(0)
        learner.outcome(one).loss.backward()
        wrong = [name for name, value in trained.items() if value.grad is None or not value.grad.isfinite().all()]
        assert not wrong, f"{sections}: no gradient, or none that is finite, for {wrong}"
        optimizer.step()
        assert all(value.isfinite().all() for value in trained.values()), sections
        return ""

    return take


def names_a_way_out(told: str, sections: dict[str, Any]) -> bool:
    """Whether a refusal is one line, and names a key to change."""
    asked = {section: sections.get(section, {}) for section in ("learner", "model", "task")}
    keys = [*flatten(asked), "learner.kind", "model.kind", "model.features", "model.lora", "start"]
    return "\n" not in told and any(f"{key} " in told for key in keys)


def check(attempt, combinations: list[dict[str, Any]]) -> tuple[int, int]:
    """How many learned and how many were refused."""
    told = [attempt(**sections) for sections in combinations]
    for text, sections in zip(told, combinations, strict=True):
        assert not text or names_a_way_out(text, sections), (text, sections)
    return told.count(""), len(told) - told.count("")


def in_its_lane(estimate: dict[str, Any]) -> Any:
    """Each kind in the default lane as it comes, its variants in the slow one."""
    is_variant = estimate["kind"] == "unrolled" and len(estimate) > 1
    is_variant |= estimate["kind"] == "es_rule" and estimate["rest"]["kind"] != "first_order"
    marks = [pytest.mark.slow] if is_variant else []
    return pytest.param(estimate, marks=marks, id="-".join(map(str, flatten(estimate).values())))


@pytest.mark.parametrize("estimate", [in_its_lane(estimate) for estimate in estimates()])
def test_every_initial_rule_and_head_under_every_estimate(attempt, estimate):
    initials = [{"kind": kind} for kind in kinds(InitialConfig)]
    gradient = [{"initial": initial, "rule": {"kind": rule}} for initial, rule in product(initials, kinds(RuleConfig))]
    # A rule does not know what its weights are for, so each head meets one rule.
    gradient += [{"initial": initial, "head": {"kind": head}} for initial, head in product(initials, kinds(HeadConfig))]
    gradient += [{"adapts": pattern} for pattern in (r"head\..*", r"encoder\..*", ".*bias", "nothing", "(")]
    gradient += [{"support_weight": 0.5}, {"statistics": "start"}, {"steps": 3}]
    combinations = []
    for options in gradient:
        learner = {"kind": "gradient", "steps": 1, "estimate": estimate, **options}
        context = 2 if options.get("initial") == {"kind": "context"} else 0
        combinations.append({"learner": learner, "model": of("conv4", TINY, context=context)})
    learned, refused = check(attempt, combinations)
    assert learned + refused == len(gradient) and refused > 0


@pytest.mark.parametrize("learner", kinds(LearnerConfig))
def test_every_learner_on_every_model_and_with_every_loss(attempt, learner):
    combinations = [{"learner": {"kind": learner}, "model": model} for model in models()]
    heads = [{"head": {"kind": head}} for head in kinds(HeadConfig)] if learner in ("gradient", "supervised") else [{}]
    combinations += [
        {"learner": {"kind": learner, **head}, "task": {"loss": {"kind": loss}}}
        for loss in kinds(LossConfig)
        for head in heads
    ]
    if learner == "relation":
        maps = of("conv4", TINY, features="map")
        combinations += [
            {"learner": {"kind": learner, "loss": own}, "task": {"loss": {"kind": loss}}, "model": maps}
            for own in ("mse", "task")
            for loss in kinds(LossConfig)
        ]
    learned, _ = check(attempt, combinations)
    assert learned > 0
