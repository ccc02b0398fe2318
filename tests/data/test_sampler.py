"""Law 1: an episode is a pure function of index, settings, seed, step and number; shares lose nothing."""

import itertools
import json

import numpy as np
import pytest
from sharded import CLASSES, EACH, flat, sharded
from tars import picture, write_tar

from pipeline import prepare
from pipeline.data.images import encode_png
from pipeline.data.index import Index
from pipeline.data.sampler import Sampler, assign
from pipeline.data.shapes import Shape
from pipeline.errors import InputError

SHARDS = 10
SHAPE = Shape(ways=4, shots=1, queries=2)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return sharded(tmp_path_factory.mktemp("sharded"), shards=SHARDS, seed=1)


def sampler(index, shape=SHAPE, *, split="train", seed=3, turns=False, **lanes) -> Sampler:
    return Sampler(index, split, shape, seed=seed, turns=turns, **lanes)


def test_golden_draws(index):
    """These numbers are part of the format: another release must draw the same episodes."""
    assert flat(sampler(index).draw(5, 2)) == GOLDEN_PLAIN
    assert flat(sampler(index, turns=True).draw(5, 2)) == GOLDEN_TURNED
    assert flat(sampler(index, lanes=4, deal_every=10).draw(5, 2)) == GOLDEN_LANE


def test_a_draw_depends_on_nothing_but_its_numbers(index):
    """Another object, another order, what was drawn before, repeats: the same episode."""
    keys = list(itertools.product(range(3), range(4)))
    first = {key: flat(sampler(index).draw(*key)) for key in keys}
    shared = sampler(index)
    assert all(flat(shared.draw(*key)) == first[key] for key in [*reversed(keys), *keys])
    assert len({str(found) for found in first.values()}) == len(keys)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_any_number_of_ranks_draws_the_same_meta_batch(index, world):
    expected = [flat(sampler(index).draw(7, number)) for number in range(5)]
    found = {n: flat(sampler(index).draw(7, n)) for share in assign([SHAPE.cost] * 5, world) for n in share}
    assert [found[number] for number in range(5)] == expected


def test_every_coordinate_matters(index):
    base = flat(sampler(index).draw(1, 1))
    others = [
        sampler(index).draw(2, 1),
        sampler(index).draw(1, 2),
        sampler(index, seed=4).draw(1, 1),
        sampler(index, turns=True).draw(1, 1),
    ]
    assert all(flat(other) != base for other in others)
    assert sampler(index, split="val").draw(1, 1).classes != base[0]


def test_episodes_survive_resharding(index, tmp_path):
    other = sharded(tmp_path, shards=3, seed=9)
    assert not np.array_equal(other.shard_of, index.shard_of)
    for step in range(5):
        for turns in (False, True):
            one, two = (sampler(i, turns=turns).draw(step, 0) for i in (index, other))
            assert flat(one) == flat(two)
            assert [index.key(row) for row in one.rows] == [other.key(row) for row in two.rows]


def test_packing_into_other_shards_keeps_episodes(glyphs_root, tmp_path):
    again = prepare.pack(
        str(glyphs_root.parent / "images"), tmp_path / "data", layout="folder", size=16,
        splits=glyphs_root.parent / "splits", shard_mib=1, seed=5,
    )  # fmt: skip
    first = Index.open(glyphs_root)
    assert len(again.shards) != len(first.shards)
    draws = [[flat(sampler(i).draw(0, n)) for n in range(6)] for i in (first, again)]
    assert draws[0] == draws[1]


@pytest.mark.parametrize("lanes", [{}, {"lanes": 2}])
def test_an_episode_is_what_its_shape_says(index, lanes):
    for number in range(60):
        draw = sampler(index, **lanes).draw(0, number)
        assert [len(own) for own in draw.support] == [1] * 4 and [len(own) for own in draw.query] == [2] * 4
        assert len(set(draw.classes)) == 4 and set(draw.turns) == {0}
        assert len(set(draw.rows)) == len(draw.rows), "support and query share a sample"
        for class_id, support, query in zip(draw.classes, draw.support, draw.query, strict=True):
            assert set(support) | set(query) <= set(index.postings(class_id))


