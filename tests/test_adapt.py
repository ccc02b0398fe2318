"""`metashard adapt`: from a run, wherever it lies, and a folder to a model; what was wrong is one sentence."""

import shutil

import pytest
from teachable import NAMES, class_folders
from test_embed import trained

from pipeline import adapt, checkpoint
from pipeline.errors import InputError
from pipeline.teaching import adapted
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.calibration import Calibration


@pytest.fixture(scope="module")
def runs(glyphs_root, tmp_path_factory):
    """A folder of one run, `run`, whose data are gone."""
    place = tmp_path_factory.mktemp("runs")
    shutil.copytree(glyphs_root, place / "data")
    trained(place, place / "data", learner={"kind": "prototype"})
    shutil.rmtree(place / "data")
    return place


def test_a_run_whose_data_are_gone_learns_new_classes(runs, tmp_path):
    out = tmp_path / "model.safetensors"
    made = adapt.adapt("run", class_folders(tmp_path / "images"), out, runs=runs)
    model = adapted.load(out)
    assert model.support.classes == tuple(sorted(NAMES)) and model.calibration == made.model.calibration
    best = checkpoint.best(runs / "run")
    assert model.origin["run"] == "run" and model.origin["from"] == str(best)
    said = adapt.text(made, out)
    assert (
        "bars (3), cross (3), disc (3)" in said
        and f"metashard predict {out}" in said
        and "of 9 samples left out" in said
    )
    # A checkpoint's folder and a run's path are as good, and give the same.
    for target in (best, runs / "run"):
        again = adapt.adapt(str(target), tmp_path / "images", tmp_path / "again", runs=tmp_path).model
        assert again.calibration == model.calibration


def test_doubts_are_honest(runs, tmp_path):
    one = adapt.adapt("run", class_folders(tmp_path / "one", shots=1), tmp_path / "m", runs=runs)
    assert "of turned and moved copies" in "\n".join(one.warnings)
    three = adapt.adapt("run", class_folders(tmp_path / "three"), tmp_path / "m", runs=runs)
    assert "accuracy is of 9 samples: one more or less right moves it by 11 points" in three.warnings


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Calibration(), "nothing could be left out"),
        (Calibration(errors=0.6, accuracy=1.0, samples=99), "can hardly tell what is of none of them"),
    ],
)
def test_what_cannot_be_known_is_said(runs, tmp_path, found, said):
    model = adapt.adapt("run", class_folders(tmp_path / "images"), tmp_path / "m", runs=runs).model
    told = adapt.doubts(Adapted(model.learner, model.support, found, origin={}))
    assert len(told) == 1 and said in told[0]


def test_what_was_asked_wrongly(runs, tmp_path):
    place = class_folders(tmp_path / "images")
    with pytest.raises(InputError, match="is a folder; name a file"):
        adapt.adapt("run", place, tmp_path, runs=runs)
    with pytest.raises(InputError, match="neither a run under .* nor a checkpoint"):
        adapt.adapt("nothing", place, tmp_path / "m", runs=runs)
    with pytest.raises(InputError, match="models:/nobody@best: cannot be had from sqlite.*MLFLOW_TRACKING_URI"):
        adapt.adapt("models:/nobody@best", place, tmp_path / "m", runs=tmp_path)
    assert not (tmp_path / "m").exists()
