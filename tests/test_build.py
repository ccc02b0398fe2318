"""Objects are what the config says, start from the seed alone, and misfits are refused before anything runs."""

import json
import math
import sys
from functools import partial

import numpy as np
import pytest
import torch
from small import small_config
from tars import picture, write_tar

from pipeline import build, prepare
from pipeline.build_shape import evaluation_shape, training_shape
from pipeline.build_task import task
from pipeline.data.images import encode_png
from pipeline.data.index import Index
from pipeline.data.shapes import Shape
from pipeline.episode import Batch, Episode
from pipeline.errors import InputError
from pipeline.learners.amortised import FilmLearner, MetaNetLearner
from pipeline.learners.closed_form import LogisticLearner, RidgeLearner, SvmLearner
from pipeline.learners.estimators import Evolution, EvolvedRule, FirstOrder, Implicit, Reptile, Unrolled, Warp
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.initials import Context, Prototypes
from pipeline.learners.learned_rules import Curvature, MetaLstm, Mlp, Procedure
from pipeline.learners.leo import LeoLearner, Terms
from pipeline.learners.metric import ContextualMatchingLearner, MatchingLearner, PrototypeLearner, RelationLearner
from pipeline.learners.rules import PerElement, PerStep, Sgd
from pipeline.models.norm import GroupNorm, Norm
from pipeline.schema.learner import PrototypeConfig
from pipeline.tasks import losses


@pytest.fixture(scope="module")
def index(glyphs_root) -> Index:
    return Index.open(glyphs_root)


@pytest.fixture
def config(glyphs_root, tmp_path):
    return lambda **sections: small_config(glyphs_root, tmp_path, **sections)


def prototype(config, **sections):
    made = config(**sections)
    return made.model_copy(update={"learner": PrototypeConfig()})


def values(learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.state_dict().items()}


