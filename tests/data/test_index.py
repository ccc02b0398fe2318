"""The index says what is in the tars, whatever tars the samples lie in, and refuses to open when it cannot be right."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from tars import LABELS, RULES, class_folders, good_members, sample_members, write_tar

from pipeline import prepare
from pipeline.data.index import FORMAT, Index
from pipeline.data.shards import Shards
from pipeline.errors import InputError


@pytest.fixture
def root(tmp_path):
    write_tar(tmp_path / "a.tar", good_members(4))
    write_tar(tmp_path / "b.tar", [member for n in range(4, 9) for member in sample_members(n)])
    prepare.index([tmp_path], out=None, rule="train=0.5,test=0.5")
    return tmp_path


def test_accessors(root):
    index = Index.open(root)
    assert len(index) == 9 and index.store == "encoded" and index.class_names == list(LABELS)
    assert [index.key(row) for row in range(9)] == [f"s{n:03d}" for n in range(9)]
    assert index.counts.tolist() == [3, 3, 3] and index.counts.dtype == np.int64
    assert index.postings(1).tolist() == [1, 4, 7]
    assert index.shard_of.tolist() == [0] * 4 + [1] * 5 and index.shard_of.dtype == np.int32
    assert index.shape(0) == (6, 6, 1)
    assert [shard.samples for shard in index.shards] == [4, 5]
    ids = np.concatenate(list(index.splits.values()))
    assert sorted(ids.tolist()) == [0, 1, 2] and ids.dtype == np.int32


def test_columns_are_views_of_the_mapped_file(root):
    before = pa.total_allocated_bytes()
    index = Index.open(root)
    assert pa.total_allocated_bytes() == before
    for view in (index.shard_of, index.postings(0), *index._members["image"]):
        assert not view.flags.owndata and not view.flags.writeable


def test_resharding_keeps_rows_and_episodes_apart_from_the_data_set_hash(tmp_path):
    source = str(class_folders(tmp_path / "in", per_class=9))
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    options = {"layout": "folder", "size": None, "rule": "train=0.5,test=0.5"}
    prepare.pack(source, wide, **options)
    members = {row: Shards(Index.open(wide)).read(row, "image") for row in range(27)}
    first = Index.open(wide)
    # The same samples dealt to other tars in another order.
    content = [(f"{first.key(r)}.{ext}", Shards(first).read(r, role))
               for r in reversed(range(27)) for role, ext in (("json", "json"), ("image", "npy"))]  # fmt: skip
    write_tar(narrow / "x.tar", content[:20])
    write_tar(narrow / "y.tar", content[20:])
    prepare.index([narrow], out=None, rule="train=0.5,test=0.5")
    second = Index.open(narrow)
    assert [first.key(r) for r in range(27)] == [second.key(r) for r in range(27)]
    assert all((first.postings(c) == second.postings(c)).all() for c in range(3))
    assert {r: Shards(second).read(r, "image") for r in range(27)} == members
    assert first.splits.keys() == second.splits.keys()
    assert first.fingerprint != second.fingerprint


def test_rows_are_golden(root):
    index = Index.open(root)
    assert {name: ids.tolist() for name, ids in index.splits.items()} == {"train": [0, 1], "test": [2]}
    assert index.postings(0).tolist() == [0, 3, 6] and index.postings(2).tolist() == [2, 5, 8]


def test_no_index(tmp_path):
    with pytest.raises(InputError, match="no index here.*run metashard"):
        Index.open(tmp_path)


def edit(root, **changes):
    path = root / "index" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_format_is_refused(root):
    edit(root, format=FORMAT + 1)
    with pytest.raises(InputError, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        Index.open(root)


@pytest.mark.parametrize(
    "changes",
    [{"fingerprint": "0"}, {"samples": 8}, {"splits": ["test", "train"]}, {"splits": None}, {"files": {}},
     {"shards": [{}]}, {"shards": []}, {"roles": ["x"]}, {"dtype": "what"}],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_is_refused(root, changes):
    edit(root, **changes)
    with pytest.raises(InputError, match="index is damaged"):
        Index.open(root)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\0\xff"])
def test_a_torn_manifest_is_refused(root, text):
    (root / "index" / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="manifest"):
        Index.open(root)


@pytest.mark.parametrize("name", ["samples", "postings", "classes"])
def test_damaged_tables_are_refused(root, name):
    path = root / "index" / f"{name}.arrow"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(InputError, match=re.escape(f"{name}.arrow has {len(data) - 1} bytes, not {len(data)}")):
        Index.open(root)
    path.write_bytes(bytes(len(data)))
    with pytest.raises(InputError, match="index is damaged"):
        Index.open(root)
    path.unlink()
    with pytest.raises(InputError, match="index is damaged"):
        Index.open(root)


def test_shards_of_another_size_are_refused(root):
    data = (root / "b.tar").read_bytes()
    (root / "b.tar").write_bytes(data[:-512])
    with pytest.raises(InputError, match=f"b.tar: {len(data) - 512} bytes, the index says {len(data)}"):
        Index.open(root)
    (root / "b.tar").unlink()
    with pytest.raises(InputError, match="b.tar: shard cannot be opened"):
        Index.open(root)


def test_a_key_in_two_tars_is_refused(root):
    write_tar(root / "c.tar", sample_members(3) + sample_members(20))
    with pytest.raises(InputError, match="c.tar: key 's003' is also in a.tar"):
        prepare.index([root], out=None, **RULES)


def test_an_index_written_again_replaces_the_old_one_while_that_is_open(root):
    old = Index.open(root)
    write_tar(root / "c.tar", sample_members(20, label="dog"))
    new = prepare.index([root], out=None, **RULES)
    assert (len(old), len(new)) == (9, 10) and old.key(8) == new.key(8)
    assert new.class_names == [*LABELS, "dog"] and new.fingerprint != old.fingerprint


def test_the_fingerprint_covers_the_splits(root):
    first = Index.open(root).fingerprint
    assert prepare.index([root], out=None, rule="train=0.5,val=0.5").fingerprint != first
    assert prepare.index([root], out=None, rule="train=0.5,test=0.5").fingerprint == first
