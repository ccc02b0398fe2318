"""A sample is read whole and unchanged, or named in an error."""

import pickle
import threading
import time
import zlib

import numpy as np
import pytest
from tars import RULES, class_folders, good_members, picture, write_tar

from pipeline import prepare
from pipeline.data import shards as module
from pipeline.data.index import Index
from pipeline.data.shards import Shards
from pipeline.errors import InputError


@pytest.fixture(params=["raw", "encoded"])
def data(request, tmp_path) -> Index:
    prepare.pack(
        str(class_folders(tmp_path / "in")), tmp_path / "out", layout="folder", size=None, store=request.param,
        rule="all=1", channels=None,
    )  # fmt: skip
    return Index.open(tmp_path / "out")


def expected(index, row):
    label, number = index.key(row).split("/")
    return picture(100 * ("ant", "bee", "cat").index(label) + int(number))


def damage(index, row, change):
    location = index.locate(row, "image")
    path = index.path(location.shard)
    content = bytearray(path.read_bytes())
    change(content, location)
    path.write_bytes(content)


def test_every_image_is_the_packed_one(data):
    shards = Shards(data)
    for row in range(len(data)):
        np.testing.assert_array_equal(shards.image(row), expected(data, row))
        assert shards.read(row, "json").startswith(b'{"class": ')


def test_a_flipped_byte_is_named(data):
    def flip(content, location):
        content[location.offset + location.size - 1] ^= 1

    damage(data, 5, flip)
    shards = Shards(data)
    with pytest.raises(InputError, match=r"shard-000000.tar: image of sample 'bee/1'.*changed since.*crc32"):
        shards.image(5)
    shards.image(4)


def test_a_shard_that_became_shorter_is_named(data):
    shards = Shards(data)

    def cut(content, location):
        del content[location.offset + 7 :]

    damage(data, 5, cut)
    with pytest.raises(InputError, match="'bee/1': shard ends .* bytes early"):
        shards.image(5)


def test_a_shard_that_went_away_is_named(data):
    data.path(0).unlink()
    with pytest.raises(InputError, match="No such file"):
        Shards(data).image(0)


def test_an_absent_member_is_named(data):
    assert not data.has(3, "mask")
    with pytest.raises(InputError, match="sample 'ant/3' has no mask member"):
        Shards(data).read(3, "mask")


def test_a_pickled_copy_reads_with_its_own_files(data):
    shards = Shards(data)
    shards.image(0)
    copy = pickle.loads(pickle.dumps(shards))
    assert not copy._files
    np.testing.assert_array_equal(copy.image(0), shards.image(0))


def test_threads_share_a_reader_whose_files_come_and_go(data):
    shards, wrong = Shards(data), []

    def read(start):
        for row in range(start, start + 60):
            shards._files.pop(0, None)
            if not np.array_equal(shards.image(row % len(data)), expected(data, row % len(data))):
                wrong.append(row)

    threads = [threading.Thread(target=read, args=(7 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_only_so_many_files_stay_open(tmp_path, monkeypatch):
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", [(f"{name}{member}", data) for member, data in good_members(2)])
    shards = Shards(prepare.index([tmp_path], out=None, **RULES))
    monkeypatch.setattr(module, "OPEN_FILES", 2)
    for row in (0, 2, 4, 0, 5):
        np.testing.assert_array_equal(shards.image(row), picture(row % 2))
        assert len(shards._files) <= 2


def test_raw_images_are_views_of_what_was_read(data):
    image = Shards(data).image(0)
    if data.store == "raw":
        assert image.base is not None and not image.flags.writeable


def test_location_is_where_the_bytes_are(data):
    location = data.locate(2, "image")
    content = data.path(location.shard).read_bytes()[location.offset : location.offset + location.size]
    assert zlib.crc32(content) == location.crc and content == Shards(data).read(2, "image")


def test_accessors_are_cheap(data):
    start = time.perf_counter()
    for _ in range(2000):
        data.locate(1, "image"), data.postings(1), data.shape(1)
    assert (time.perf_counter() - start) / 2000 < 100e-6
