"""What is read is what was drawn, ahead of its step, whatever the depth, the threads and the ranks."""

import json
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from tars import npy, picture, write_tar

from pipeline import feeders, prepare
from pipeline.data.images import encode_png, resize
from pipeline.data.index import Index
from pipeline.data.loader import Loader, Reader, frozen
from pipeline.data.sampler import Sampler
from pipeline.data.shapes import Shape
from pipeline.data.shards import Shards
from pipeline.errors import InputError

SHAPE = Shape(ways=3, shots=1, queries=2)
BATCH = 5
GOLDEN_KEYS = (1884232298, 307957049)


@pytest.fixture(scope="module")
def index(glyphs_root) -> Index:
    return Index.open(glyphs_root)


def sampler(index, *, shape=SHAPE, split="train", turns=False) -> Sampler:
    return Sampler(index, split, shape, seed=0, turns=turns)


def reader(index, *, invert=False, size=None) -> Reader:
    return Reader(Shards(index), invert, size)


def loader(index, read=None, **options) -> Loader:
    settings = {"batch": BATCH, "rank": 0, "world": 1, **options}
    return Loader(sampler(index), read or reader(index), **settings)


def same(one, two) -> bool:
    pairs = zip((*one.support, *one.query, one.ways), (*two.support, *two.query, two.ways), strict=True)
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)


def indexed(root, images, *, extension="png"):
    """A data set of two classes, the images dealt to them in turn."""
    members = []
    for number, image in enumerate(images):
        data = npy(image) if extension == "npy" else encode_png(image)
        fields = json.dumps({"class": "ab"[number % 2]}).encode()
        members += [(f"s{number}.json", fields), (f"s{number}.{extension}", data)]
    write_tar(root / "x.tar", members)
    return prepare.index([root], out=None, rule="train=1")


def test_episodes_may_be_read_elsewhere(index):
    asked = []

    def read(step: int, number: int) -> Future:
        asked.append((step, number))
        done: Future = Future()
        done.set_result(loader(index).episode(step, number))
        return done

    fed = Loader(sampler(index), reader(index), batch=BATCH, rank=0, world=1, read=read)
    with loader(index) as own, fed:
        one, other = own.share(3, last=4), fed.share(3, last=4)
    assert asked == [(3, number) for number in range(BATCH)]
    assert all(same(a, b) for a, b in zip(one.episodes, other.episodes, strict=True))


def test_what_is_wrong_with_the_data_is_one_line_from_elsewhere_too():
    wrapped = RuntimeError("a traceback\nof many lines")
    wrapped.cause = InputError("x.tar: is short")  # pyright: ignore[reportAttributeAccessIssue]  (as Ray's errors have it)
    other = RuntimeError("a feeder is gone")
    told = []
    for error in (wrapped, other):
        done, passed = Future(), Future()
        done.set_exception(error)
        feeders.pass_on(done, passed)
        told.append(passed.exception())
    assert isinstance(told[0], InputError) and str(told[0]) == "x.tar: is short" and told[1] is other


class Watched:
    """A reader that tells what it read, takes a while, and can be held up."""

    def __init__(self, inner, *, seconds=0.0):
        self.inner, self.seconds, self.read = inner, seconds, 0
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()

    def episode(self, draw):
        assert self.gate.wait(20)
        time.sleep(self.seconds)
        with self.lock:
            self.read += 1
        return self.inner.episode(draw)

    def until(self, count):
        deadline = time.monotonic() + 20
        while self.read < count:
            assert time.monotonic() < deadline, f"{self.read} episodes read, {count} awaited"
            time.sleep(0.002)


@pytest.mark.parametrize(("depth", "threads"), [(1, 1), (3, 1), (2, 4), (40, 3)])
def test_depth_and_threads_change_nothing(index, depth, threads):
    expected = [[reader(index).episode(sampler(index).draw(step, n)) for n in range(BATCH)] for step in range(4)]
    with loader(index, depth=depth, threads=threads) as loading:
        for step in range(4):
            share = loading.share(step, last=4)
            assert share.numbers == list(range(BATCH))
            assert all(same(a, b) for a, b in zip(share.episodes, expected[step], strict=True))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_together_read_the_whole_meta_batch(index, world):
    found = {}
    for rank in range(world):
        with loader(index, rank=rank, world=world) as loading:
            share = loading.share(2, last=3)
            assert not found.keys() & set(share.numbers)
            found |= dict(zip(share.numbers, share.episodes, strict=True))
    assert sorted(found) == list(range(BATCH))
    assert all(same(found[n], reader(index).episode(sampler(index).draw(2, n))) for n in found)


