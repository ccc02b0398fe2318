"""Supervised batches: a pure function of their numbers, every sample once an epoch, nothing silently short."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from tars import npy, picture, write_tar

from pipeline import prepare
from pipeline.data.images import encode_png
from pipeline.data.index import Index
from pipeline.data.loader import Loader, Reader
from pipeline.data.sampler import assign
from pipeline.data.shards import Shards
from pipeline.data.stream import Stream, StreamReader
from pipeline.errors import InputError

CLASSES, EACH, SHARDS, BATCH = 6, 10, 5, 4
TRAIN = 4 * EACH


def packed(root, *, extension="png", shards=SHARDS):
    """6 classes of 10 different images, the first 4 in split train; blocks of one class, as `metashard pack` makes them."""
    keys = [f"c{label}-{number:02d}" for label in range(CLASSES) for number in range(EACH)]
    blocks = [keys[i : i + 5] for i in range(0, len(keys), 5)]
    order = np.random.default_rng(0).permutation(len(blocks))
    for shard in range(shards):
        members = []
        for key in itertools.chain.from_iterable(blocks[n] for n in order[shard::shards]):
            image = picture(keys.index(key), 4)
            data = encode_png(image) if extension == "png" else npy(image)
            members += [(f"{key}.json", json.dumps({"class": key[:2]}).encode()), (f"{key}.{extension}", data)]
        write_tar(root / f"{shard}.tar", members)
    (root / "splits").mkdir()
    for split, labels in (("train", range(4)), ("val", range(4, 6))):
        (root / "splits" / f"{split}.txt").write_text("".join(f"c{label}\n" for label in labels))
    return prepare.index([root], out=None, splits=root / "splits")


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return packed(tmp_path_factory.mktemp("stream"))


def stream(index, **options) -> Stream:
    return Stream(
        index, "train", **{"samples": 3, "batch": BATCH, "seed": 1, "turns": False, "lanes": 1, "window": 16, **options}
    )


def drawn(source: Stream, step: int, number: int) -> list[tuple[int, int, int]]:
    """(row, turns, label) of a part."""
    return [row for piece in source.draw(step, number) for row in zip(*(c.tolist() for c in piece[1:]), strict=True)]


def loader(source: Stream, *, rank=0, world=1, depth=2, **reading) -> Loader:
    read = Reader(Shards(source.index), reading.get("invert", False), reading.get("size"))
    return Loader(source, StreamReader(source, read), batch=source.batch, rank=rank, world=world, depth=depth)


def read(source: Stream, steps: range, **options) -> dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels of the parts of some steps, by (step, number)."""
    found = {}
    with loader(source, **options) as loading:
        for step in steps:
            share = loading.share(step, last=steps.stop)
            found |= {(step, n): tuple(e.query) for n, e in zip(share.numbers, share.episodes, strict=True)}
    return found


def same(one, two) -> bool:
    return all(torch.equal(a, b) for key in one for a, b in zip(one[key], two[key], strict=True))


def test_golden_draws(index):
    """These numbers are part of the format: another release must stream the same batches."""
    assert [row for row, *_ in drawn(stream(index), 2, 1)] == GOLDEN_PLAIN
    assert drawn(stream(index, turns=True, lanes=2), 5, 3) == GOLDEN_TURNED


def test_a_draw_depends_on_nothing_but_its_numbers(index):
    keys = list(itertools.product(range(9), range(BATCH)))
    first = {key: drawn(stream(index, lanes=2, turns=True), *key) for key in keys}
    shared = stream(index, lanes=2, turns=True)
    assert all(drawn(shared, *key) == first[key] for key in [*reversed(keys), *keys])
    assert all(drawn(stream(index, seed=2), 0, n) != drawn(stream(index), 0, n) for n in range(BATCH))


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("window", [1, 7, 16, 4096])
def test_every_sample_of_a_lane_comes_once_per_epoch(index, lanes, window):
    """Windows larger and smaller than a shard, epochs that end inside a part."""
    source = stream(index, lanes=lanes, window=window)
    expected = {int(row) for label in range(4) for row in index.postings(label)}
    for lane in range(lanes):
        rows = [row for s in range(40) for n in range(lane, BATCH, lanes) for row, *_ in drawn(source, s, n)]
        for epoch in range(3):
            own = [row for shard in source.shards(lane, epoch) for row in source.rows(shard) if row in expected]
            assert len(rows) >= len(own) and sorted(rows[: len(own)]) == sorted(own)
            rows = rows[len(own) :]
    dealt = [shard for lane in range(lanes) for shard in source.shards(lane, 1)]
    # One of the tars happens to hold no sample of the split.
    assert sorted(dealt) == np.flatnonzero(source.counts).tolist() and len(dealt) == SHARDS - 1


