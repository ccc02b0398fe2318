"""Splits from files and from a hash rule."""

import pytest

from pipeline.data.splits import by_rule, check, faults, read_files
from pipeline.errors import InputError

CLASSES = [f"class{number}" for number in range(400)]


def test_files_name_splits(tmp_path):
    (tmp_path / "train.txt").write_text("a b\n\n  c\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("d", encoding="utf-8")
    assert read_files(tmp_path) == {"test": ["d"], "train": ["a b", "c"]}


def test_absent_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no text files"):
        read_files(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        read_files(tmp_path / "none")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_files(tmp_path)


def test_all_faults_are_listed():
    splits = {"train": ["a", "b", "a"], "val": [], "test": ["b", "watr"]}
    found = faults(splits, ["a", "b", "water"], "here")
    assert len(found) == 4 and all(line.startswith("here: ") for line in found)
    assert "class 'a' is twice in split 'train'" in found[0]
    assert "split 'val' is empty" in found[1]
    assert "class 'b' is in splits 'train' and 'test'" in found[2]
    assert "did you mean 'water'?" in found[3]
    with pytest.raises(InputError, match=r"twice.*\(and 3 more such faults\)"):
        check(splits, ["a", "b", "water"], "here")


def test_rule_gives_every_class_one_split_in_the_right_shares():
    splits = by_rule("train=0.64,val=0.16,test=0.2", CLASSES, seed=0)
    assert sorted(sum(splits.values(), [])) == sorted(CLASSES)
    assert [len(names) / 400 for names in splits.values()] == pytest.approx([0.64, 0.16, 0.2], abs=0.06)
    assert splits != by_rule("train=0.64,val=0.16,test=0.2", CLASSES, seed=1)


def test_rule_keeps_old_classes_in_place_when_data_grows():
    old, new = (by_rule("train=0.5,test=0.5", names, seed=3) for names in (CLASSES[:200], CLASSES))
    assert all(set(old[split]) <= set(new[split]) for split in old)


def test_rule_is_golden():
    splits = by_rule("train=0.6,val=0.2,test=0.2", [f"c{i}" for i in range(10)], seed=0)
    assert splits == {"train": ["c0", "c2", "c4"], "val": ["c1", "c5", "c7", "c8", "c9"], "test": ["c3", "c6"]}


@pytest.mark.parametrize("rule", ["", "train", "train=1,test=1", "train=0,test=1", "a=0.5,a=0.5", "train=-1,test=2"])
def test_bad_rules_are_refused(rule):
    with pytest.raises(InputError, match="adding up to 1"):
        by_rule(rule, CLASSES, seed=0)


def test_a_split_left_empty_is_refused():
    with pytest.raises(InputError, match="leaves split 'test' without any of the 2 classes"):
        by_rule("train=0.999,test=0.001", CLASSES[:2], seed=0)
