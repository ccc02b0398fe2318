"""Which classes share a training episode: still a pure function of its numbers, every class within reach, uniform as it was."""

import itertools

import numpy as np
import pytest
from sharded import CLASSES, flat, sharded

from pipeline.data.index import Index
from pipeline.data.sampler import Sampler
from pipeline.data.schedules import ByLikeness, Likeness, Uniform, likeness_of
from pipeline.data.shapes import Shape
from pipeline.errors import InputError
from pipeline.noise import Noise, Purpose

SHAPE = Shape(ways=4, shots=1, queries=2)
KINDS = ["difficulty", "diversity"]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return sharded(tmp_path_factory.mktemp("sharded"), shards=10, seed=1)


def likeness(turns: int = 1, classes: int = CLASSES) -> Likeness:
    """Classes at random places of a plane, in whole numbers."""
    generator = np.random.default_rng(0)
    return Likeness(np.arange(classes), generator.integers(0, 2550, (classes, turns, 2)).astype(float))


def sampler(index, kind, *, share=1.0, reach=0.3, turns=False, seed=3, shape=SHAPE, **more) -> Sampler:
    schedule = ByLikeness(kind, likeness(4 if turns else 1), share, reach)
    return Sampler(index, "train", shape, seed=seed, turns=turns, schedule=schedule, **more)


