"""Features of a frozen encoder as a data set: the same samples, episodes and predictions as on images; misfits are refused."""

import io
import json
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
from gloo import work_here
from safetensors.torch import load_file, save_file
from small import small_config
from tars import npy, sample_members, write_tar

from pipeline import build, checkpoint, drawing, evaluate, prepare, restore, show
from pipeline.build_encoder import encoder as make_encoder
from pipeline.config import dump
from pipeline.data.index import Index
from pipeline.data.sampler import Sampler
from pipeline.data.shapes import Shape
from pipeline.data.shards import Shards
from pipeline.embed import embed
from pipeline.errors import InputError
from pipeline.learners.learner import Mode
from pipeline.models.norm import Given
from pipeline.teacher import taught

FEW = {"steps": 2, "batch": 2}
HEAD = {"kind": "gradient", "steps": 2, "adapts": r"head\..*"}


def trained(place, root, **sections):
    """The best checkpoint of a short run."""
    work_here(dump(small_config(root, place, **{"meta": FEW, **sections})), str(place / "run"))
    return checkpoint.best(place / "run")


@pytest.fixture(scope="module")
def ridge(tmp_path_factory, glyphs_root):
    return trained(tmp_path_factory.mktemp("ridge"), glyphs_root, learner={"kind": "ridge"}, data={"invert": True})


@pytest.fixture(scope="module")
def features(tmp_path_factory, ridge) -> Index:
    return embed(ridge, tmp_path_factory.mktemp("features") / "out")


@pytest.fixture(scope="module")
def others(tmp_path_factory, glyphs_root) -> Index:
    """Features of another encoder."""
    place = tmp_path_factory.mktemp("others")
    return embed(trained(place, glyphs_root, learner={"kind": "prototype"}), place / "out")


def on(index, tmp_path, **sections):
    return small_config(
        index.root, tmp_path, **{"model": {"kind": "features"}, "learner": HEAD, "meta": FEW, **sections}
    )


def test_features_are_a_data_set_like_any_other(features, glyphs_root, ridge):
    """Keys, classes, splits and rows are the images'; a plain reader finds float32 arrays; a feature is the encoder's."""
    images = Index.open(glyphs_root)
    assert prepare.verify(features.root) == []
    assert [features.key(row) for row in range(len(features))] == [images.key(row) for row in range(len(images))]
    assert features.class_names == images.class_names and features.splits.keys() == images.splits.keys()
    assert all((features.splits[name] == ids).all() for name, ids in images.splits.items())
    assert all((features.postings(n) == images.postings(n)).all() for n in range(len(images.class_names)))
    with tarfile.open(features.path(0)) as plain:
        members = [name for name in plain.getnames() if name.endswith(".npy")]
        first = np.load(io.BytesIO(plain.extractfile(members[0]).read()), allow_pickle=False)
    assert len(members) == len(images) and (first.shape, first.dtype) == (features.shape(0), np.float32)
    assert features.shape(0) == (1, 1, 6)
    found = restore.restored(restore.subject_of(ridge))
    reader = build.reader(found.config, found.index)
    inputs = reader.inputs([3], [reader.stored(3)], [0])
    with torch.no_grad():
        expected = found.learner.model(inputs, Given(found.learner.running.statistics()))
    np.testing.assert_allclose(Shards(features).image(3).ravel(), expected.numpy().ravel(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "model"), [("ridge", {}), ("prototype", {}), ("supervised", {}), ("relation", {"features": "map"})]
)
def test_episodes_and_predictions_are_those_for_images(tmp_path, glyphs_root, kind, model):
    path = trained(tmp_path, glyphs_root, learner={"kind": kind}, model=model, data={"size": 12})
    made = embed(path, tmp_path / "out")
    each = [restore.restored(restore.subject_of(path, data=data)) for data in (None, made.root)]
    for number in range(4):
        keys, predictions = [], []
        for found in each:
            drawn = build.sampler(found.config, found.index, "test").draw(0, number)
            episode = build.reader(found.config, found.index, found.channels).episode(drawn)
            keys.append([found.index.key(row) for row in drawn.rows])
            adapted = found.learner.adapt(episode.support, episode.ways, mode=Mode.INDUCTIVE)
            predictions.append(adapted(episode.query.inputs))
        assert keys[0] == keys[1]
        assert torch.allclose(*predictions, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "learner", [HEAD, {"kind": "ridge"}, {"kind": "metanet"}, {"kind": "supervised", "samples": 8}]
)
def test_learners_train_on_features_and_know_whose_they_are(features, others, glyphs_root, tmp_path, learner):
    path = trained(tmp_path, features.root, model={"kind": "features"}, learner=learner)
    found = evaluate.evaluate(restore.subject_of(path), split="test", episodes=4, workers=1)
    assert found.scores[Mode.INDUCTIVE] == found.scores[Mode.TRANSDUCTIVE] and found.step > 0
    subject = restore.subject_of(path)
    drawn = drawing.draw(
        path.parent.parent, subject, *evaluate.measure(subject, split="test", episodes=4, workers=1), floor=0.3
    )
    assert drawn and not [picture for picture in drawn if picture.name.startswith("episode")]
    for data, holds in ((others.root, f"features of encoder {others.encoder[:12]}"), (glyphs_root, "holds images")):
        with pytest.raises(InputError, match=f"{holds}.*trained on features of encoder {features.encoder[:12]}"):
            restore.restored(restore.subject_of(path, data=data))
    # Where the features it was trained on are gone, the checkpoint itself knows.
    gone = restore.subject_of(path, data=others.root)
    gone.config["data"]["root"] = "/nowhere"
    with pytest.raises(InputError, match=f"learned on features of encoder {features.encoder[:12]}"):
        restore.restored(gone)


