"""pack, index and verify as a user calls them."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import webdataset
from PIL import Image
from tars import LABELS, RULES, class_folders, good_members, picture, sample_members, write_tar

from pipeline import prepare
from pipeline.data import fragments, layouts
from pipeline.data.importers.folder import folder
from pipeline.data.index import Index
from pipeline.data.shards import Shards
from pipeline.errors import InputError

FOLDER = {"layout": "folder", "size": None, "rule": "all=1"}
KILLED_AFTER_ONE_TAR = """
import os, signal, sys
from pipeline import prepare
def stop(done, total):
    assert total > 2
    os.kill(os.getpid(), signal.SIGKILL)
prepare.pack(sys.argv[1], sys.argv[2], layout="folder", size=64, shard_mib=1, rule="all=1", channels=3, progress=stop)
"""


@pytest.fixture
def images(tmp_path):
    return str(class_folders(tmp_path / "images"))


@pytest.mark.parametrize("store", ["raw", "encoded"])
@pytest.mark.parametrize("size", [None, 4])
def test_packed_images_are_the_users_images(images, tmp_path, store, size):
    index = prepare.pack(images, tmp_path / "out", **{**FOLDER, "size": size}, store=store)
    assert (index.name, index.store, len(index)) == ("images", store, 12)
    assert prepare.verify(tmp_path / "out") == []
    shards = Shards(index)
    for row in range(12):
        label, number = index.key(row).split("/")
        assert json.loads(shards.read(row, "json")) == {"class": label}
        assert row in index.postings(LABELS.index(label))
        image = shards.image(row)
        if size is None:
            np.testing.assert_array_equal(image, picture(100 * LABELS.index(label) + int(number)))
        else:
            assert image.shape == (4, 4, 1) == index.shape(row)


def test_a_killed_pack_goes_on_where_it_stopped(tmp_path):
    images = str(class_folders(tmp_path / "images", per_class=80, size=64, channels=3))
    run = [sys.executable, "-c", KILLED_AFTER_ONE_TAR, images, str(tmp_path / "out")]
    killed = subprocess.run(run, capture_output=True, text=True, cwd=os.getcwd())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    first = tmp_path / "out" / "shard-000000.tar"
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == [first.name]
    with pytest.raises(InputError, match="no index here"):
        Index.open(tmp_path / "out")
    written = first.stat().st_mtime_ns
    options = {"layout": "folder", "size": 64, "shard_mib": 1, "rule": "all=1", "channels": 3}
    seen = []
    resumed = prepare.pack(images, tmp_path / "out", **options, progress=lambda *done: seen.append(done))
    assert first.stat().st_mtime_ns == written
    assert seen == [(n, len(resumed.shards)) for n in range(1, len(resumed.shards) + 1)]
    assert resumed.fingerprint == prepare.pack(images, tmp_path / "whole", **options).fingerprint
    assert prepare.verify(tmp_path / "out") == []


def test_a_torn_tar_is_written_again(images, tmp_path):
    whole = prepare.pack(images, tmp_path / "out", **FOLDER)
    content = whole.path(0).read_bytes()
    whole.path(0).write_bytes(content[:3000])
    assert prepare.pack(images, tmp_path / "out", **FOLDER).fingerprint == whole.fingerprint
    assert whole.path(0).read_bytes() == content


def test_after_options_that_were_at_fault_the_right_ones_go_to_the_same_place(images, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(images, mixed)
    last = max(path for path in mixed.rglob("*") if path.is_file())
    image = Image.open(last)
    image.convert("RGB" if image.mode == "L" else "L").save(last)
    with pytest.raises(InputError, match="give --size and --channels"):
        prepare.pack(str(mixed), tmp_path / "out", **FOLDER)
    packed = prepare.pack(str(mixed), tmp_path / "out", **FOLDER, channels=3)
    assert packed.shape(0)[2] == 3 and prepare.verify(tmp_path / "out") == []


def test_dest_holds_one_pack(images, tmp_path):
    prepare.pack(images, tmp_path / "out", **FOLDER)
    with pytest.raises(InputError, match="holds a pack of other images or options"):
        prepare.pack(images, tmp_path / "out", **{**FOLDER, "size": 4})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="not empty and holds no pack"):
        prepare.pack(images, tmp_path / "mine", **FOLDER)
    with pytest.raises(InputError, match="folder cannot be made"):
        prepare.pack(images, tmp_path / "mine" / "thesis.txt" / "out", **FOLDER)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"layout": "kitti"},
            "--layout 'kitti' is not one of folder, csv, omniglot, omniglot_lake, cifar_fs, masks, fss, coco, voc, logos, "
            "identities, glyphs, scenes",
        ),
        ({"store": "zip"}, "--store 'zip'"),
        ({"size": 0}, "--size 0"),
        ({"channels": 2}, "--channels 2"),
        ({"shard_mib": 0}, "--shard-mib 0"),
        ({"workers": 0}, "--workers 0"),
        ({"min_area": 0.1}, "--min-area 0.1 is for --layout masks, fss, coco, voc, logos; leave it out"),
        ({"rule": None}, "no splits: give --splits"),
        ({"rule": "train=0.5"}, "adding up to 1"),
        ({"rule": "train=0.999999,test=0.000001"}, "leaves split 'test' without any"),
        ({"splits": "x"}, "exclude each other"),
    ],
)
def test_wrong_options_start_nothing(images, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        prepare.pack(images, tmp_path / "out", **{**FOLDER, **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"train": "ant\nbee", "test": "bee\ncat"}, "class 'bee' is in splits 'test' and 'train'"),
        ({"train": "ant\nbeee"}, "lists class 'beee', which the data has not; did you mean 'bee'"),
        ({"train": "ant", "test": ""}, "split 'test' is empty"),
        ({}, "no text files here"),
    ],
)
def test_wrong_split_files_start_nothing(images, tmp_path, files, words):
    (tmp_path / "splits").mkdir()
    for split, text in files.items():
        (tmp_path / "splits" / f"{split}.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        prepare.pack(images, tmp_path / "out", layout="folder", size=None, splits=tmp_path / "splits")
    assert not (tmp_path / "out").exists()


def test_classes_of_no_split_are_kept_apart(images, tmp_path):
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("cat\nant\n")
    index = prepare.pack(images, tmp_path / "out", layout="folder", size=None, splits=tmp_path / "splits")
    assert {split: ids.tolist() for split, ids in index.splits.items()} == {"train": [0, 2]} and len(index) == 12


def test_bad_images_are_named(images, tmp_path):
    (tmp_path / "images" / "bee" / "9.jpg").write_bytes(b"not an image")
    with pytest.raises(InputError, match="sample 'bee/9': not a whole image"):
        prepare.pack(images, tmp_path / "out", **FOLDER)
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "bee" / "9.jpg")
    with pytest.raises(InputError, match=r"sample .* raw images must be of one size and kind: give --size and"):
        prepare.pack(images, tmp_path / "raw", **FOLDER)
    assert prepare.pack(images, tmp_path / "a", **{**FOLDER, "size": 6}, channels=3).shape(0) == (6, 6, 3)
    assert prepare.pack(images, tmp_path / "b", **FOLDER, store="encoded").shape(8) == (9, 9, 3)


def test_glyphs_are_packed_with_their_ink(tmp_path, monkeypatch):
    full = layouts.glyphs

    def few(**options):
        data = full(**options)
        return type(data)(data.name, data.samples[:40], {"train": [data.samples[0].label]})

    monkeypatch.setattr(layouts, "glyphs", few)
    index = prepare.pack("", tmp_path, layout="glyphs", size=None)
    assert index.shape(0) == (28, 28, 1) and index.has(0, "mask") and prepare.verify(tmp_path) == []


def foreign(path, count, *, field="label", extension="jpg", by_cls=False):
    """A tar as a WebDataset user writes it."""
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(count):
            buffer = io.BytesIO()
            Image.fromarray(picture(number, 8, 3)).save(buffer, {"jpg": "JPEG", "png": "PNG"}[extension])
            label = {"cls": number % 3} if by_cls else {"json": {field: LABELS[number % 3], "id": number}}
            notes = {"txt": f"picture {number}"}
            writer.write({"__key__": f"{path.stem}/{number:04d}", extension: buffer.getvalue(), **label, **notes})


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_tars_of_webdatasets_own_writer(tmp_path, extension):
    for name in ("a", "b"):
        foreign(tmp_path / f"{name}.tar", 6, extension=extension)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.tar")}
    index = prepare.index([tmp_path], out=None, class_field="label", rule="train=0.5,test=0.5")
    assert (len(index), list(index.class_names)) == (12, list(LABELS))
    assert index.manifest["ignored"] == {"txt": 12}
    assert [index.key(row) for row in index.postings(0)] == ["a/0000", "a/0003", "b/0000", "b/0003"]
    assert Shards(index).image(0).shape == (8, 8, 3)
    assert prepare.verify(tmp_path) == [] and before == {path: path.read_bytes() for path in tmp_path.glob("*.tar")}
    with pytest.raises(InputError, match="has no 'class'; give --class-field, one of id, label, txt"):
        prepare.index([tmp_path], out=None, **RULES)


def test_cls_members_are_classes(tmp_path):
    foreign(tmp_path / "a.tar", 6, by_cls=True)
    index = prepare.index([tmp_path / "a.tar"], out=None, rule="train=0.5,test=0.5", seed=1)
    assert index.class_names == ["0", "1", "2"] and not index.has(0, "json") and prepare.verify(tmp_path) == []


def test_an_index_elsewhere_leaves_the_store_alone(tmp_path):
    store = tmp_path / "store" / "deep"
    write_tar(store / "x.tar", good_members())
    prepare.index([store / "x.tar"], out=tmp_path / "out", **RULES)
    assert [path.name for path in store.iterdir()] == ["x.tar"]
    index = Index.open(tmp_path / "out")
    np.testing.assert_array_equal(Shards(index).image(2), picture(2))
    assert prepare.verify(tmp_path / "out") == []


def test_tars_are_read_once(tmp_path, monkeypatch):
    read = []
    scan = fragments.scan
    monkeypatch.setattr(fragments, "scan", lambda path, **options: read.append(path.name) or scan(path, **options))
    write_tar(tmp_path / "a.tar", good_members(3))
    prepare.index([tmp_path], out=None, **RULES)
    write_tar(tmp_path / "b.tar", sample_members(5))
    assert len(prepare.index([tmp_path], out=None, **RULES)) == 4
    assert read == ["a.tar", "b.tar"]
    write_tar(tmp_path / "a.tar", good_members(2))
    assert len(prepare.index([tmp_path], out=None, **RULES)) == 3
    assert read == ["a.tar", "b.tar", "a.tar"]


@pytest.mark.parametrize("given", [["none.tar"], [], ["s3://bucket/x.tar"], ["."]])
def test_tars_that_cannot_be_indexed(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no such tar|no tars in|only local files"):
        prepare.index(given, out=None, **RULES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_workers_give_the_same_pack_and_the_same_faults(cluster, tmp_path):
    images = str(class_folders(tmp_path / "images", per_class=80, size=64, channels=3))
    options = {"layout": "folder", "size": 64, "shard_mib": 1, "rule": "all=1"}
    alone = prepare.pack(images, tmp_path / "alone", **options)
    seen = []
    together = prepare.pack(
        images, tmp_path / "together", **options, workers=2, progress=lambda *done: seen.append(done)
    )
    assert len(alone.shards) > 2 and seen[-1] == (len(alone.shards),) * 2
    assert alone.fingerprint == together.fingerprint
    (tmp_path / "images" / "bee" / "999.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="^sample 'bee/999': not a whole image .*it$"):
        prepare.pack(images, tmp_path / "bad", **options, workers=2)
    together.path(1).write_bytes(together.path(1).read_bytes()[:5000])
    assert prepare.verify(tmp_path / "together", workers=2) == prepare.verify(tmp_path / "together")


def test_every_sample_of_a_source_is_packed_or_the_pack_fails(images, tmp_path):
    index = prepare.pack(images, tmp_path / "out", **FOLDER)
    assert sorted(index.key(row) for row in range(len(index))) == sorted(s.key for s in folder(images).samples)