def test_labels_are_the_places_of_classes_in_the_split(index):
    for row, turns, label in drawn(stream(index, samples=TRAIN), 0, 0):
        assert index.key(row)[:2] == f"c{label}" and turns == 0


def test_turns_make_four_classes_of_each(index):
    rows = drawn(stream(index, samples=8 * TRAIN, turns=True), 0, 0)
    assert all(index.key(row)[:2] == f"c{label // 4}" and label % 4 == turns for row, turns, label in rows)
    assert set(Counter(label for *_, label in rows)) == set(range(16))
    # Another epoch turns a sample another way.
    assert any(len({turns for r, turns, _ in rows if r == row}) > 1 for row, *_ in rows[:TRAIN])


def test_a_window_mixes_classes_and_bounds_how_far_a_sample_moves(index):
    """The tars hold blocks of 5 of a class; a window of 16 scatters them, one of 1 leaves them as they lie."""
    plain = [label for *_, label in drawn(stream(index, samples=TRAIN, window=1), 0, 0)]
    mixed = [label for *_, label in drawn(stream(index, samples=TRAIN, window=16), 0, 0)]
    changes = [sum(a != b for a, b in itertools.pairwise(labels)) for labels in (plain, mixed)]
    assert changes[0] < 10 and changes[1] > 2 * changes[0]
    assert all(sorted(plain[i : i + 16]) == sorted(mixed[i : i + 16]) for i in range(0, TRAIN, 16))


def test_a_window_of_its_own_choice_takes_what_fits_in_memory(index, monkeypatch):
    """All of a small split at a time, so that no batch of an epoch knows other classes than the rest; else a share per lane."""
    assert stream(index, window=None).window >= TRAIN
    a_sample = sum(shard.bytes for shard in index.shards) / len(index)
    monkeypatch.setattr("pipeline.data.stream.WINDOW_BYTES", 9.5 * a_sample)
    assert [stream(index, window=None, lanes=lanes).window for lanes in (1, 2, 4)] == [9, 4, 2]
    monkeypatch.setattr("pipeline.data.stream.WINDOW_BYTES", 1)
    assert stream(index, window=None).window == 1


@pytest.mark.parametrize("extension", ["png", "npy"])
def test_what_is_read_is_what_was_drawn(tmp_path, extension):
    index = packed(tmp_path, extension=extension)
    source, shards = stream(index, turns=True, lanes=2), Shards(index)
    for (step, number), (images, labels) in read(source, range(12)).items():
        rows = drawn(source, step, number)
        assert labels.tolist() == [label for *_, label in rows]
        for image, (row, turns, _) in zip(images, rows, strict=True):
            np.testing.assert_array_equal((image[0] * 255).round().numpy(), np.rot90(shards.image(row)[..., 0], turns))


def test_an_episode_of_a_stream_has_no_support(index):
    with loader(stream(index, turns=True)) as loading:
        episode = loading.share(0, last=1).episodes[0]
    assert episode.support.inputs.shape == (0, 1, 4, 4) and episode.support.targets.shape == (0,)
    assert episode.query.inputs.shape == (3, 1, 4, 4) and episode.ways == 16


def test_images_are_read_as_for_episodes(index):
    plain, other = (read(stream(index), range(2), **o) for o in ({}, {"invert": True, "size": 8}))
    assert all(images.shape == (3, 1, 8, 8) for images, _ in other.values())
    inverted = read(stream(index), range(2), invert=True)
    assert all(torch.equal(inverted[key][0], 1 - plain[key][0]) for key in plain)


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_read_the_same_batches(index, lanes, world):
    expected, found = read(stream(index, lanes=lanes), range(7)), {}
    for rank in range(world):
        own = read(stream(index, lanes=lanes), range(7), rank=rank, world=world)
        assert not found.keys() & own.keys()
        found |= own
    assert found.keys() == expected.keys() and same(expected, found)


@pytest.mark.parametrize("step", [1, 6, 13])
def test_a_resume_goes_on_with_the_same_batches(index, step):
    """In the middle of a window, of a shard, of a later epoch; whatever the depth."""
    unbroken = read(stream(index, lanes=2, turns=True), range(16))
    resumed = read(stream(index, lanes=2, turns=True), range(step, 16), depth=5)
    assert len(resumed) == (16 - step) * BATCH and same(resumed, unbroken)


