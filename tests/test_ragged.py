"""Episodes whose classes have unequal shots and whose ways differ: the laws, what is measured, and what is refused."""

import pytest
import torch
from laws import LOOP, run
from small import LEARNERS, OWN_HEAD, WAYS, gradient, make, ragged, relative, small_config

from pipeline import build, checkpoint, evaluate, restore, train
from pipeline.build_shape import evaluation_shape, training_shape
from pipeline.data.index import Index
from pipeline.engine import Plan, chunks
from pipeline.errors import InputError
from pipeline.judging import examine
from pipeline.learners.embedding import EmbeddingLearner
from pipeline.learners.learner import Mode
from pipeline.tasks.classification import Classification

HEADED = OWN_HEAD | {"supervised", "supervised-cosine"}
ANY_WAYS = {"protomaml", "fine-tuned", "fine-tuned-kept", "baseline++"}
"""Gradient learners whose head is made anew in every episode."""
VARIED = {"ways": 6, "shots": 8, "queries": 3, "shape": {"kind": "varied", "least_ways": 2, "support": 20}}
TAIL = {"ways": 3, "shots": 4, "queries": 2, "shape": {"kind": "long_tailed", "imbalance": 6}}


def takes_any_ways(name: str) -> bool:
    return name in ANY_WAYS or (isinstance(make(name), EmbeddingLearner) and name not in HEADED)


@pytest.mark.parametrize("name", LEARNERS)
def test_every_plan_gives_the_meta_gradient_of_a_loop_on_ragged_episodes(name):
    """Law 2; ways differ too where the learner has no head of its own."""
    learner = make(name)
    episodes = [ragged(number, 2 + number % 3 if takes_any_ways(name) else WAYS) for number in range(5)]
    loss, expected, _ = run(learner, LOOP, episodes)
    for plan in (Plan("vmap", 2), Plan("loop", 1, abreast=2), Plan("vmap", 2, abreast=2)):
        value, found, _ = run(learner, plan, episodes[::-1])
        assert value == pytest.approx(loss, rel=1e-10) and relative(found, expected) < 1e-10, plan


def test_episodes_that_are_not_alike_go_side_by_side_one_by_one():
    episodes = [ragged(number, 2 + number) for number in range(3)]
    assert [len(part) for part in chunks(episodes, Plan("loop", 1, abreast=2))] == [3]
    assert [len(part) for part in chunks(episodes, Plan("vmap", 2, abreast=2))] == [1, 1, 1]


@pytest.mark.parametrize("name", LEARNERS)
def test_inductive_predictions_depend_on_their_own_query_alone(name):
    """Law 8."""
    learner, one = make(name), ragged(1)
    predict = learner.adapt(one.support, one.ways, mode=Mode.INDUCTIVE)
    together = predict(one.query.inputs)
    alone = torch.cat([predict(image[None]) for image in one.query.inputs])
    assert torch.allclose(together, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in LEARNERS if takes_any_ways(name)])
def test_one_learner_takes_episodes_of_any_ways_and_trains_all_its_parameters(name):
    """Law 5."""
    learner = make(name)
    for ways in (2, 4):
        learner.zero_grad()
        learner(ragged(0, ways)).loss.backward()
        assert torch.isfinite(gradient(learner)).all()
    one = ragged(0, 6)
    assert learner.adapt(one.support, 6, mode=Mode.INDUCTIVE)(one.query.inputs).shape == (12, 6)


def test_thirds_of_the_classes_by_their_shots():
    targets = torch.arange(5).repeat_interleave(2)
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 0, 2, 2, 0, 0, 4, 0]), 5).double()
    found = Classification().by_shots(logits, targets, torch.tensor([1, 9, 5, 1, 2]))
    # In order of shots: classes 1 and 2, then 4 and 0, then 3.
    assert {name: value.item() for name, value in found.items()} == {
        "accuracy_head": 0.75, "accuracy_mid": 0.75, "accuracy_tail": 0.0,
    }  # fmt: skip


def test_thirds_are_told_on_request_alone():
    learner, one = make("prototypes"), ragged(0)
    plain, apart = (examine(learner, one, mode=Mode.INDUCTIVE, by_shots=asked).metrics for asked in (False, True))
    assert apart.keys() - plain.keys() == {"accuracy_head", "accuracy_mid", "accuracy_tail"}
    thirds = [apart[f"accuracy_{name}"] for name in ("head", "mid", "tail")]
    assert sum(thirds) / 3 == pytest.approx(apart["accuracy"])


