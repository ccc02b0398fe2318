"""Runs that learn from several modalities, fused early or late, some of them missing; and what is refused."""

import pytest
import torch
from small import small_config

from pipeline import build, checkpoint, embed, evaluate, prepare, restore, train
from pipeline.config import parse
from pipeline.data.images import encode_png
from pipeline.data.index import Index
from pipeline.data.shards import Shards
from pipeline.errors import InputError
from pipeline.frozen import frozen_encoder
from pipeline.learners.learner import Mode
from pipeline.schema.run import RunConfig

BOTH = ["image", "depth"]
VIT = {"kind": "vit", "width": 8, "depth": 1, "heads": 2, "patch": 8}


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)


def config(root, runs, **sections):
    data = {"root": str(root), "ways": 3, "shots": 1, "queries": 2, "modalities": BOTH, **sections.pop("data", {})}
    return small_config(root, runs, data=data, **sections)


@pytest.mark.parametrize("fusion", ["early", "late"])
@pytest.mark.parametrize(
    "model",
    [{}, {"kind": "resnet12", "width": 4, "drop": 0.1}, VIT, {"kind": "rnn", "width": 4}],
    ids=["conv4", "resnet12", "vit", "rnn"],
)
def test_every_encoder_of_images_fuses(depth_root, tmp_path, fusion, model):
    kind = {"kind": "conv4", "width": 6, "downsample": "stride", "features": "mean"}
    made = build.learner(
        config(depth_root, tmp_path, model={**(model or kind), "fusion": fusion}), Index.open(depth_root)
    )
    names = {name.split(".")[2] for name, _ in made.named_parameters() if name.startswith("model.encoder.")}
    assert ({"image", "depth"} == names) == (fusion == "late")


def learned(root, runs, **sections) -> tuple[RunConfig, dict]:
    asked = config(root, runs, **sections)
    done = train.fit(asked)
    assert (done.folder / "pictures" / "episode-best.png").stat().st_size > 1000
    return asked, done.result["test"]["inductive"]


LATE = {"kind": "conv4", "width": 6, "downsample": "stride", "features": "mean", "fusion": "late"}
GRADIENT = {"kind": "gradient", "rule": {"kind": "sgd", "lr": 0.1}, "steps": 1}


@pytest.mark.parametrize(
    ("model", "learner"),
    [
        ({"fusion": "early"}, {"kind": "prototype"}),
        (LATE, {"kind": "prototype"}),
        ({"fusion": "early"}, GRADIENT),
        (LATE, {**GRADIENT, "adapts": r"encoder\.depth\..*|head\..*"}),
        ({"fusion": "early"}, {"kind": "film", "hidden": 4}),
    ],
    ids=["early-prototype", "late-prototype", "early-maml", "late-adapts-depth", "early-film"],
)
def test_runs_of_several_modalities(depth_root, tmp_path, model, learner):
    augment = {"crop": 0.2, "colour": 0.2, "cutout": 0.2}
    _, found = learned(depth_root, tmp_path, model=model, learner=learner, data={"augment": augment})
    assert 0.1 < found["accuracy"]["mean"] <= 1