@pytest.mark.parametrize(("world", "threads"), [(1, 1), (2, 3)])
def test_the_key_of_an_episode_is_that_of_its_step_and_number(index, world, threads):
    """Golden, like the episodes themselves: what is drawn inside an episode depends on no rank, thread or restart."""
    keys = {}
    for rank in range(world):
        with loader(index, rank=rank, world=world, threads=threads) as loading:
            for step in (3, 4):
                share = loading.share(step, last=5)
                keys |= {(step, n): e.key.item() for n, e in zip(share.numbers, share.episodes, strict=True)}
    assert len(set(keys.values())) == 2 * BATCH and all(0 <= key < 2**32 for key in keys.values())
    assert (keys[3, 0], keys[4, 1]) == GOLDEN_KEYS


def test_more_ranks_than_episodes_are_refused(index):
    with pytest.raises(InputError, match="meta.batch = 5 is smaller than workers.count = 6"):
        loader(index, world=6)


def test_an_episode_holds_the_drawn_samples(index):
    shards, draw = Shards(index), sampler(index, turns=False).draw(0, 0)
    episode = reader(index).episode(draw)
    assert episode.ways == 3 and episode.support.inputs.dtype == torch.float32
    assert episode.support.inputs.shape == (3, 1, 16, 16) and episode.query.inputs.shape == (6, 1, 16, 16)
    assert episode.support.targets.tolist() == [0, 1, 2] and episode.query.targets.tolist() == [0, 0, 1, 1, 2, 2]
    for batch, rows in ((episode.support, draw.support), (episode.query, draw.query)):
        for found, row in zip(batch.inputs, np.concatenate(rows), strict=True):
            np.testing.assert_array_equal((found[0] * 255).round().numpy(), shards.image(int(row))[..., 0])


def test_the_next_steps_are_read_before_they_are_asked_for(index):
    watched = Watched(reader(index))
    with loader(index, watched, depth=2) as loading:
        loading.share(0, last=10)
        watched.until(3 * BATCH)
        time.sleep(0.02)
        assert watched.read == 3 * BATCH, "more was read ahead than depth says"
        loading.share(1, last=10)
        watched.until(4 * BATCH)


def test_nothing_is_read_beyond_the_last_step(index):
    watched = Watched(reader(index))
    with loader(index, watched, depth=5) as loading:
        for step in (8, 9):
            loading.share(step, last=10)
    assert watched.read == 2 * BATCH


def test_waiting_is_measured_and_small_when_there_was_time(index):
    watched = Watched(reader(index), seconds=0.04)
    with loader(index, watched, depth=1) as loading:
        loading.share(0, last=2)
        cold = loading.waited_s
        watched.until(2 * BATCH)
        time.sleep(0.01)
        loading.share(1, last=2)
        assert cold > 0.9 * BATCH * 0.04 and loading.waited_s < cold / 4


def test_threads_read_at_the_same_time(index):
    watched = Watched(reader(index), seconds=0.05)
    with loader(index, watched, threads=BATCH) as loading:
        loading.share(0, last=1)
        assert loading.waited_s < 0.8 * BATCH * 0.05


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_leaving_ends_the_threads_and_what_they_had_yet_to_read(index):
    watched = Watched(reader(index), seconds=0.005)
    with loader(index, watched, depth=1000, threads=2) as loading:
        loading.share(0, last=1000)
        assert alive()
    assert not alive() and watched.read < 100


def test_an_error_in_a_thread_reaches_the_caller(tmp_path):
    index = indexed(tmp_path, [picture(n) for n in range(8)])
    content = bytearray((tmp_path / "x.tar").read_bytes())
    for row in range(8):
        content[index.locate(row, "image").offset + 20] ^= 1
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"x.tar: image of sample 's\d'.*crc32"):
        with Loader(sampler(index, shape=Shape(2, 1, 1)), reader(index), batch=2, rank=0, world=1) as loading:
            loading.share(0, last=5)
    assert not alive()