@pytest.fixture
def in_three_tars(tmp_path) -> Index:
    for number in range(3):
        members = [m for n in range(12) for m in sample_members(100 * number + n)]
        write_tar(tmp_path / "images" / f"{number}.tar", members)
    return prepare.index([tmp_path / "images"], out=None, rule="train=1")


@pytest.fixture
def weights(tmp_path, in_three_tars):
    """An encoder without a norm in a file of its own, and a config that says what it is."""
    config = small_config(in_three_tars.root, tmp_path, model={"kind": "rnn", "width": 3}, data={"ways": 2})
    (tmp_path / "run.yaml").write_text(json.dumps(dump(config)))
    encoder = make_encoder(config, in_three_tars)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


def test_mirrored_features_are_those_of_another_encoder(ridge, features, tmp_path):
    made = embed(ridge, tmp_path / "both", mirror=True)
    assert made.encoder != features.encoder and made.shape(0) == features.shape(0)
    assert made.manifest["origin"]["encoder"]["mirror"] and "mirror" not in features.manifest["origin"]["encoder"]
    one, two = (Shards(index).image(0) for index in (features, made))
    assert not np.allclose(one, two)


def test_an_interrupted_embedding_goes_on_where_it_stopped(in_three_tars, weights, tmp_path):
    made = partial(embed, weights, config=tmp_path / "run.yaml")
    out = tmp_path / "out"

    def stop(done, total):
        if done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(out, progress=stop)
    with pytest.raises(InputError, match="no index here"):
        Index.open(out)
    first = out / "shard-000000.tar"
    assert [path.name for path in out.glob("*.tar")] == [first.name]
    written, seen = first.stat().st_mtime_ns, []
    resumed = made(out, progress=lambda *done: seen.append(done))
    assert first.stat().st_mtime_ns == written and seen[0] == (12, 36) and seen[-1] == (36, 36)
    assert resumed.fingerprint == made(tmp_path / "whole").fingerprint
    for lanes in (1, 3):
        samplers = [
            Sampler(index, "train", Shape(2, 1, 1), seed=0, turns=False, lanes=lanes)
            for index in (in_three_tars, resumed)
        ]
        for number in range(6):
            one, other = (sampler.draw(0, number) for sampler in samplers)
            assert np.array_equal(one.rows, other.rows)
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    with pytest.raises(InputError, match=f"{out}: holds a pack of other images or options, or another encoder's"):
        made(out)


def test_what_cannot_be_embedded_is_one_line(tmp_path, glyphs_root, features, ridge, weights):
    def refused(target, words, **options):
        with pytest.raises(InputError, match=words) as caught:
            embed(target, tmp_path / "refused", **options)
        assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "refused").exists()

    maml = trained(tmp_path / "maml", glyphs_root)
    refused(maml, "embed: running.block0_mean is not in .*start from a run that keeps norm statistics")
    refused(trained(tmp_path / "film", glyphs_root, learner={"kind": "film"}), "film is another one for every support")
    refused(trained(tmp_path / "head", features.root, model={"kind": "features"}, learner=HEAD), "has no encoder")
    refused(ridge, "holds features of encoder", data=features.root)
    refused(weights, "values without a config; give --config")
    weights.write_bytes(b"x")
    refused(weights, "embed = .*no safetensors file", config=tmp_path / "run.yaml")
    refused(ridge, "runs and checkpoints have their own", config=tmp_path / "run.yaml")
    refused(tmp_path / "nothing", "neither a run under")
    members = [("a.npy", npy(np.zeros((16, 16, 2), np.uint8))), ("a.json", b'{"class": "x"}')]
    write_tar(tmp_path / "two" / "x.tar", members)
    prepare.index([tmp_path / "two"], out=None, rule="train=1")
    refused(ridge, "images have 2 channels and the model takes 1", data=tmp_path / "two")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="not empty and holds no pack"):
        embed(ridge, tmp_path / "mine")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"kind": "rnn"}}, "holds features, and model.kind = rnn takes images; set model.kind = features"),
        ({"data": {"rotations": True}}, "data.rotations is for images"),
        ({"data": {"size": 9}}, "data.size is for images"),
        (
            {"learner": {"kind": "prototype"}},
            "prototype has nothing to meta-train on features .* set meta.steps = 0, or another learner",
        ),
        ({"learner": {"kind": "relation"}}, "compares feature maps"),
        ({"learner": {"kind": "film"}}, "modulates norm layers, and the model has none"),
    ],
)
def test_what_does_not_go_with_features_is_refused(features, tmp_path, sections, words):
    with pytest.raises(InputError, match=words):
        build.learner(on(features, tmp_path, **sections), features)


def test_images_do_not_go_where_features_are_meant(features, others, glyphs_root, ridge, tmp_path):
    images = Index.open(glyphs_root)
    with pytest.raises(InputError, match="holds images, not features; make them with metashard embed"):
        build.learner(on(images, tmp_path), images)
    with pytest.raises(InputError, match=f"features of encoder {others.encoder[:12]}.*metashard embed"):
        restore.restored(restore.subject_of(ridge, data=others.root))
    maml = restore.subject_of(trained(tmp_path, glyphs_root), data=features.root)
    with pytest.raises(InputError, match="with learner.kind = gradient the images themselves are needed"):
        restore.restored(maml)
    with pytest.raises(InputError, match="holds features, whose index metashard embed makes"):
        prepare.index([features.root], out=None, rule="train=1")
    with pytest.raises(InputError, match="holds features, which are no pictures"):
        show.show(features.root, tmp_path / "x.png")
    taught_by = {"teacher": {"start": str(ridge)}}
    with pytest.raises(InputError, match="1 channels, inverted, the student's: 6 features of encoder"):
        taught(config := on(features, tmp_path, **taught_by), features, build.learner(config, features))