def spread(own: Likeness, draw) -> float:
    """The mean squared distance between the classes of an episode."""
    points = own.means[list(draw.classes), list(draw.turns)]
    return float(np.square(points[:, None] - points[None]).sum(-1).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_golden_draws(index, kind):
    """These numbers are part of the format, as those of uniform episodes are."""
    assert [sampler(index, kind).draw(5, number).classes for number in range(3)] == GOLDEN[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turns", [False, True])
def test_a_draw_depends_on_nothing_but_its_numbers(index, kind, turns):
    keys = list(itertools.product(range(3), range(4)))
    first = {key: flat(sampler(index, kind, turns=turns).draw(*key)) for key in keys}
    shared = sampler(index, kind, turns=turns)
    assert all(flat(shared.draw(*key)) == first[key] for key in [*reversed(keys), *keys])
    assert len({str(found) for found in first.values()}) == len(keys)
    assert flat(sampler(index, kind, turns=turns, seed=4).draw(1, 1)) != first[1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_other_shards_change_no_episode(index, kind, tmp_path):
    other = sharded(tmp_path, shards=3, seed=9)
    for number in range(5):
        assert flat(sampler(index, kind).draw(0, number)) == flat(sampler(other, kind).draw(0, number))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("reach", [0.0, 0.3, 1.0])
def test_episodes_are_whole_and_every_class_is_reached(index, kind, turns, reach):
    shared, seen = sampler(index, kind, turns=turns, reach=reach), set()
    for number in range(400):
        draw = shared.draw(0, number)
        assert len(set(draw.classes)) == 4, "a class comes in one of its turns"
        assert len(set(draw.rows)) == len(draw.rows) == 12
        seen |= set(zip(draw.classes, draw.turns, strict=True))
    assert len(seen) == CLASSES * (4 if turns else 1)


def test_hard_episodes_are_closer_and_diverse_ones_wider_than_uniform_ones(index):
    own = likeness()
    uniform = Sampler(index, "train", SHAPE, seed=3, turns=False)
    mean = {
        name: np.mean([spread(own, drawing.draw(0, number)) for number in range(300)])
        for name, drawing in {
            "uniform": uniform,
            "hard": sampler(index, "difficulty", reach=0.0),
            "half": sampler(index, "difficulty", reach=0.0, share=0.5),
            "diverse": sampler(index, "diversity", reach=0.0),
        }.items()
    }
    assert mean["hard"] < 0.5 * mean["uniform"] < mean["uniform"] * 1.3 < mean["diverse"]
    assert abs(mean["half"] - (mean["hard"] + mean["uniform"]) / 2) < 0.1 * mean["uniform"]


def test_without_reach_the_others_are_the_nearest_or_the_farthest():
    own, candidates = likeness(), np.arange(CLASSES)
    for number in range(20):
        picks = ByLikeness("difficulty", own, 1.0, 0.0).drawn(candidates, 1, 3, Noise(0, Purpose.EPISODE, number))
        nearest = [set(np.argsort(own.of(candidates, pick, 0)[:, 0])[:3].tolist()) for pick in picks]
        assert set(picks) in nearest
        picks = ByLikeness("diversity", own, 1.0, 0.0).drawn(candidates, 1, 2, Noise(0, Purpose.EPISODE, number))
        farthest = {int(own.of(candidates, pick, 0)[:, 0].argmax()) for pick in picks}
        assert farthest & set(picks)


def test_the_full_reach_is_as_even_as_uniform(index):
    for kind in KINDS:
        shared = sampler(index, kind, reach=1.0)
        counts = np.bincount([c for number in range(900) for c in shared.draw(0, number).classes], minlength=CLASSES)
        assert np.all(np.abs(counts - 300) < 85)


@pytest.mark.parametrize("kind", KINDS)
def test_no_label_is_that_of_the_first_class(index, kind):
    """The class that the others were chosen for (with a reach of 0 of each episode another) is at every place as often."""
    own, candidates = likeness(), np.arange(CLASSES)
    places = []
    for number in range(400):
        noise = Noise(0, Purpose.EPISODE, number)
        picks = ByLikeness(kind, own, 1.0, 0.0).drawn(candidates, 1, 4, noise)
        again = Noise(0, Purpose.EPISODE, number)
        again.uniform()
        places.append(picks.index(again.below(CLASSES)))
    assert np.all(np.abs(np.bincount(places, minlength=4) - 100) < 45)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lane_takes_the_nearest_of_its_own_classes(index, kind):
    shared = sampler(index, kind, lanes=4, shape=Shape(3, 1, 1))
    draws = [shared.draw(0, number) for number in range(40)]
    assert [flat(draw) for draw in draws] == [
        flat(sampler(index, kind, lanes=4, shape=Shape(3, 1, 1)).draw(0, number)) for number in range(40)
    ]
    assert all(len(set(draw.classes)) == 3 for draw in draws)


@pytest.mark.parametrize("kind", KINDS)
def test_more_ways_than_classes_are_refused(index, kind):
    with pytest.raises(
        InputError, match="data.schedule: 13 ways of 12 classes, each .* lower ways or data.lanes, or set"
    ):
        sampler(index, kind, turns=True, shape=Shape(13, 1, 1)).draw(0, 0)


def test_uniform_takes_the_words_that_it_always_took():
    one, two = (Noise(1, Purpose.EPISODE, 2, 3, 4) for _ in range(2))
    assert Uniform().drawn(np.arange(7), 4, 5, one) == two.subset(28, 5)


def test_distances_are_exact_whatever_the_order_of_additions(glyphs_root):
    index = Index.open(glyphs_root)
    ids = np.asarray(index.splits["train"])
    own = likeness_of(index, ids, 4)
    assert np.array_equal(own.means, np.rint(own.means)) and own.means.max() < 2**20
    exact = own.means.astype(np.int64)
    for place, turn in ((0, 0), (3, 2)):
        expected = np.square(exact - exact[place, turn]).sum(-1)
        assert np.array_equal(own.of(ids, place, turn), expected)
    order = np.random.default_rng(0).permutation(own.means.shape[2])
    shuffled = Likeness(ids, np.ascontiguousarray(own.means[:, :, order]))
    assert np.array_equal(shuffled.of(ids, 1, 3), own.of(ids, 1, 3))
    # A quarter turn of both changes no distance.
    assert own.of(ids, 0, 1)[1, 1] == own.of(ids, 0, 2)[1, 2] == own.of(ids, 0, 0)[1, 0]


GOLDEN = {
    "difficulty": [(6, 1, 9, 8), (1, 11, 3, 2), (11, 2, 8, 3)],
    "diversity": [(6, 4, 2, 7), (11, 7, 10, 3), (9, 4, 7, 11)],
}
