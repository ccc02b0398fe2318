"""Samples reach tars whole, in blocks, and always as the same bytes."""

import tarfile

import numpy as np
import pytest
import webdataset
from tars import class_folders, picture

from pipeline.data.images import decode, encode_png
from pipeline.data.importers.folder import folder
from pipeline.data.pack import check, identity, mean_bytes, members, plan, write_shard
from pipeline.data.scan import scan
from pipeline.data.source import Sample, Source
from pipeline.errors import InputError

AS_IS = {"size": None, "channels": None}


def made(number, label="a", **options):
    return Sample(f"{label}/{number:03d}", label, lambda: picture(number, 8, 3), **options)


def source(classes=3, per_class=150):
    return Source("s", [made(n, f"c{c}") for c in range(classes) for n in range(per_class)], {})


def test_plan_keeps_every_sample_once_in_blocks_of_one_class():
    data = source()
    shards = plan(data, shard_bytes=6400, sample_bytes=100, seed=0)
    assert sorted(s.key for shard in shards for s in shard) == sorted(s.key for s in data.samples)
    for shard in shards:
        assert len(shard) <= 64
        assert len({s.label for s in shard}) <= 3
    mixed = [s.label for shard in shards for s in shard]
    assert mixed != sorted(mixed)


def test_plan_depends_on_the_seed_and_not_on_the_order_of_samples():
    data = source()
    turned = Source("s", data.samples[::-1], {})
    options = {"shard_bytes": 6400, "sample_bytes": 100}
    plans = [plan(data, seed=0, **options), plan(turned, seed=0, **options), plan(data, seed=1, **options)]
    assert plans[0] == plans[1] != plans[2]
    assert identity(plans[0], {}) == identity(plans[1], {}) != identity(plans[2], {})


@pytest.mark.parametrize("store", ["raw", "encoded"])
def test_the_same_samples_give_the_same_bytes(tmp_path, store):
    samples = source(2, 3).samples
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, samples, store=store, **AS_IS)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


# WebDataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("store", "extension"), [("raw", "npy"), ("encoded", "png")])
def test_a_webdataset_reader_opens_a_shard(tmp_path, store, extension):
    samples = [made(n, label, mask=lambda: np.eye(8, dtype=np.uint8)) for label in "ab" for n in range(3)]
    write_shard(tmp_path / "x.tar", samples, store=store, **AS_IS)
    read = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False).decode("rgb8"))
    assert [s["__key__"] for s in read] == [s.key for s in samples]
    assert [s["json"]["class"] for s in read] == [s.label for s in samples]
    for got, sample in zip(read, samples, strict=True):
        np.testing.assert_array_equal(got[extension], sample.image())


def test_original_bytes_are_kept_when_nothing_changes():
    jpeg = b"\xff\xd8 pretend"
    png = encode_png(picture(0, 8, 3))
    sample = Sample("a/0", "a", lambda: png, "png")
    assert members(sample, store="encoded", size=8, channels=3)["png"] is png
    grey = members(sample, store="encoded", size=5, channels=1)["png"]
    assert decode(grey, "x").shape == (5, 5, 1)
    with pytest.raises(InputError, match="sample 'a/1': not a whole image"):
        members(Sample("a/1", "a", lambda: jpeg, "jpg"), store="encoded", **AS_IS)


def test_masks_and_fields_follow_the_image():
    sample = made(0, mask=lambda: np.full((8, 8), 9, np.uint8), meta=lambda: {"script": "Latin"})
    parts = members(sample, store="encoded", size=4, channels=None)
    np.testing.assert_array_equal(decode(parts["mask.png"], "x")[..., 0], np.full((4, 4), 9))
    assert parts["json"] == b'{"class": "a", "script": "Latin"}'
    with pytest.raises(InputError, match="'class' is taken"):
        members(made(0, meta=lambda: {"class": "b"}), store="raw", **AS_IS)


def test_raw_takes_any_dtype_and_channel_count(tmp_path):
    array = np.random.default_rng(0).standard_normal((5, 5, 7)).astype(np.float32)
    write_shard(tmp_path / "x.tar", [Sample("k", "a", lambda: array)], store="raw", **AS_IS)
    scanned = scan(tmp_path / "x.tar", class_field="class")
    assert (scanned.faults, scanned.dtype) == ([], "<f4")
    with pytest.raises(InputError, match="7 channels of float32 fit no PNG"):
        members(Sample("k", "a", lambda: array), store="encoded", **AS_IS)


def test_raw_refuses_mixed_sizes(tmp_path):
    samples = [made(0), Sample("b", "a", lambda: picture(1, 9, 3))]
    with pytest.raises(InputError, match=r"sample 'b' is \(9, 9, 3\) uint8, sample 'a/000' is \(8, 8, 3\).*--size"):
        write_shard(tmp_path / "x.tar", samples, store="raw", **AS_IS)
    assert not (tmp_path / "x.tar").exists()


def test_long_keys_are_kept(tmp_path):
    keys = ["k" * 300, "d/" * 200 + "e"]
    write_shard(tmp_path / "x.tar", [Sample(k, "a", lambda: picture(0)) for k in keys], store="raw", **AS_IS)
    scanned = scan(tmp_path / "x.tar", class_field="class")
    assert scanned.faults == [] and scanned.table["key"].to_pylist() == keys
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert tar.getnames()[0] == keys[0] + ".json"


@pytest.mark.parametrize("key", ["", "a.b", "/a", "a/", "a//b", "ä", "a b", "__x__/a", "../a"])
def test_unfit_keys_are_refused(key):
    with pytest.raises(InputError, match="must be letters"):
        check(Source("s", [Sample(key, "a", lambda: b"")], {}))


def test_sources_are_checked():
    with pytest.raises(InputError, match="no images found"):
        check(Source("s", [], {}))
    with pytest.raises(InputError, match="'a/000' is used twice"):
        check(Source("s", [made(0), made(0)], {}))
    with pytest.raises(InputError, match="class name 'a\\\\n'"):
        check(Source("s", [made(0, "a"), Sample("k", "a\n", lambda: b"")], {}))


def test_shards_are_about_as_large_as_asked(tmp_path):
    data = folder(class_folders(tmp_path / "in", labels="abcdefghij", per_class=20, size=20))
    form = {"store": "raw", **AS_IS}
    mean = mean_bytes(data.samples, **form)
    shards = plan(data, shard_bytes=100_000, sample_bytes=mean, block=10, seed=0)
    for number, samples in enumerate(shards):
        write_shard(tmp_path / f"{number}.tar", samples, **form)
    sizes = [(tmp_path / f"{number}.tar").stat().st_size for number in range(len(shards))]
    assert len(sizes) > 3 and max(sizes) < 115_000