@pytest.mark.parametrize("learner", [{"kind": "prototype"}, {"kind": "gradient", "initial": {"kind": "prototypes"}}])
def test_a_run_on_varied_episodes_reports_what_they_were_like(glyphs_root, tmp_path, monkeypatch, learner):
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)
    config = small_config(glyphs_root, tmp_path, data=VARIED, learner=learner, engine={"mode": "auto"})
    done = train.fit(config)
    test = done.result["test"]
    assert test["shape"] == "varied" and test["least_ways"] == 2 and test["support"] == 20
    assert 2 <= test["mean_ways"] <= 6 and 1 <= test["mean_shots"] <= 8
    assert "2- to 6-way, up to 20 support samples and 3 queries per class, on average" in done.text
    path = checkpoint.best(done.folder)
    fixed = {"ways": 5, "shots": 1, "queries": 2, "shape": {"kind": "fixed"}}
    found = evaluate.evaluate(restore.subject_of(path, asked=fixed), split="test", episodes=4, workers=1)
    assert "shape" not in found.as_json() and found.as_json()["ways"] == 5
    tail = {"ways": 5, "shots": 2, "queries": 2, "shape": {"kind": "long_tailed", "imbalance": 3}}
    found = evaluate.evaluate(restore.subject_of(path, asked=tail), split="test", episodes=4, workers=1)
    assert found.as_json()["inductive"].keys() >= {"accuracy_head", "accuracy_mid", "accuracy_tail"}
    kept = evaluate.keep(found, path)
    assert (
        kept is not None
        and "long_tailed-5way-2shot-2query-imbalance3-4episodes" in (done.folder / "spool.jsonl").read_text()
    )


def test_a_long_tail_trains_whatever_has_a_head(glyphs_root, tmp_path):
    config = small_config(glyphs_root, tmp_path, data=TAIL)
    learner = build.learner(config, index := Index.open(glyphs_root))
    with build.loader(config, index, rank=0, world=1) as loading:
        episodes = loading.share(0, last=1).episodes
    assert {tuple(sorted(one.support.targets.bincount().tolist())) for one in episodes} == {(1, 3, 8)}
    learner.double()(episodes[0].to("cpu", torch.float64)).loss.backward()
    assert torch.isfinite(gradient(learner)).all()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": VARIED}, r"shape.kind = varied: the head of a gradient learner has one output per way.*set shape.kind = "
         r"fixed, or set learner.initial.kind = prototypes or fresh"),
        ({"data": VARIED, "learner": {"kind": "metanet"}}, "the head of a metanet learner has one output per way"),
        ({"evaluate": {"shape": {"kind": "varied", "least_ways": 2}}}, "the head of a gradient learner"),
    ],
)  # fmt: skip
def test_a_head_of_its_own_cannot_take_varying_ways(glyphs_root, tmp_path, sections, said):
    with pytest.raises(InputError, match=said):
        build.learner(small_config(glyphs_root, tmp_path, **sections), Index.open(glyphs_root))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"ways": 4, "shape": {"kind": "varied"}}}, r"data.shape.least_ways = 5 is more than ways = 4"),
        ({"data": {**VARIED, "shape": {**VARIED["shape"], "support": 5}}}, "support = 5 is less than a sample of each"),
        ({"data": {**TAIL, "ways": 2}}, "ways = 2 are a head without a tail; set ways to 3 or more"),
        ({"data": {**TAIL, "shots": 1}}, "imbalance = 6 leaves the smallest of 3 classes nothing of 3 support samples"),
        ({"data": VARIED, "task": {"kind": "verification"}}, "data.shape.kind = varied is for task.kind = classification"),
        ({"data": VARIED, "engine": {"mode": "compiled"}}, "engine.mode = compiled: with data.shape.kind = varied"),
    ],
)  # fmt: skip
def test_shapes_that_cannot_be_are_refused(glyphs_root, tmp_path, sections, said):
    with pytest.raises(InputError, match=said):
        training_shape(small_config(glyphs_root, tmp_path, learner={"kind": "prototype"}, **sections))


def test_what_is_measured_has_the_shape_of_training_unless_said(glyphs_root, tmp_path):
    config = small_config(glyphs_root, tmp_path, data=VARIED, learner={"kind": "prototype"})
    assert evaluation_shape(config) == training_shape(config)
    config = small_config(
        glyphs_root, tmp_path, data=VARIED, evaluate={"shape": {"kind": "fixed"}, "ways": 3, "shots": 2}
    )
    assert evaluation_shape(config).told() == {"ways": 3, "shots": 2, "queries": 3}
