"""Every config that is shipped trains for two meta-steps on the data that it names."""

import json
from pathlib import Path

import pytest

from pipeline import prepare, train
from pipeline.config import load

CONFIGS = Path(__file__).parents[1] / "configs" / "train"
REAL = Path(__file__).parents[2] / "shared" / "data"
FOLD = CONFIGS / "segmentation" / "coco20i-fold0"
PACKED = {
    "omniglot": {"layout": "omniglot", "size": 28},
    "coco_mini": {"layout": "masks", "size": 96, "splits": FOLD},
    "cifar_fs": {"layout": "cifar_fs", "size": None},
    "tiny_imagenet": {"layout": "folder", "size": None, "channels": 3, "rule": "train=0.64,val=0.16,test=0.2"},
}
"""How the head of a config says that real data are packed, by its `data.root`."""
LIE = {"cifar_fs": "cifar_fs_trainval", "tiny_imagenet": "tiny_imagenet_200x50/train.zip"}
"""Where they lie, if not under that name."""
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


ELSEWHERE = (
    *(f"detection/{name}" for name in ("bccd", "coco_mini", "logos", "scratch", "tfa")),
    *(f"verification/{name}" for name in ("lfw", "orl")),
)
"""Configs that tests of these tasks run."""


def on_real_data() -> list[Path]:
    """The configs whose data are packed here."""
    return [path for path in sorted(CONFIGS.rglob("*.yaml")) if Path(load(path).data.root).name in PACKED]


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)


def assert_trains(path: Path, root: Path, runs: Path, *more: str) -> None:
    done = train.fit(load(path, [f"data.root={root}", f"runs={runs}", *BRIEF, *more]))
    assert done.result["test"]["inductive"]


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("glyphs*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_on_embedded_data(path, glyphs_root, scenes_root, depth_root, tmp_path):
    root = scenes_root if path.parent.name in ("segmentation", "detection") else glyphs_root
    root = depth_root if path.stem == "glyphs-modalities" else root
    is_fixed = load(path).data.shape.kind == "fixed"
    assert_trains(path, root, tmp_path / "runs", *(FEW if is_fixed else ()))


def test_segmentation_from_scratch(scenes_root, tmp_path):
    path = CONFIGS / "segmentation" / "scratch.yaml"
    assert_trains(path, scenes_root, tmp_path / "runs", *FEW, "meta.steps=0", "learner.steps=2")


def test_every_config_is_run_by_a_test():
    run_here = [*CONFIGS.rglob("glyphs*.yaml"), *on_real_data(), CONFIGS / "segmentation" / "scratch.yaml"]
    assert sorted(CONFIGS.rglob("*.yaml")) == sorted({*run_here, *(CONFIGS / f"{name}.yaml" for name in ELSEWHERE)})


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A real data set as its configs want it packed, once."""
    made: dict[str, Path] = {}

    def pack(name: str) -> Path:
        if name == "glyphs" and name not in made:
            made[name] = prepare.pack("-", tmp_path_factory.mktemp(name) / "data", layout=name, size=28).root
        if name in made:
            return made[name]
        if not (source := REAL / LIE.get(name, name)).exists():
            pytest.skip(f"{name} is not at {source}; the product never downloads it")
        made[name] = tmp_path_factory.mktemp(name) / "data"
        prepare.pack(str(source), made[name], **PACKED[name])
        return made[name]

    return pack


@pytest.mark.slow
@pytest.mark.parametrize("path", on_real_data(), ids=lambda path: path.stem)
def test_on_real_data(path, packed, tmp_path):
    data = load(path).data
    parts = [{"root": str(packed(Path(part.root).name)), "weight": part.weight} for part in data.mixture]
    assert_trains(path, packed(Path(data.root).name), tmp_path / "runs", f"data.mixture={json.dumps(parts)}")