def test_classes_and_samples_are_drawn_evenly(index):
    draws = [sampler(index).draw(0, number) for number in range(900)]
    classes = np.bincount([c for draw in draws for c in draw.classes], minlength=CLASSES)
    # 900 × 4 / 12 = 300 each, standard deviation 14: six of them.
    assert len(classes) == CLASSES and np.all(np.abs(classes - 300) < 85)
    rows = np.bincount([row for draw in draws for own in draw.support for row in own], minlength=CLASSES * EACH)
    assert rows.min() > 0 and rows.max() < 40


def test_quarter_turns_make_four_classes_of_each(index):
    """48 ways can be had from 12 classes, and each (class, turn) comes once."""
    draw = sampler(index, Shape(48, 1, 1), turns=True).draw(0, 0)
    assert sorted(zip(draw.classes, draw.turns, strict=True)) == list(itertools.product(range(12), range(4)))
    with pytest.raises(InputError, match="has 48 classes, fewer than ways = 49"):
        sampler(index, Shape(49, 1, 1), turns=True)


def shards_of(index, draw) -> set[int]:
    return {int(index.shard_of[row]) for row in draw.rows}


def by_lane(index, lanes, *, steps=range(40), **more) -> list[set[int]]:
    shared = sampler(index, lanes=lanes, **more)
    return [set.union(*(shards_of(index, shared.draw(s, n)) for s in steps for n in (lane, lane + lanes)))
            for lane in range(lanes)]  # fmt: skip


@pytest.mark.parametrize("lanes", [2, 3, 4])
def test_every_shard_is_in_exactly_one_lane(index, lanes):
    groups = by_lane(index, lanes)
    assert sorted(shard for group in groups for shard in group) == list(range(SHARDS))
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_lanes_are_dealt_anew_every_epoch(index):
    deals = [by_lane(index, 4, deal_every=40, steps=range(40 * e, 40 * e + 40)) for e in range(4)]
    assert all(sorted(s for group in deal for s in group) == list(range(SHARDS)) for deal in deals)
    assert len({str(deal) for deal in deals}) == 4
    assert by_lane(index, 4, deal_every=40) == deals[0]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_lanes_give_the_same_episodes_to_any_number_of_ranks(index, world):
    expected = [flat(sampler(index, lanes=4).draw(3, number)) for number in range(9)]
    shares = assign([SHAPE.cost] * 9, world, lanes=4)
    found = {number: flat(sampler(index, lanes=4).draw(3, number)) for share in shares for number in share}
    assert [found[number] for number in range(9)] == expected
    owners = [{rank for rank, share in enumerate(shares) for n in share if n % 4 == lane} for lane in range(4)]
    assert all(len(ranks) == 1 for ranks in owners), "a lane is split over ranks"


