"""Mutated tars: a sample is right or an error names it; never another exception, never a wrong or missing sample."""

import io
import random
import shutil
import tarfile

import numpy as np
import pytest
from tars import RULES, class_folders, good_members, picture, write_tar

from pipeline import prepare
from pipeline.data.index import Index
from pipeline.data.shards import Shards
from pipeline.errors import InputError

PACKED, FRESH = 400, 250


def flip(data, chance):
    data[chance.randrange(len(data))] ^= chance.randrange(1, 256)


def overwrite(data, chance):
    at, length = chance.randrange(len(data)), chance.choice((2, 12, 512, 2000))
    end = min(len(data), at + length)
    data[at:end] = chance.randbytes(end - at)


def zero(data, chance):
    at = chance.randrange(len(data) // 512) * 512
    data[at : at + 512] = bytes(512)


def cut(data, chance):
    del data[chance.randrange(len(data)) :]


def drop(data, chance):
    at = chance.randrange(len(data))
    del data[at : at + chance.choice((1, 100, 512))]


def insert(data, chance):
    at = chance.randrange(len(data))
    data[at:at] = chance.choice((b"\0", chance.randbytes(512), bytes(512), data[:512]))


def swap(data, chance):
    a, b = (512 * chance.randrange(len(data) // 512) for _ in range(2))
    data[a : a + 512], data[b : b + 512] = data[b : b + 512], data[a : a + 512]


def repeat(data, chance):
    at = 512 * chance.randrange(len(data) // 512)
    data[at:at] = data[at : at + 1024]


def header(data, chance):
    """Damage a field of a header and make its checksum right again."""
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        at = chance.choice(tar.getmembers()).offset
    field = chance.choice((0, 100, 124, 126, 135, 156, 157, 257, 345))
    data[at + field] = chance.choice((0, 1, 32, 46, 47, 48, 50, 55, 128, 255))
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


MUTATIONS = (flip, overwrite, zero, cut, drop, insert, swap, repeat, header)


def mutated(data: bytes, number: int) -> bytes:
    chance = random.Random(number)
    changed = bytearray(data)
    MUTATIONS[number % len(MUTATIONS)](changed, chance)
    if chance.random() < 0.3 and len(changed) > 512:
        flip(changed, chance)
    return bytes(changed)


@pytest.mark.parametrize("store", ["raw", "encoded"])
def test_an_indexed_data_set(tmp_path, store):
    options = {"layout": "folder", "size": None, "store": store, "rule": "all=1"}
    index = prepare.pack(str(class_folders(tmp_path / "in", per_class=2)), tmp_path / "out", **options)
    shards, path = Shards(index), index.path(0)
    right = {(row, role): shards.read(row, role) for row in range(len(index)) for role in ("image", "json")}
    good = path.read_bytes()
    for number in range(PACKED // 2):
        bad = mutated(good, number)
        path.write_bytes(bad)
        assert bool(prepare.verify(tmp_path / "out")) == (bad != good), f"mutation {number}"
        try:
            reader = Shards(Index.open(tmp_path / "out"))
        except InputError:
            assert len(bad) != len(good)
            reader = Shards(Index.without_shards(tmp_path / "out"))
        for (row, role), data in right.items():
            try:
                assert reader.read(row, role) == data, f"mutation {number}"
                reader.image(row)
            except InputError as error:
                assert index.key(row) in str(error) and "\n" not in str(error)


def by_another_reader(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_without_an_index(tmp_path, kind):
    members = good_members(4)
    if kind != tarfile.USTAR_FORMAT:  # long names need extra headers, which can be damaged too
        members = [("d" * 120 + "/" + name, data) for name, data in members]
    good = write_tar(tmp_path / "good.tar", members, kind=kind).read_bytes()
    pictures = {name.split(".")[0]: picture(n // 2) for n, (name, _) in enumerate(members)}
    folder, accepted = tmp_path / "set", 0
    for number in range(FRESH // 3):
        bad = mutated(good, 1000 + number)
        folder.mkdir()
        (folder / "x.tar").write_bytes(bad)
        try:
            index = prepare.index([folder], out=None, **RULES)
        except InputError as error:
            assert "\n" not in str(error)
            assert len(prepare.verify(folder)) > 1, f"mutation {number}"
        else:
            accepted += 1
            check(index, bad, pictures, number)
        shutil.rmtree(folder)
    assert 0 < accepted < FRESH // 6


def check(index: Index, bad: bytes, pictures: dict[str, np.ndarray], number: int) -> None:
    """Whatever is accepted has all samples, with the bytes that an independent reader finds and the right pictures.

    What no reader could notice is let pass: another key in an otherwise sound header, another class in sound JSON,
    the pictures of two samples exchanged.
    """
    other = by_another_reader(bad)
    shards = Shards(index)
    assert len(index) == len(pictures), f"mutation {number}"
    for row in range(len(index)):
        key = index.key(row)
        assert shards.read(row, "image") == other[f"{key}.png"], f"mutation {number}"
        assert shards.read(row, "json") == other[f"{key}.json"], f"mutation {number}"
        assert any(np.array_equal(shards.image(row), right) for right in pictures.values()), f"mutation {number}"