def equal(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def of_size(root, height, width, channels=1) -> Index:
    """A data set of two images."""
    members = []
    for number in range(2):
        image = np.resize(picture(number, 32, channels), (height, width, channels))
        members += [
            (f"s{number}.json", json.dumps({"class": f"c{number}"}).encode()),
            (f"s{number}.png", encode_png(image)),
        ]
    write_tar(root / "x.tar", members)
    return prepare.index([root], out=None, rule="train=1")


def test_initial_values_depend_on_the_seed_alone(config, index):
    torch.manual_seed(1)
    first = values(build.learner(config(), index))
    torch.manual_seed(2)
    torch.rand(5)
    changed = config(meta={"batch": 2}, workers={"count": 3}, data={"queries": 5}, engine={"mode": "vmap"})
    assert equal(first, values(build.learner(changed, index)))
    other = values(build.learner(config(seed=1), index))
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_generator_untouched(config, index):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    build.learner(config(), index)
    assert torch.equal(torch.rand(4), expected)


def test_float64_starts_from_the_same_values(config, index):
    single, double = (build.learner(config(meta={"precision": p}), index) for p in ("float32", "float64"))
    assert all(torch.equal(a.double(), b) for a, b in zip(single.parameters(), double.parameters(), strict=True))
    images = torch.rand(3, 1, 16, 16)
    episode = Episode(Batch(images, torch.arange(3)), Batch(images, torch.arange(3)), 3)
    placed = build.place(config(meta={"precision": "float64"}), torch.device("cpu"))(episode)
    assert placed.support.inputs.dtype == torch.float64 and placed.support.targets.dtype == torch.int64


@pytest.mark.parametrize("ways", [2, 5])
def test_a_gradient_learner_has_one_output_per_way_of_training(config, index, ways):
    with pytest.raises(InputError, match=rf"evaluate.ways = {ways} but data.ways = 3.*make them equal"):
        build.learner(config(evaluate={"ways": ways}), index)
    assert isinstance(build.learner(config(evaluate={"ways": 3}), index), GradientLearner)
    assert isinstance(build.learner(prototype(config, evaluate={"ways": ways}), index), PrototypeLearner)


@pytest.mark.parametrize(("adapts", "told"), [
    ("haed.*", "'haed.*' matches no parameter; the model has encoder.convs.0.weight"),
    ("head", "'head' matches no parameter"),
    ("head.(", "is not a regular expression"),
])  # fmt: skip
def test_a_pattern_that_names_nothing_is_refused(config, index, adapts, told):
    with pytest.raises(InputError) as caught:
        build.learner(config(learner={"adapts": adapts}), index)
    assert "learner.adapts = " in str(caught.value) and told in str(caught.value)


ESTIMATES = {
    "unrolled": Unrolled,
    "first_order": FirstOrder,
    "reptile": Reptile,
    "implicit": Implicit,
    "es": Evolution,
}
RULES = {
    "sgd": Sgd,
    "per_element": PerElement,
    "per_step": PerStep,
    "curvature": Curvature,
    "lstm": MetaLstm,
    "mlp": Mlp,
    "procedure": Procedure,
}


@pytest.mark.parametrize("kind", ESTIMATES)
def test_the_estimate_and_the_steps_are_those_asked_for(config, index, kind):
    made = build.learner(config(learner={"estimate": {"kind": kind}, "steps": 2}), index)
    assert type(made.estimate) is ESTIMATES[kind] and (made.steps, made.test_steps) == (2, 2)
    assert build.learner(config(learner={"test_steps": 7}), index).test_steps == 7


@pytest.mark.parametrize("kind", RULES)
def test_the_rule_is_the_one_asked_for_and_starts_at_its_rate(config, index, kind):
    made = build.learner(config(learner={"rule": {"kind": kind, "lr": 0.25}, "steps": 2}), index)
    assert type(made.rule) is RULES[kind]
    if kind.startswith("per_"):
        assert all((rate == 0.25).all() for rate in made.rule.parameters())


def test_the_start_is_the_one_asked_for(config, index):
    made = build.learner(config(learner={"initial": {"kind": "prototypes"}}, evaluate={"ways": 5}), index)
    assert type(made.initial) is Prototypes
    made = build.learner(config(learner={"initial": {"kind": "context"}}, model={"context": 7}), index)
    assert type(made.initial) is Context and made.initial.names == {"encoder.film.context"}
    with pytest.raises(InputError, match="set model.context = 100"):
        build.learner(config(learner={"initial": {"kind": "context"}}), index)


@pytest.mark.parametrize("norm", ["batch", "batch_per_step", "group", "layer"])
def test_the_norm_is_the_one_asked_for(config, index, norm):
    made = build.learner(config(model={"norm": norm}, learner={"steps": 3}), index)
    layer = made.model.encoder.norms[0]
    expected = {"batch": (6,), "batch_per_step": (4, 6)}.get(norm, (6,))
    assert isinstance(layer, GroupNorm if norm in ("group", "layer") else Norm) and layer.weight.shape == expected


EMBEDDING = {
    "prototype": PrototypeLearner,
    "matching": MatchingLearner,
    "ridge": RidgeLearner,
    "logistic": LogisticLearner,
    "svm": SvmLearner,
    "film": FilmLearner,
    "metanet": MetaNetLearner,
    "leo": LeoLearner,
}


@pytest.mark.parametrize("initial", ["unrolled", "first_order", "reptile"])
def test_warps_are_trained_beside_any_way_to_learn_the_start(config, index, initial):
    asked = {"estimate": {"kind": "warp", "initial": initial}, "steps": 2}
    with pytest.raises(InputError, match=r"with learner.adapts = '\.\*' all does; set model.warp = true and .*warps\)"):
        build.learner(config(learner=asked, model={"warp": True}), index)
    made = build.learner(config(learner={**asked, "adapts": r"(?!encoder\.warps).*"}, model={"warp": True}), index)
    assert type(made.estimate) is Warp and type(made.estimate.initial) is ESTIMATES[initial]
    slow = {name for name, _ in made.model.named_parameters()} - made.initial.names
    assert slow == {f"encoder.warps.{block}.weight" for block in range(4)}


def test_a_rule_evolves_beside_any_other_estimate(config, index):
    asked = {
        "rule": {"kind": "procedure", "lr": 0.3},
        "estimate": {"kind": "es_rule", "rest": {"kind": "reptile"}},
        "steps": 4,
    }
    made = build.learner(config(learner=asked), index)
    assert type(made.estimate) is EvolvedRule and type(made.estimate.rest) is Reptile
    assert set(made.estimate.evolution.names) == {f"rule.{name}" for name, _ in made.rule.named_parameters()}
    assert [made.rule.log_rate.item(), made.rule.count.item()] == pytest.approx([math.log(0.3) / 10, 0.225])
    build.learner(
        config(
            learner={**asked, "initial": {"kind": "prototypes"}, "estimate": {"kind": "es_rule"}}, evaluate={"ways": 5}
        ),
        index,
    )
    with pytest.raises(InputError, match="learner.rule.kind = sgd has none; set learner.rule.kind = procedure"):
        build.learner(config(learner={**asked, "rule": {"kind": "sgd"}}), index)


@pytest.mark.parametrize("kind", EMBEDDING)
def test_the_learner_is_the_one_asked_for(config, index, kind):
    assert type(build.learner(config(learner={"kind": kind}), index)) is EMBEDDING[kind]
    with pytest.raises(
        InputError, match=f"gives no vectors for learner.kind = {kind}; set model.features = mean or fl"
    ):
        build.learner(config(learner={"kind": kind}, model={"features": "map"}), index)


def test_what_a_solver_learns_starts_where_asked(config, index):
    made = build.learner(config(learner={"kind": "ridge", "penalty": 3.0, "scale": 4.0}), index)
    assert [v.exp().item() for v in (made.log_penalty, made.log_scale)] == pytest.approx([3.0, 4.0])
    made = build.learner(config(learner={"kind": "logistic", "penalty": 3.0, "scale": 4.0, "steps": 2}), index)
    assert [v.exp().item() for v in (made.log_penalty, made.log_scale)] == pytest.approx([3.0, 4.0]) and made.steps == 2
    made = build.learner(config(learner={"kind": "svm", "cost": 0.5, "scale": 4.0}), index)
    assert made.log_scale.exp().item() == pytest.approx(4.0) and made.cost == 0.5


def test_full_context_has_the_reads_asked_for(config, index):
    made = build.learner(config(learner={"kind": "matching", "reads": 4}), index)
    assert type(made) is ContextualMatchingLearner and (made.context.steps, made.context.down.width) == (4, 6)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_relation_compares_maps(config, index, tmp_path, norm):
    asked = {"learner": {"kind": "relation"}, "model": {"features": "map", "norm": norm, "downsample": "max_pool"}}
    made = build.learner(config(**asked), index)
    assert type(made) is RelationLearner and made.squares and made.model.encoder.side == 4
    assert isinstance(made.relation.norms[0], GroupNorm if norm == "group" else Norm)
    plain = build.learner(config(**{**asked, "learner": {"kind": "relation", "loss": "task"}}), index)
    assert not plain.squares
    build.learner(config(**asked), of_size(tmp_path / "d", 5, 5))
    with pytest.raises(InputError, match="images of 3 pixels are too small.*halves them 2 times; use ≥ 4"):
        build.learner(config(**asked), of_size(tmp_path / "e", 3, 3))


@pytest.mark.parametrize("model", [{"features": "mean"}, {"kind": "resnet12", "width": 4}, {"kind": "rnn"}])
def test_relation_without_maps_is_refused(config, index, model):
    with pytest.raises(InputError, match="compares feature maps; set model.kind = conv4 and model.features = map"):
        build.learner(config(learner={"kind": "relation"}, model=model), index)


def test_relation_has_a_loss_of_its_own_unless_the_tasks_is_asked(config, index):
    asked = {"model": {"features": "map"}, "task": {"loss": {"kind": "focal"}}}
    with pytest.raises(
        InputError, match="task.loss.kind = focal is not asked where learner.loss = mse; set learner.loss"
    ):
        build.learner(config(**asked, learner={"kind": "relation"}), index)
    build.learner(config(**asked, learner={"kind": "relation", "loss": "task"}), index)


LOSSES = [
    ({"kind": "cross_entropy", "smoothing": 0.2}, partial(losses.cross_entropy, smoothing=0.2)),
    ({"kind": "focal", "gamma": 1.5}, partial(losses.focal, gamma=1.5)),
    ({"kind": "class_balanced", "beta": 0.9}, partial(losses.class_balanced, beta=0.9)),
    ({"kind": "mse"}, losses.squared_error),
]


@pytest.mark.parametrize(("asked", "expected"), LOSSES, ids=[asked["kind"] for asked, _ in LOSSES])
def test_the_loss_is_the_one_asked_for(config, asked, expected):
    logits, targets = torch.randn(5, 3), torch.tensor([0, 0, 0, 1, 2])
    assert task(config(task={"loss": asked})).loss(logits, targets) == expected(logits, targets)


VIT = {"kind": "vit", "width": 8, "depth": 1, "heads": 2}


def test_a_transformer_is_the_one_asked_for(config, index):
    asked = {"mlp": 2.0, "registers": 3, "layer_scale": 0.5, "lora": 2, "lora_alpha": 6.0}
    made = build.learner(config(model={**VIT, **asked}), index).model.encoder
    assert made.pos_embed.shape == (1, 1 + 4 * 4, 8) and made.register_tokens.shape == (1, 3, 8)
    block = made.blocks[0]
    assert block.mlp.fc1.weight.shape == (16, 8) and block.ls1.gamma.tolist() == [0.5] * 8
    assert block.attn.qkv.lora_b.shape == (24, 2) and block.attn.qkv.scale == 3.0 and block.attn.heads == 2
    assert len(build.learner(config(model={**VIT, "depth": 3}), index).model.encoder.blocks) == 3


def test_a_transformer_that_does_not_divide_is_refused(config, index):
    with pytest.raises(
        InputError, match="16 pixels do not divide into patches of model.patch = 5; set data.size = 20 or an"
    ):
        build.learner(config(model={**VIT, "patch": 5}), index)
    with pytest.raises(InputError, match="model.width = 8 does not divide by model.heads = 3; set model.width = 9 or"):
        build.learner(config(model={**VIT, "heads": 3}), index)


def test_a_frozen_transformer_trains_factors_and_head_alone(config, index):
    asked = {"learner": {"adapts": ".*lora_[ab]"}, "model": {**VIT, "lora": 2, "freeze": True}}
    made = build.learner(config(**asked), index)
    trained = {name for name, value in made.model.named_parameters() if value.requires_grad}
    assert trained == made.initial.names | {"head.weight", "head.bias"}
    asked["learner"]["estimate"] = {"kind": "es"}
    assert set(build.learner(config(**asked), index).estimate.names) == {f"model.{name}" for name in trained}


def test_freezing_everything_is_refused(config, index):
    frozen = {**VIT, "freeze": True}
    with pytest.raises(InputError, match="leaves nothing to meta-train; set model.lora = 4 or model.freeze = false"):
        build.learner(config(model=frozen, learner={"kind": "prototype"}), index)
    build.learner(config(model={**frozen, "lora": 1}, learner={"kind": "prototype"}), index)
    build.learner(config(model=frozen, learner={"kind": "ridge"}), index)


def test_resnet12_drops_as_asked_for_but_not_under_implicit_gradients(config, index):
    asked = {"kind": "resnet12", "width": 4, "drop": 0.2, "block": 2}
    made = build.learner(config(model=asked), index).model.encoder
    assert [(block.drop.drop, block.drop.block) for block in made.blocks] == [(0.2, 1), (0.2, 1), (0.2, 2), (0.2, 2)]
    rule = {"rule": {"kind": "procedure"}, "estimate": {"kind": "es_rule", "rest": {"kind": "implicit"}}}
    for learner in ({"estimate": {"kind": "implicit"}}, rule):
        with pytest.raises(InputError, match="losses that change with every step have not; set model.drop = 0 or"):
            build.learner(config(model=asked, learner=learner), index)


def test_a_recurrent_encoder_is_the_one_asked_for(config, index, tmp_path):
    made = build.learner(config(model={"kind": "rnn", "width": 5, "layers": 2}), index).model.encoder
    assert made.features == 10 and [len(layer) for layer in made.layers] == [2, 2]
    one_way = {"kind": "rnn", "width": 5, "bidirectional": False}
    made = build.learner(config(model=one_way), of_size(tmp_path / "d", 12, 12, 3)).model.encoder
    assert made.features == 5 and made.layers[0][0].read.weight.shape == (15, 36)


def test_without_timm_the_way_to_it_is_told(config, index, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r'needs the package timm: pip install "metashard\[timm\]"'):
        build.learner(config(model={"kind": "timm"}), index)


def test_a_network_of_timm_is_the_one_asked_for(config, index):
    pytest.importorskip("timm")
    made = build.learner(config(model={"kind": "timm", "name": "resnet10t"}), index)
    assert made.model.encoder.features == 512 and not list(made.model.buffers())
    with pytest.raises(InputError, match="model.name = 'resnet10': timm has no such model"):
        build.learner(config(model={"kind": "timm", "name": "resnet10"}), index)


def test_the_amortised_learners_have_the_sizes_asked_for(config, index):
    made = build.learner(config(learner={"kind": "film", "hidden": 9}, evaluate={"ways": 5}), index)
    assert made.set_encoder.features == 9 and [film[-1].out_features for film in made.films] == [12] * 4
    made = build.learner(config(learner={"kind": "metanet", "representation": 11, "hidden": 5}), index)
    assert made.head.weight.shape == (3, 11) and made.write_head.layers[0].out_features == 5
    with pytest.raises(InputError, match="evaluate.ways = 5 but data.ways = 3: the head of a metanet.*make them equal"):
        build.learner(config(learner={"kind": "metanet"}, evaluate={"ways": 5}), index)


def test_leo_is_the_one_asked_for_and_freezes_what_was_trained_before(config, index):
    asked = {"kind": "leo", "latent": 7, "steps": 2, "lr": 0.5, "tuning_steps": 3, "tuning_lr": 0.2, "penalty": 0.3}
    made = build.learner(config(learner=asked, evaluate={"ways": 5}), index)
    assert made.decode.weight.shape == (12, 7) and (made.steps, made.tuning_steps) == (2, 3)
    assert [made.rate.item(), made.tuning_rate.item()] == pytest.approx([0.5, 0.2])
    assert made.terms == Terms(1e-3, 0.3, 1e-3) and all(value.requires_grad for value in made.parameters())
    with pytest.raises(InputError, match="would keep an encoder of random weights; set start, or learner.freeze = f"):
        build.learner(config(learner={"kind": "leo", "freeze": True}), index)
    frozen = build.learner(config(learner={"kind": "leo", "freeze": True}, start="anything"), index)
    assert frozen.is_frozen and not any(value.requires_grad for value in frozen.model.parameters())


def test_walking_back_goes_with_neither_annealing(config, index):
    asked = {"estimate": {"kind": "unrolled", "recompute": True, "multi_step": 5}}
    with pytest.raises(InputError, match="recompute goes with neither multi_step nor first_order_until; set them to 0"):
        build.learner(config(learner=asked), index)


def test_images_that_are_not_square_need_a_size(config, tmp_path):
    oblong = of_size(tmp_path / "d", 20, 24)
    with pytest.raises(InputError, match="images are 20 × 24 pixels, conv4 needs squares; set data.size"):
        build.learner(config(), oblong)
    build.learner(config(data={"size": 16}), oblong)


@pytest.mark.parametrize("features", ["mean", "flatten"])
def test_images_too_small_for_pooling_are_refused(config, tmp_path, features):
    small = of_size(tmp_path / "d", 15, 15)
    with pytest.raises(InputError, match="images of 15 pixels are too small for conv4.*use ≥ 16"):
        build.learner(config(model={"downsample": "max_pool", "features": features}), small)
    build.learner(config(model={"downsample": "stride", "features": features}), small)
    build.learner(config(model={"downsample": "max_pool", "features": features}, data={"size": 16}), small)


def test_the_model_has_the_channels_of_the_data(config, tmp_path):
    colour = of_size(tmp_path / "d", 16, 16, 3)
    assert build.learner(config(), colour).model.encoder.convs[0].weight.shape[1] == 3


def test_evaluation_episodes_are_frozen_whatever_the_seed_of_training(config, index):
    asked = {"evaluate": {"shots": 2}}
    one, two = (build.sampler(config(seed=seed, **asked), index, "test") for seed in (0, 8))
    assert one.shape == Shape(3, 2, 2) and one.draw(0, 3).classes == two.draw(0, 3).classes
    assert np.array_equal(one.draw(0, 3).query, two.draw(0, 3).query)
    one, two = (build.sampler(config(seed=seed, **asked), index, "train") for seed in (0, 8))
    assert one.shape == Shape(3, 1, 2) and one.draw(0, 3).classes != two.draw(0, 3).classes


def test_what_evaluate_does_not_name_is_as_in_training(config):
    assert evaluation_shape(config()) == training_shape(config()) == Shape(3, 1, 2)
    assert evaluation_shape(config(evaluate={"ways": 4, "queries": 9})) == Shape(4, 1, 9)