def test_a_lane_is_dealt_once_an_epoch(index):
    shared = sampler(index, SHAPE._replace(shots=1, queries=1), lanes=10)
    for number in range(60):
        shared.draw(number // 10, number)
    assert shared._lane_pool.cache_info().misses == 10


def test_a_lane_with_too_few_classes_is_refused_with_a_way_out(index):
    shared = sampler(index, Shape(4, 5, 10), lanes=10)
    with pytest.raises(
        InputError, match=r"data.lanes = 10: the 1 shards .* only 0 classes .*'train'.*lower data.lanes"
    ):
        shared.draw(0, 0)


def test_more_lanes_than_shards_are_refused(index):
    with pytest.raises(InputError, match="data.lanes = 11 is more than the 10 shards"):
        sampler(index, lanes=11)


def test_an_absent_split_is_named_with_those_there_are(index):
    with pytest.raises(InputError, match=r"has no split 'test'; it has train, val"):
        sampler(index, split="test")


def test_a_split_too_small_for_its_ways_is_named(index):
    with pytest.raises(InputError, match=r"split 'val' .* has 4 classes, fewer than ways = 5; lower ways"):
        sampler(index, SHAPE._replace(ways=5), split="val")


def test_an_empty_split_is_named(index):
    emptied = Index.open(index.root)
    emptied.splits = {**emptied.splits, "test": np.empty(0, np.int32)}
    with pytest.raises(InputError, match=r"split 'test' .* has 0 classes"):
        sampler(emptied, split="test")


def test_a_class_with_too_few_samples_is_named(index):
    with pytest.raises(InputError, match=r"'train'.*shots \+ queries = 25 samples, first 'c00' with 24; lower shots"):
        sampler(index, Shape(4, 5, 20))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("lanes", [1, 7, 8])
def test_every_number_is_assigned_exactly_once(world, lanes):
    for batch in range(world, 3 * world + 2):
        shares = assign([15.0] * batch, world, lanes=lanes)
        assert len(shares) == world and all(shares) and all(share == sorted(share) for share in shares)
        assert sorted(number for share in shares for number in share) == list(range(batch))


def test_equal_costs_are_shared_within_one_episode():
    for batch, world in itertools.product(range(3, 20), (1, 2, 3)):
        sizes = [len(share) for share in assign([4] * batch, world)]
        assert max(sizes) - min(sizes) <= 1


def test_unequal_costs_are_balanced():
    """Largest first is within 4/3 of the best possible (Graham 1969), whose bound is the mean or the largest."""
    generator = np.random.default_rng(0)
    for world in (2, 3, 4):
        costs = generator.integers(5, 500, 16).tolist()
        loads = [sum(costs[n] for n in share) for share in assign(costs, world)]
        assert max(loads) <= 4 / 3 * max(sum(costs) / world, max(costs))
    assert assign([9, 1, 1, 1, 1, 1, 1, 1, 1, 1], 2) == [[0], [1, 2, 3, 4, 5, 6, 7, 8, 9]]


def test_fewer_episodes_than_ranks_are_refused():
    with pytest.raises(InputError, match=r"meta.batch = 2 is smaller than workers.count = 3; raise the one or lower"):
        assign([1, 1], 3)


def test_fewer_lanes_than_ranks_are_refused():
    with pytest.raises(InputError, match=r"data.lanes = 2 is smaller than workers.count = 3; raise the one or lower"):
        assign([1] * 6, 3, lanes=2)


GOLDEN_PLAIN = ((3, 7, 0, 2), (0, 0, 0, 0), [[79], [185], [10], [67]], [[76, 91], [190, 191], [3, 4], [55, 68]])
GOLDEN_TURNED = ((5, 10, 0, 9), (3, 3, 0, 2), [[127], [257], [10], [235]], [[124, 139], [262, 263], [3, 4], [223, 236]])
GOLDEN_LANE = ((3, 8, 0, 4), (0, 0, 0, 0), [[84], [197], [1], [105]], [[79, 93], [198, 208], [8, 7], [114, 101]])


@pytest.fixture(scope="module")
def filed_twice(tmp_path_factory) -> Index:
    """Eight pictures, every one filed under two of four classes, so that a class has four of them."""
    root, members = tmp_path_factory.mktemp("twice"), []
    for number in range(8):
        for label in ("ab", "cd", "ac", "bd", "ab", "cd", "ad", "bc")[number]:
            key = f"p{number}/{label}"
            members.append((f"{key}.json", json.dumps({"class": label, "picture": f"p{number}"}).encode()))
            members.append((f"{key}.png", encode_png(picture(0, 2))))
    write_tar(root / "0.tar", members)
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text("".join(f"{label}\n" for label in "abcd"))
    return prepare.index([root], out=None, splits=root / "splits")


def shown(index, draw) -> list[str]:
    return [index.key(row).split("/")[0] for row in draw.rows]


def test_no_episode_has_a_picture_twice(filed_twice):
    drawing = sampler(filed_twice, Shape(ways=2, shots=1, queries=2))
    draws = [drawing.draw(0, number) for number in range(60)]
    assert all(len(set(shown(filed_twice, draw))) == 6 for draw in draws)
    assert [flat(draw) for draw in draws] == [flat(drawing.draw(0, number)) for number in range(60)]
    for draw in draws:
        labels = [filed_twice.key(row)[-1] for (row,) in draw.support]
        assert labels == [filed_twice.class_names[own] for own in draw.classes]
    assert len({flat(draw)[2][0][0] for draw in draws}) > 4


def test_classes_that_share_too_many_pictures_are_told(filed_twice):
    drawing = sampler(filed_twice, Shape(ways=4, shots=1, queries=2))
    with pytest.raises(
        InputError, match="no 4 classes were found with shots \\+ queries = 3 pictures each that are not"
    ):
        drawing.draw(0, 0)
