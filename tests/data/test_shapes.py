"""How large episodes are: what Meta-Dataset's sampler promises, and what a long tail does."""

import math

import numpy as np
import pytest
from sharded import EACH, flat, sharded

from pipeline.data.index import Index
from pipeline.data.sampler import Sampler, assign
from pipeline.data.shapes import LongTailed, Shape, Varied, in_words
from pipeline.errors import InputError
from pipeline.noise import Noise, Purpose

VARIED = Varied(ways=8, shots=10, queries=4, least_ways=3, support=30)
TAIL = LongTailed(ways=5, shots=4, queries=3, imbalance=8.0)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return sharded(tmp_path_factory.mktemp("sharded"), shards=10, seed=1)


def sampler(index, shape, *, split="train", seed=3, **lanes) -> Sampler:
    return Sampler(index, split, shape, seed=seed, turns=False, **lanes)


def noise(number: int) -> Noise:
    return Noise(0, Purpose.EPISODE, 0, 0, number)


def test_golden_draws(index):
    """These numbers are part of the format, as those of fixed shapes."""
    assert flat(sampler(index, VARIED._replace(ways=4, support=9, queries=2)).draw(5, 2)) == GOLDEN_VARIED
    assert flat(sampler(index, TAIL._replace(ways=3, queries=1)).draw(5, 2)) == GOLDEN_TAIL


@pytest.mark.parametrize("shape", [VARIED, TAIL])
@pytest.mark.parametrize("lanes", [{}, {"lanes": 2}])
def test_a_draw_depends_on_nothing_but_its_numbers(index, shape, lanes):
    keys = [(step, number) for step in range(3) for number in range(4)]
    first = {key: flat(sampler(index, shape, **lanes).draw(*key)) for key in keys}
    shared = sampler(index, shape, **lanes)
    shared.costs(1, 4)
    assert all(flat(shared.draw(*key)) == first[key] for key in reversed(keys))
    assert len({str(found) for found in first.values()}) == len(keys)


@pytest.mark.parametrize("sizes", [[24] * 6, [3, 200, 40, 2], [7, 7, 1000]])
def test_varied_counts_keep_the_papers_bounds(sizes):
    shape = Varied(ways=50, shots=100, queries=10, least_ways=2, support=500)
    found = [shape.counts(sizes, noise(number)) for number in range(300)]
    queries = min(10, min(sizes) // 2)
    most = min(500, sum(min(100, size - queries) for size in sizes))
    for shots, own in found:
        assert own == queries and sum(shots) <= most
        assert all(1 <= some <= size - queries for some, size in zip(shots, sizes, strict=True))
    supports = [sum(shots) for shots, _ in found]
    assert min(supports) < most / 4 and max(supports) > most / 2


def test_larger_classes_get_more_shots_and_weights_differ_by_four_at_most():
    shape = Varied(ways=50, shots=1000, queries=1, least_ways=2, support=100_000)
    ratios = []
    for number in range(300):
        (few, many), _ = shape.counts([400, 800], noise(number))
        ratios.append(many / few)
    # exp(α) lies between ½ and 2, so that twice the size means between ½ and 8 times the shots.
    assert 0.45 < min(ratios) < 0.8 and 5 < max(ratios) < 8.5
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(2, rel=0.15)


def test_ways_are_drawn_evenly_up_to_the_classes_that_there_are(index):
    shape = VARIED._replace(ways=50, support=100)
    ways = np.bincount([len(sampler(index, shape).draw(0, number).classes) for number in range(500)])
    assert ways[:3].sum() == 0 and len(ways) == 13
    assert np.all(np.abs(ways[3:] - 50) < 40)


def test_support_and_query_of_varied_episodes_share_no_sample(index):
    for lanes in ({}, {"lanes": 2}):
        for number in range(40):
            draw = sampler(index, VARIED, **lanes).draw(0, number)
            assert len(set(draw.rows)) == len(draw.rows)
            assert sum(len(own) for own in draw.support) <= 30 and len({len(own) for own in draw.query}) == 1
            for label, support, query in zip(draw.classes, draw.support, draw.query, strict=True):
                assert {*support, *query} <= set(index.postings(label))


def test_costs_are_those_of_what_is_drawn(index):
    drawing = sampler(index, VARIED)
    costs = drawing.costs(4, 9)
    assert costs == [len(drawing.draw(4, number).rows) for number in range(9)] and len(set(costs)) > 3
    assert sampler(index, TAIL).costs(4, 3) == [len(sampler(index, TAIL).draw(4, 0).rows)] * 3
    assert sampler(index, VARIED, lanes=2).costs(0, 4) == [1] * 4


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_varied_episode_of_a_meta_batch_has_one_rank_and_loads_are_even(index, world):
    drawing = sampler(index, VARIED)
    for step in range(5):
        costs = drawing.costs(step, 12)
        shares = assign(costs, world)
        assert sorted(number for share in shares for number in share) == list(range(12))
        loads = [sum(costs[number] for number in share) for share in shares]
        assert max(loads) <= 4 / 3 * max(sum(costs) / world, max(costs))


@pytest.mark.parametrize(("ways", "shots", "imbalance"), [(5, 5, 10.0), (10, 20, 100.0), (3, 4, 2.0), (20, 10, 50.0)])
def test_a_tail_falls_geometrically_and_has_all_samples(ways, shots, imbalance):
    tail = LongTailed(ways, shots, 1, imbalance).tail
    assert sum(tail) == ways * shots and tail == tuple(sorted(tail, reverse=True)) and tail[-1] >= 1
    largest = ways * shots / sum(imbalance ** (-place / (ways - 1)) for place in range(ways))
    ideal = [largest * imbalance ** (-place / (ways - 1)) for place in range(ways)]
    assert all(math.floor(a) <= b <= math.ceil(a) for a, b in zip(ideal, tail, strict=True))


def test_a_label_tells_nothing_of_its_place_in_the_tail():
    counts = np.array([TAIL.counts([24] * 5, noise(number)).shots for number in range(600)])
    assert (np.sort(counts, 1)[:, ::-1] == TAIL.tail).all()
    assert np.all(np.abs(counts.mean(0) - 4) < 0.6)


def test_what_is_missing_is_named(index):
    with pytest.raises(InputError, match=r"has 12 classes, fewer than shape.least_ways = 13; lower shape.least_ways"):
        sampler(index, VARIED._replace(ways=20, least_ways=13))
    with pytest.raises(
        InputError, match=rf"fewer than the most shots \+ queries = 29 samples, first 'c00' with {EACH}"
    ):
        sampler(index, TAIL._replace(queries=20))


def test_episodes_are_told_in_words():
    assert in_words(Shape(5, 1, 15).told()) == "5-way 1-shot, 15 queries per class"
    assert in_words(TAIL.told()) == "5-way, 20 support samples falling 8 to 1, 3 queries per class"
    told = VARIED.told() | {"mean_ways": 5.5, "mean_shots": 2.25}
    assert in_words(told, of_each="queries") == (
        "3- to 8-way, up to 30 support samples and 4 queries, on average 5.5 ways of 2.2 shots"
    )


GOLDEN_VARIED = ((7, 3, 2), (0, 0, 0), [[191], [76], [57, 66]], [[190, 168], [78, 94], [67, 54]])
GOLDEN_TAIL = (
    (9, 0, 6),
    (0, 0, 0),
    [[236, 222, 218], [7], [166, 160, 154, 165, 153, 151, 159, 150]],
    [[216], [20], [149]],
)
