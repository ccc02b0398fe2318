"""Every config of detection takes a few steps on the data it is for, packed as it says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline import config, prepare, train
from pipeline.data.importers.coco import coco
from pipeline.data.importers.logos import logos
from pipeline.data.importers.voc import voc
from pipeline.data.index import Index

DATA = Path(__file__).parents[2].parent / "shared" / "data"
CONFIGS = Path(__file__).parents[2] / "configs" / "train" / "detection"
FEW = ["meta.steps=2", "meta.batch=1", "validation.episodes=2", "validation.every=2", "checkpoint.every=2",
       "evaluate.episodes=2", "workers.count=1", "workers.threads=1", "engine.mode=loop"]  # fmt: skip
BCCD = {"train": ["RBC"], "val": ["WBC"], "test": ["Platelets"]}


def source_of(name: str) -> str:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip("the data set is not on this machine")
    return str(folder)


def few_steps(name: str, root: Path, runs: Path, monkeypatch, *overrides: str) -> dict:
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)
    chosen = config.load(CONFIGS / name, [f"data.root={root}", f"runs={runs}", *FEW, *overrides])
    done = train.fit(chosen)
    assert (done.folder / "pictures" / "episode-worst.png").stat().st_size > 1000
    return done.result["test"]["inductive"]


def lists(place: Path, splits: dict[str, list[str]]) -> Path:
    place.mkdir()
    for split, names in splits.items():
        (place / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return place


def test_scenes(scenes_root, tmp_path, monkeypatch):
    for name, options in (("glyphs.yaml", ()), ("tfa.yaml", ()), ("scratch.yaml", ("learner.steps=2", "meta.steps=0"))):
        found = few_steps(name, scenes_root, tmp_path / "runs", monkeypatch, *options)
        assert 0 <= found["ap50"]["mean"] <= 1 and 0 <= found["coco_map"]["mean"] <= 1


@pytest.mark.slow
def test_logos(tmp_path, monkeypatch):
    """27 logos of about 30 images; seven of them, by the rule of the config, are for testing."""
    source = source_of("flickr_logos_27")
    read = logos(source)
    assert len({sample.label for sample in read.samples}) == 27 and len(read.samples) > 750
    made = prepare.pack(source, tmp_path / "data", layout="logos", size=64, rule=RULE, seed=RULE_SEED)
    assert [len(made.splits[split]) for split in ("train", "val", "test")] == [16, 4, 7]
    few_steps("logos.yaml", tmp_path / "data", tmp_path / "runs", monkeypatch)


RULE, RULE_SEED = "train=0.6,val=0.14,test=0.26", 9


@pytest.mark.slow
def test_blood_cells(tmp_path, monkeypatch):
    source = source_of("bccd")
    read = voc(source)
    counts = Counter(sample.label for sample in read.samples)
    boxes = sum(len(meta["boxes"]) for meta in {s.key.split("/")[0]: s.meta() for s in read.samples}.values())
    assert counts.keys() == {"RBC", "WBC", "Platelets"} and 4_800 < boxes <= 4_888
    prepare.pack(source, tmp_path / "data", layout="voc", size=64, splits=lists(tmp_path / "splits", BCCD))
    few_steps("bccd.yaml", tmp_path / "data", tmp_path / "runs", monkeypatch)


@pytest.mark.slow
def test_part_of_coco(tmp_path, monkeypatch):
    source = source_of("coco_mini")
    counts = Counter(sample.label for sample in coco(source, min_area=0.01).samples)
    enough = sorted(name for name, count in counts.items() if count >= 6)
    assert len(enough) > 40
    splits = {"train": enough[8:], "val": enough[4:8], "test": enough[:4]}
    options = {"layout": "coco", "size": 64, "splits": lists(tmp_path / "splits", splits)}
    prepare.pack(source, tmp_path / "data", min_area=0.01, **options)
    assert not Index.open(tmp_path / "data").has(0, "mask")
    few_steps("coco_mini.yaml", tmp_path / "data", tmp_path / "runs", monkeypatch)
