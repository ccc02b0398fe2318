"""Numbers one can trust: real data above its floor, shuffled labels at chance."""

from pathlib import Path

import pytest
from gloo import work_here
from small import small_config

from pipeline import checkpoint, evaluate, prepare, restore
from pipeline.config import dump
from pipeline.judging import score
from pipeline.learners.learner import Mode
from pipeline.noise import Noise, Purpose

OMNIGLOT = Path(__file__).parents[2] / "shared" / "data" / "omniglot"
PROTOTYPES = {
    "learner": {"kind": "prototype"},
    "model": {"kind": "conv4", "width": 16, "downsample": "max_pool", "features": "flatten"},
    "data": {"ways": 10, "queries": 2},
    "evaluate": {"ways": 3},
    "meta": {"steps": 40, "batch": 2, "optimizer": {"kind": "adam", "lr": 0.005}},
    "validation": {"every": 40, "episodes": 2},
    "checkpoint": {"every": 40},
}


def accuracy(run: Path, episodes: int) -> tuple[float, float]:
    subject = restore.subject_of(checkpoint.best(run))
    _, rows = evaluate.measure(subject, split="test", episodes=episodes, workers=1, modes=(Mode.INDUCTIVE,))
    found = score([row[Mode.INDUCTIVE].metrics["accuracy"] for row in rows])
    return found.mean, found.interval


def test_shuffled_labels_land_at_chance(tmp_path, glyphs_root):
    """Every image gets the class of another one, in all splits: nothing is to be learned, and nothing leaks."""
    files = sorted((glyphs_root.parent / "images").rglob("*.png"))
    order = Noise(0, Purpose.PACK).shuffled(list(range(len(files))))
    for number, image in enumerate(files):
        named = tmp_path / "images" / files[order[number]].relative_to(glyphs_root.parent / "images")
        named.parent.mkdir(parents=True, exist_ok=True)
        named.write_bytes(image.read_bytes())
    prepare.pack(
        str(tmp_path / "images"), tmp_path / "data", layout="folder", size=16, splits=glyphs_root.parent / "splits"
    )
    config = small_config(tmp_path / "data", tmp_path, **PROTOTYPES)
    work_here(dump(config), str(tmp_path / "run"))
    mean, interval = accuracy(tmp_path / "run", 200)
    assert abs(mean - 1 / 3) < 2 * interval


def test_the_same_run_on_true_labels_does_not(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path, **PROTOTYPES)
    work_here(dump(config), str(tmp_path / "run"))
    mean, _ = accuracy(tmp_path / "run", 100)
    assert mean > 0.7


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.skipif(not OMNIGLOT.exists(), reason=f"Omniglot is not at {OMNIGLOT}; the product never downloads it")
def test_omniglot_is_learned_far_above_its_floor(tmp_path):
    """A minute of the prototype recipe at a fourth of its width; mean-pixel prototypes reach 41.9 % at 5-way 1-shot."""
    index = prepare.pack(str(OMNIGLOT), tmp_path / "omniglot", layout="omniglot", size=28)
    assert len(index) == 32_460 and {name: len(ids) for name, ids in index.splits.items()} == {
        "train": 1028,
        "val": 172,
        "test": 423,
    }
    config = small_config(
        tmp_path / "omniglot",
        tmp_path,
        data={"ways": 20, "shots": 1, "queries": 5, "invert": True},
        model={"kind": "conv4", "width": 32, "downsample": "stride", "features": "flatten"},
        learner={"kind": "prototype"},
        meta={"steps": 150, "batch": 4, "optimizer": {"kind": "adam", "lr": 0.002}},
        evaluate={"ways": 5, "shots": 1, "queries": 15},
        validation={"every": 150, "episodes": 20},
        checkpoint={"every": 150},
        workers={"threads": 2},
    )
    work_here(dump(config), str(tmp_path / "run"))
    mean, interval = accuracy(tmp_path / "run", 200)
    assert mean - interval > 0.85