def test_a_resume_leaves_out_whole_shards(index, monkeypatch):
    opened = []
    plain = StreamReader._shard
    monkeypatch.setattr(StreamReader, "_shard", lambda self, shard: opened.append(shard) or plain(self, shard))
    source = stream(index, samples=TRAIN - 4, batch=1, window=1)
    read(source, range(1, 2))
    assert opened[0] == source.shards(0, 0)[-1]


def test_a_step_back_reads_again(index):
    with loader(stream(index, window=3)) as loading:
        first = loading.reader.episode(loading.sampler.draw(0, 0))
        loading.reader.episode(loading.sampler.draw(9, 0))
        again = loading.reader.episode(loading.sampler.draw(0, 0))
    assert torch.equal(first.query.inputs, again.query.inputs)


def changed(index, change) -> None:
    """Put other bytes into every shard of a data set, of the same size unless the change is about that."""
    for number in range(len(index.shards)):
        content = bytearray(index.path(number).read_bytes())
        index.path(number).write_bytes(bytes(change(number, content)))


def zeroed(index, number, content):
    """The header of the shard's third sample and all after it: webdataset takes that for the end."""
    at = index.locate(int(stream(index).rows(number)[2]), "json").offset - 512
    content[at:] = bytes(len(content) - at)
    return content


def flipped(role):
    def change(index, number, content):
        for row in stream(index).rows(number):
            content[index.locate(int(row), role).offset + 9] ^= 1
        return content

    return change


def renamed(index, number, content):
    return content.replace(b"c", b"d")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (zeroed, r"\d.tar: ends after 2 of \d+ samples; copy it again"),
        (flipped("image"), r"image of sample 'c\d-\d\d': bytes changed since they were indexed"),
        (flipped("json"), r"json of sample 'c\d-\d\d': bytes changed since they were indexed"),
        (renamed, r"\d.tar: (webdataset cannot read it|ends after 0 of)"),
        (lambda i, n, c: c[:700], r"\d.tar: (webdataset cannot read it|ends after)"),
        (lambda i, n, c: b"", r"\d.tar: (webdataset cannot read it|ends after 0)"),
    ],
    ids=["zeroed", "image", "json", "renamed", "cut", "empty"],
)
def test_a_damaged_shard_is_named(tmp_path, change, told):
    index = packed(tmp_path)
    changed(index, lambda number, content: change(index, number, content))
    with pytest.raises(InputError, match=told):
        read(stream(index), range(8))


def test_a_sample_that_the_index_does_not_know_is_named(tmp_path):
    index = packed(tmp_path, shards=1)
    members = [(f"x.{e}", d) for e, d in (("json", b'{"class": "other"}'), ("png", encode_png(picture(1, 4))))]
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(InputError, match=r"0.tar: sample 'x' stands where the index knows 'c\d-\d\d'"):
        read(stream(index), range(1))


def test_a_shard_that_is_gone_is_named(tmp_path):
    index = packed(tmp_path)
    for number in range(SHARDS):
        index.path(number).unlink()
    with pytest.raises(InputError, match=r"\d.tar: webdataset cannot read it"):
        read(stream(index), range(1))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lanes": 5, "batch": 8}, "data.lanes = 5 is more than the 4 shards"),
        (
            {"lanes": 4, "batch": 3},
            "data.lanes = 4 is more than meta.batch = 3, so that some lanes would never be read",
        ),
    ],
)
def test_lanes_that_hold_nothing_are_refused(index, options, told):
    with pytest.raises(InputError, match=told):
        stream(index, **options)


def test_a_split_that_is_not_there_is_named(index):
    with pytest.raises(InputError, match="has no split 'nope'; it has train, val"):
        Stream(index, "nope", samples=3, batch=BATCH, seed=1, turns=False, window=16)


def test_lanes_and_ranks_are_dealt_as_for_episodes(index):
    for world in (1, 2):
        shares = [loader(stream(index, lanes=4), rank=rank, world=world).numbers(0) for rank in range(world)]
        assert shares == assign([3] * BATCH, world, lanes=4)


GOLDEN_PLAIN = [36, 24, 33]
GOLDEN_TURNED = [(24, 3, 11), (18, 2, 6), (20, 0, 8)]
