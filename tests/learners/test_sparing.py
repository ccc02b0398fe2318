"""Meta-gradients through a few support samples (LITE): unbiased over the choice of them, exact in value, small in memory."""

from itertools import permutations, product

import pytest
import torch
from small import WAYS, episode, film, gradient, network, relative, small_config, sparing

from pipeline import build
from pipeline.data.index import Index
from pipeline.episode import Batch, Episode
from pipeline.errors import InputError
from pipeline.learners.closed_form import RidgeLearner, SvmLearner
from pipeline.learners.embedding import EmbeddingLearner, by_turns
from pipeline.learners.metric import MatchingLearner, PrototypeLearner
from pipeline.memory import peak_bytes
from pipeline.tasks.classification import Classification


def plain(kind: str) -> EmbeddingLearner:
    task, model = Classification(), network(prototype=True, norm="group")
    made = {
        "prototypes": lambda: PrototypeLearner(model, task),
        "matching": lambda: MatchingLearner(model, task),
        "ridge": lambda: RidgeLearner(model, task, penalty=0.5, scale=3.0),
        "svm": lambda: SvmLearner(model, task, cost=0.5, scale=3.0),
        "cnaps": lambda: film(norm="group"),
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return made[kind]().double()


def uneven() -> Episode:
    """Three, one and two support samples of the classes, not in the order of classes."""
    support = episode(1, shots=3).support
    kept = torch.tensor([0, 3, 1, 6, 2, 7])
    return episode(1)._replace(support=Batch(support.inputs[kept], support.targets[kept]))


def arrangements(one: Episode):
    """The episode under all orders of the samples within their classes, the places of the classes kept."""
    places = [torch.nonzero(one.support.targets == way).flatten().tolist() for way in range(WAYS)]
    for orders in product(*(list(permutations(own)) for own in places)):
        taken = list(range(len(one.support.targets)))
        for own, order in zip(places, orders, strict=True):
            for place, sample in zip(own, order, strict=True):
                taken[place] = sample
        yield one._replace(support=Batch(one.support.inputs[taken], one.support.targets))


def found(learner: EmbeddingLearner, one: Episode) -> tuple[float, torch.Tensor]:
    learner.zero_grad()
    loss = learner.outcome(one).loss
    loss.backward()
    return loss.item(), gradient(learner)


@pytest.mark.parametrize("kind", ["prototypes", "matching", "ridge", "svm", "cnaps"])
def test_the_mean_over_all_choices_is_the_exact_gradient(kind):
    """One of three, of one and of two samples: 12 orders, in which each choice comes equally often."""
    one, learner = uneven(), plain(kind)
    value, exact = found(learner, one)
    learner.spare(1)
    each = [found(learner, arranged) for arranged in arrangements(one)]
    assert len(each) == 12 and all(abs(loss - value) < 1e-9 * abs(value) for loss, _ in each)
    assert relative(torch.stack([own for _, own in each]).mean(0), exact) < 1e-9
    assert relative(each[0][1], exact) > 1e-3


def test_with_all_samples_it_is_the_exact_gradient():
    learner, one = plain("prototypes"), episode(2, shots=2)
    expected = found(learner, one)
    for backward in (2, 9):
        value, own = found(sparing(learner, backward), one)
        assert value == expected[0] and torch.equal(own, expected[1])


def test_the_first_of_every_class_come_first():
    assert by_turns(torch.tensor([0, 0, 1, 0, 1, 2])).tolist() == [0, 2, 5, 1, 4, 3]


def test_memory_follows_what_gradients_flow_through():
    """A support of 60 images through 6 of them."""
    one, peaks = episode(3, shots=20, queries=1), []
    for backward in (0, 2):
        learner = plain("prototypes")
        if backward:
            learner.spare(backward)
        peaks.append(peak_bytes(lambda learner=learner: learner.outcome(one).loss.backward()))
    assert peaks[1] < 0.4 * peaks[0]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"learner": {"kind": "prototype", "backward": 1}},
            "batch norm makes a feature depend on all.*model.norm = group",
        ),
        (
            {
                "learner": {"kind": "prototype", "backward": 1},
                "model": {"kind": "resnet12", "width": 4, "norm": "group", "drop": 0.1},
            },
            "would all lose the same activations; set model.drop = 0",
        ),
        (
            {"learner": {"kind": "ridge", "backward": 1}, "model": {"kind": "vit", "width": 8, "freeze": True}},
            "no gradient flows through the encoder.*set learner.backward = 0",
        ),
        ({"learner": {"backward": 1}}, "learner.backward: no such key where kind is gradient"),
        ({"learner": {"kind": "supervised", "backward": 1}}, "learner.backward: no such key where kind is supervised"),
    ],
)
def test_where_it_has_no_meaning_it_is_refused(glyphs_root, tmp_path, sections, words):
    with pytest.raises(InputError, match=words):
        build.learner(small_config(glyphs_root, tmp_path, **sections), Index.open(glyphs_root))


def test_the_learner_asked_for_spares(glyphs_root, tmp_path):
    asked = {"learner": {"kind": "film", "backward": 2}, "model": {"norm": "group"}}
    assert build.learner(small_config(glyphs_root, tmp_path, **asked), Index.open(glyphs_root)).backward == 2