def lacking(root, place):
    """The data set with every third sample's depth left out, as class folders packed anew."""
    index = Index.open(root)
    shards = Shards(index)
    for row in range(len(index)):
        base = place / "images" / index.key(row)
        base.parent.mkdir(parents=True, exist_ok=True)
        base.with_suffix(".png").write_bytes(encode_png(shards.plane(row, "image")))
        if row % 3:
            base.with_suffix(".depth.png").write_bytes(encode_png(shards.plane(row, "depth")))
    (place / "splits").mkdir()
    for split, ids in index.splits.items():
        (place / "splits" / f"{split}.txt").write_text("\n".join(index.class_names[one] for one in ids))
    asked = {"layout": "folder", "size": None, "splits": place / "splits", "modalities": "image,depth"}
    prepare.pack(str(place / "images"), place / "data", **asked)
    return place / "data"


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_all_modalities_are_normalised(depth_root, tmp_path, fusion):
    """Each channel by its own statistics; where samples may lack some, zeros would no longer say so."""
    asked = {"model": {**LATE, "fusion": fusion}, "learner": {"kind": "prototype"}, "data": {"normalise": "measured"}}
    done = train.fit(config(depth_root, tmp_path, **asked))
    kept = checkpoint.load(checkpoint.best(done.folder)).learner
    assert kept["model.standard.mean"].shape == (2,) and kept["model.standard.mean"].min() > 0
    asked["data"]["missing"] = "mask"
    with pytest.raises(InputError, match="would take away the zeros of data.missing = mask"):
        train.check(config(depth_root, tmp_path, **asked))


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_runs_where_modalities_are_missing(depth_root, tmp_path, fusion, capsys):
    root = lacking(depth_root, tmp_path)
    with pytest.raises(InputError, match="has no depth; take it out, or set data.missing = mask"):
        learned(root, tmp_path / "runs", model={**LATE, "fusion": fusion})
    asked, found = learned(root, tmp_path / "runs", model={**LATE, "fusion": fusion}, data={"missing": "mask"})
    assert 0.1 < found["accuracy"]["mean"] <= 1
    index = Index.open(root)
    learner, reader = build.learner(asked, index), build.reader(asked, index)
    episode = reader.episode(build.sampler(asked, index, "test").draw(0, 0))
    assert episode.query.inputs.shape[1] == 3
    # Law 8: alone a query is predicted as among others.
    predict = learner.adapt(episode.support, episode.ways, mode=Mode.INDUCTIVE)
    with torch.no_grad():
        torch.testing.assert_close(predict(episode.query.inputs)[:1], predict(episode.query.inputs[:1]))


def test_a_run_is_evaluated_on_data_that_have_its_modalities(depth_root, glyphs_root, tmp_path):
    done = train.fit(config(depth_root, tmp_path, model=LATE, learner={"kind": "prototype"}))
    best = checkpoint.best(done.folder)
    subject = restore.Subject(dict(checkpoint.load(best).config), str(best))
    found = evaluate.evaluate(subject._replace(data=str(depth_root)), split="test", episodes=4, workers=1)
    assert 0 <= found.as_json()["inductive"]["accuracy"]["mean"] <= 1
    with pytest.raises(
        InputError, match="has no modality 'depth', only image; change data.modalities, or pack or index it"
    ):
        evaluate.evaluate(subject._replace(data=str(glyphs_root)), split="test", episodes=4, workers=1)


def test_features_of_several_modalities_are_embedded(depth_root, tmp_path):
    """The hash of an encoder knows what it reads."""
    done = train.fit(config(depth_root, tmp_path, model=LATE, learner={"kind": "cosine"}))
    path = checkpoint.best(done.folder)
    index = embed.embed(path, tmp_path / "features")
    assert index.shape(0) == (1, 1, 12) and len(index) == len(Index.open(depth_root))
    asked = parse(dict(checkpoint.load(path).config), "test")
    first = frozen_encoder(asked, Index.open(depth_root), path)
    turned = asked.model_copy(update={"data": asked.data.model_copy(update={"modalities": ("depth", "image")})})
    assert frozen_encoder(turned, Index.open(depth_root), path).sha256 != first.sha256 == index.encoder


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"modalities": ["image", "heat"]}}, "has no modality 'heat', only image, depth; change data.modalities"),
        ({"data": {"modalities": ["image"]}, "model": LATE}, "model.fusion = late: data.modalities names one modality"),
        ({"model": {**LATE, "features": "map"}}, "model.features = map is for one encoder, and model.fusion = late has several"),
        ({"model": {**LATE, "warp": True}}, "model.warp is for one encoder"),
        ({"model": {**LATE, "context": 4}}, "model.context is for one encoder"),
        ({"learner": {"kind": "supervised"}}, "data.modalities = image, depth: learner.kind = supervised streams images alone"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(depth_root, tmp_path, sections, said):
    with pytest.raises(InputError, match=said):
        train.fit(config(depth_root, tmp_path, **sections))


@pytest.mark.parametrize("names", [[], ["image", "image"]])
def test_modalities_are_named_once(names):
    tree = {"name": "x", "data": {"root": "x", "modalities": names}, "learner": {"kind": "prototype"}}
    with pytest.raises(InputError, match="data.modalities.*input should name modalities, each once, as .image, depth."):
        parse(tree, "test")


def test_fusion_is_of_encoders_of_images():
    tree = {
        "name": "x",
        "data": {"root": "x"},
        "model": {"kind": "unet", "fusion": "late"},
        "learner": {"kind": "prototype"},
    }
    with pytest.raises(InputError, match="model.fusion: no such key where kind is unet"):
        parse(tree, "test")
