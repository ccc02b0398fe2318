"""Images that are normalised: by statistics of the training split, measured once, kept with the checkpoint, the same for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gloo import on_ranks, work_here
from small import small_config

from pipeline import build, checkpoint, restore, start
from pipeline.config import dump
from pipeline.data import moments as measuring
from pipeline.data.index import Index
from pipeline.data.moments import moments
from pipeline.errors import InputError
from pipeline.frozen import frozen_encoder
from pipeline.learners.learner import Mode
from pipeline.models.standard import Standard
from pipeline.spool import history
from pipeline.teacher import taught

PROTOTYPE = {"learner": {"kind": "prototype"}, "meta": {"steps": 4}}


def config_for(root, runs, normalise: object = "measured", **sections):
    return small_config(
        root, runs, **{**PROTOTYPE, **sections, "data": {"normalise": normalise, **sections.get("data", {})}}
    )


@pytest.fixture(scope="module")
def index(glyphs_root) -> Index:
    return Index.open(glyphs_root)


@pytest.fixture(scope="module")
def run(tmp_path_factory, glyphs_root):
    """A run that was trained on images normalised by what was measured."""
    place = tmp_path_factory.mktemp("normalised")
    work_here(dump(config_for(glyphs_root, place)), str(place / "run"))
    return place / "run"


def of(learner: torch.nn.Module) -> Standard:
    found = start.standard_of(learner)
    assert found is not None
    return found


def all_images(index: Index, split: str) -> np.ndarray:
    reader = build.reader(small_config(index.root, index.root), index)
    rows = np.concatenate([index.postings(int(name)) for name in index.splits[split]]).tolist()
    return reader.inputs(rows, map(reader.stored, rows), [0] * len(rows)).double().numpy()


def test_moments_are_those_of_the_training_split_alone(index, tmp_path, monkeypatch):
    """In one batch or in many, by all images where there are few; a part of them is near."""
    reader = build.reader(config_for(index.root, tmp_path), index)
    pixels = all_images(index, "train")
    found = moments(reader, "train")
    assert found.mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-9)
    assert found.std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-9)
    monkeypatch.setattr(measuring, "BATCH", 7)
    again = moments(reader, "train")
    assert again.mean == pytest.approx(found.mean, rel=1e-12) and moments(reader, "train") == again
    monkeypatch.setattr(measuring, "MOST", len(pixels) // 4)
    few = moments(reader, "train")
    assert few.mean == pytest.approx(found.mean, rel=0.1) and few.mean != found.mean
    assert moments(reader, "test").mean != found.mean


def test_a_channel_without_any_spread_is_told(index, tmp_path):
    reader = build.reader(config_for(index.root, tmp_path), index)

    class Flat(type(reader)):
        def inputs(self, rows, stored, turns):
            return torch.ones_like(super().inputs(rows, stored, turns))

    with pytest.raises(InputError, match="channel 0 of the split 'train' is the same everywhere.*normalise = none"):
        moments(Flat(*reader), "train")


def test_without_it_nothing_is_kept_and_nothing_changes(index, tmp_path):
    plain = build.learner(small_config(index.root, tmp_path, **PROTOTYPE), index)
    made = build.learner(config_for(index.root, tmp_path), index)
    assert not [name for name in plain.state_dict() if "standard" in name]
    assert made.state_dict().keys() - plain.state_dict().keys() == {"model.standard.mean", "model.standard.std"}
    # Until it is measured, images are as they are: the same random values, the same features.
    images = torch.rand(3, 1, *index.shape(0)[:2])
    assert torch.equal(plain.model(images), made.model(images))


@pytest.mark.parametrize(
    "learner",
    [{"kind": "prototype"}, {"kind": "gradient", "rule": {"kind": "sgd", "lr": 0.1}, "steps": 1}, {"kind": "film"}],
    ids=lambda learner: learner["kind"],
)
def test_it_is_as_if_the_images_had_been_normalised(index, tmp_path, learner):
    config = config_for(index.root, tmp_path, learner=learner, meta={"steps": 1, "precision": "float64"})
    made = start.started(config, index, build.learner)
    plain = build.learner(small_config(index.root, tmp_path, learner=learner, meta=config.meta.model_dump()), index)
    plain.load_state_dict({n: v for n, v in made.state_dict().items() if "standard" not in n}, strict=True)
    standard = of(made)
    found = moments(build.reader(config, index), "train")
    assert standard.mean.tolist() == pytest.approx(found.mean) and standard.std.tolist() == pytest.approx(found.std)
    episode = build.reader(config, index).episode(build.sampler(config, index, "train").draw(0, 0))
    episode = build.place(config, torch.device("cpu"))(episode)
    shifted = episode._replace(
        support=episode.support._replace(inputs=standard(episode.support.inputs)),
        query=episode.query._replace(inputs=standard(episode.query.inputs)),
    )
    for mode in Mode:
        said = made.adapt(episode.support, episode.ways, mode=mode)(episode.query.inputs)
        expected = plain.adapt(shifted.support, episode.ways, mode=mode)(shifted.query.inputs)
        assert torch.allclose(said, expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(made.outcome(episode).loss, plain.outcome(shifted).loss, rtol=1e-9)


def test_a_run_keeps_what_was_measured(run, glyphs_root, index, tmp_path, monkeypatch):
    """In its checkpoints from the first on; a resume does not measure, nor does an evaluation on other data."""
    expected = moments(build.reader(config_for(glyphs_root, tmp_path), index), "train")
    for path in checkpoint.all_in(run / "checkpoints"):
        values = checkpoint.load(path).learner
        assert values["model.standard.mean"].tolist() == pytest.approx(expected.mean)
        assert values["model.standard.std"].tolist() == pytest.approx(expected.std)

    def refused(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(start, "moments", refused)
    work_here(dump(config_for(glyphs_root, run.parent, meta={"steps": 6})), str(run))
    newest = checkpoint.latest(run / "checkpoints")
    assert newest.step == 6 and newest.learner["model.standard.mean"].tolist() == pytest.approx(expected.mean)
    for data in (None, glyphs_root):
        found = restore.restored(restore.subject_of(checkpoint.best(run), data=data))
        assert of(found.learner).mean.tolist() == pytest.approx(expected.mean)


def test_two_workers_and_one_have_the_same_statistics_and_losses(glyphs_root, tmp_path):
    config = config_for(glyphs_root, tmp_path, meta={"steps": 2, "precision": "float64", "batch": 3})
    work_here(dump(config), str(tmp_path / "one"))
    on_ranks(2, work_here, dump(config), str(tmp_path / "two"))
    one, two = (checkpoint.latest(tmp_path / name / "checkpoints").learner for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one if "standard" in name)
    losses = [history(tmp_path / name).series["train/loss"] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_untrained_learner_sees_the_same_images(run):
    subject = restore.subject_of(checkpoint.best(run))
    trained, untrained = (restore.restored(each).learner for each in (subject, subject._replace(checkpoint="")))
    assert torch.equal(of(trained).mean, of(untrained).mean) and torch.equal(of(trained).std, of(untrained).std)


def test_embedded_features_and_teachers_are_of_normalised_images(run, index, glyphs_root, tmp_path):
    path = checkpoint.best(run)
    found = restore.restored(restore.subject_of(path))
    known = frozen_encoder(found.config, index, path)
    assert torch.equal(of(known.encoder).mean, of(found.learner).mean)
    asked = small_config(glyphs_root, tmp_path, **PROTOTYPE, teacher={"start": str(path)})
    taught_by = taught(asked, index, build.learner(asked, index))
    (theirs,) = (part for part in taught_by.modules() if isinstance(part, Standard))
    assert torch.equal(theirs.mean, of(found.learner).mean)


def test_a_start_brings_its_statistics_and_fits_no_other(run, glyphs_root, index, tmp_path, monkeypatch):
    path = checkpoint.best(run)
    kept = of(restore.restored(restore.subject_of(path)).learner)
    monkeypatch.setattr(start, "moments", lambda *_: pytest.fail("measured, and the start has them"))
    taken = start.started(config_for(glyphs_root, tmp_path, start=str(path)), index, build.learner)
    assert torch.equal(of(taken).mean, kept.mean)
    same = {"mean": kept.mean.tolist(), "std": kept.std.tolist()}
    given = start.started(config_for(glyphs_root, tmp_path, same, start=str(path)), index, build.learner)
    assert torch.allclose(of(given).std, kept.std)
    with pytest.raises(
        InputError, match=r"has standard.mean \[0\.\d+\], and data.normalise gives \[0.5\]; set .*measured"
    ):
        other = config_for(glyphs_root, tmp_path, {"mean": [0.5], "std": [0.5]}, start=str(path))
        start.started(other, index, build.learner)
    with pytest.raises(InputError, match="was trained on normalised images; set data.normalise = measured"):
        start.started(small_config(glyphs_root, tmp_path, **PROTOTYPE, start=str(path)), index, build.learner)


def test_a_start_without_statistics_fits_images_as_they_are(glyphs_root, index, tmp_path):
    work_here(dump(small_config(glyphs_root, tmp_path, **PROTOTYPE)), str(tmp_path / "plain"))
    with pytest.raises(InputError, match="trained on images that are not normalised; set data.normalise = none"):
        start.started(config_for(glyphs_root, tmp_path, start=str(tmp_path / "plain")), index, build.learner)


@pytest.mark.parametrize(
    ("normalise", "said"),
    [
        ({"mean": [0.5, 0.5], "std": [0.5]}, "mean has 2 channels and std 1"),
        ({"mean": [], "std": []}, "data.normalise: mean = .* at least 1 item"),
        ({"mean": [0.5], "std": [0.0]}, r"data.normalise: std.0 = 0.0: input should be greater than 0"),
        ({"mean": [0.5]}, "data.normalise: std is missing"),
        ({"mean": [0.5], "std": [0.5], "var": 1}, "data.normalise: var: no such key"),
        ("always", r"data.normalise: 'always' is not none, measured or \{mean: \[…\], std: \[…\]\}; give one of them"),
    ],
)
def test_statistics_that_are_none(glyphs_root, tmp_path, normalise, said):
    with pytest.raises(InputError, match=said):
        config_for(glyphs_root, tmp_path, normalise)


def test_statistics_of_other_channels(glyphs_root, index, tmp_path):
    three = config_for(glyphs_root, tmp_path, {"mean": [0.5] * 3, "std": [0.2] * 3})
    with pytest.raises(InputError, match="normalise.mean has 3 numbers, and images of .* have 1 channels"):
        build.learner(three, index)


def test_a_learner_of_ones_own_without_a_place_for_them(glyphs_root, index, tmp_path):
    plain = small_config(glyphs_root, tmp_path, **PROTOTYPE)
    with pytest.raises(InputError, match="the learner has no model that normalises"):
        start.started(config_for(glyphs_root, tmp_path), index, lambda config, index: build.learner(plain, index))
