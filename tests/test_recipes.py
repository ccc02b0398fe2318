"""Every config that is shipped trains for two meta-steps on the data that it names."""

import json
import zipfile
from pathlib import Path

import pytest

from pipeline import prepare, train
from pipeline.config import load

CONFIGS = Path(__file__).parents[1] / "configs" / "train"
REAL = Path(__file__).parents[2] / "shared" / "data"
FOLD = CONFIGS / "segmentation" / "coco20i-fold0"
PACKED = {
    "omniglot": {"layout": "omniglot", "size": 28},
    "cifar_fs": {"layout": "folder", "size": 32, "channels": 3},
    "coco_mini": {"layout": "masks", "size": 96, "splits": FOLD},
}
"""How the head of a config says that real data are packed, by its `data.root`; other tasks have theirs beside their tests."""
BRIEF = (
    "meta.steps=2",
    "meta.batch=2",
    "validation.every=2",
    "validation.episodes=2",
    "evaluate.episodes=2",
    "checkpoint.every=2",
    "engine.mode=loop",
    "workers.count=1",
)
FEW = tuple(f"{section}.{key}" for section in ("data", "evaluate") for key in ("ways=2", "queries=2", "shots=1"))
"""Episodes that fit the few classes of the embedded data that tests share."""


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)


def brief(path: Path, root: Path, runs: Path, *more: str) -> None:
    done = train.fit(load(path, [f"data.root={root}", f"runs={runs}", *BRIEF, *more]))
    assert done.result["test"]["inductive"]


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("glyphs*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_on_embedded_data(path, glyphs_root, scenes_root, tmp_path):
    root = scenes_root if path.parent.name in ("segmentation", "detection") else glyphs_root
    is_fixed = load(path).data.shape.kind == "fixed"
    brief(path, root, tmp_path / "runs", *(FEW if is_fixed else ()))


def source_of(name: str, place: Path) -> Path:
    """Where the images of a data set are; those of CIFAR-FS are two zips, a split each, which are unpacked into `place`."""
    stored = REAL / {"cifar_fs": "cifar_fs_trainval"}.get(name, name)
    if not stored.exists():
        pytest.skip(f"{name} is not at {stored}; the product never downloads it")
    if name != "cifar_fs":
        return stored
    for split in ("train", "val"):
        with zipfile.ZipFile(stored / f"meta_{split}.zip") as whole:
            whole.extractall(place / split)
    return place


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A real data set as its configs want it packed, once."""
    made: dict[str, Path] = {}

    def pack(name: str) -> Path:
        if name == "glyphs" and name not in made:
            made[name] = prepare.pack("-", tmp_path_factory.mktemp(name) / "data", layout=name, size=28).root
        if name in made:
            return made[name]
        source = source_of(name, tmp_path_factory.mktemp(name))
        made[name] = tmp_path_factory.mktemp(name) / "data"
        prepare.pack(str(source), made[name], **PACKED[name])
        return made[name]

    return pack


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.rglob("*.yaml")) if Path(load(path).data.root).name in PACKED],
    ids=lambda path: path.stem,
)
def test_on_real_data(path, packed, tmp_path):
    data = load(path).data
    parts = [{"root": str(packed(Path(part.root).name)), "weight": part.weight} for part in data.mixture]
    brief(path, packed(Path(data.root).name), tmp_path / "runs", f"data.mixture={json.dumps(parts)}")