def test_an_error_of_drawing_reaches_the_caller(tmp_path):
    for name in "xyz":
        members = [m for n in range(4) for m in
                   [(f"{name}{n}.json", json.dumps({"class": "ab"[n % 2]}).encode()),
                    (f"{name}{n}.png", encode_png(picture(n)))]]  # fmt: skip
        write_tar(tmp_path / f"{name}.tar", members)
    index = prepare.index([tmp_path], out=None, rule="train=1")
    laned = Sampler(index, "train", Shape(2, 1, 4), seed=0, turns=False, lanes=3)
    with pytest.raises(InputError, match="data.lanes = 3"):
        with Loader(laned, reader(index), batch=3, rank=0, world=1) as loading:
            loading.share(0, last=1)


def test_turns_are_quarter_turns_of_the_image(index):
    shards, turned = Shards(index), sampler(index, turns=True)
    seen = set()
    for number in range(12):
        draw = turned.draw(0, number)
        inputs = reader(index).episode(draw).support.inputs
        for found, row, turns in zip(inputs, np.concatenate(draw.support), draw.turns, strict=True):
            expected = np.rot90(shards.image(int(row))[..., 0], turns)
            np.testing.assert_array_equal((found[0] * 255).round().numpy(), expected)
            seen.add(turns)
    assert seen == {0, 1, 2, 3}


def test_inverting_turns_black_to_white(index):
    draw = sampler(index).draw(0, 0)
    plain, inverted = (reader(index, invert=invert).episode(draw) for invert in (False, True))
    assert torch.equal(inverted.query.inputs, 1 - plain.query.inputs)
    assert torch.equal(inverted.query.targets, plain.query.targets)


def test_size_resizes_what_is_read(index):
    draw, shards = sampler(index).draw(0, 0), Shards(index)
    inputs = reader(index, size=10).episode(draw).support.inputs
    assert inputs.shape == (3, 1, 10, 10)
    for found, row in zip(inputs, np.concatenate(draw.support), strict=True):
        expected = resize(shards.image(int(row)), 10)[..., 0]
        np.testing.assert_array_equal((found[0] * 255).round().numpy(), expected)


def test_mixed_sizes_are_refused_unless_resized(tmp_path):
    index = indexed(tmp_path, [picture(n, 6 if n < 7 else 8) for n in range(8)])
    draws = [sampler(index, shape=Shape(2, 1, 1)).draw(0, number) for number in range(30)]
    odd = next(draw for draw in draws if 7 in np.concatenate(draw.support))
    with pytest.raises(InputError, match=r"sample 's7' is \(8, 8, 1\), not \(6, 6, 1\).*set data.size"):
        reader(index).episode(odd)
    assert reader(index, size=6).episode(odd).support.inputs.shape == (2, 1, 6, 6)


def test_an_episode_of_odd_images_only_is_refused_too(tmp_path):
    """The model is built for the first sample's size; all others of an episode may agree on another."""
    index = indexed(tmp_path, [picture(0, 6), picture(1, 6), *(picture(n, 8) for n in range(2, 10))])
    draws = [sampler(index, shape=Shape(2, 1, 1)).draw(0, number) for number in range(30)]
    odd = next(draw for draw in draws if set(draw.rows).isdisjoint({0, 1}))
    with pytest.raises(InputError, match=r"is \(8, 8, 1\), not \(6, 6, 1\)"):
        reader(index).episode(odd)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (">u2", 65535), (np.float32, 1), ("<f8", 1)])
def test_raw_numbers_of_any_type_become_floats(tmp_path, dtype, white):
    arrays = [(picture(n) / 255 * white).astype(dtype) for n in range(4)]
    index = indexed(tmp_path, arrays, extension="npy")
    draw = sampler(index, shape=Shape(2, 1, 1)).draw(0, 0)
    inputs = reader(index).episode(draw).support.inputs
    assert inputs.dtype == torch.float32
    for found, row in zip(inputs, np.concatenate(draw.support), strict=True):
        expected = arrays[int(row)][..., 0].astype(np.float64) / white
        np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_evaluation_episodes_are_those_of_step_zero(index):
    shared = sampler(index, split="test")
    found = dict(frozen(shared, reader(index), [3, 1]))
    assert list(found) == [3, 1]
    assert all(same(found[n], reader(index).episode(shared.draw(0, n))) for n in found)
