"""One command from class folders to a model: what it decides, that its steps are what their commands do, that it goes on."""

from __future__ import annotations

import json
import shlex
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some

from pipeline import cli, drawing, evaluate, quickstart, recipe, train
from pipeline.archive import STOP_FILE
from pipeline.config import parse
from pipeline.data.images import encode_png
from pipeline.data.importers.folder import folder
from pipeline.data.index import Index
from pipeline.data.outline import Outline
from pipeline.data.source import Sample, Source
from pipeline.engine import LOOP
from pipeline.errors import InputError
from pipeline.recipe import Machine, Pace
from pipeline.survey import Survey, survey
from pipeline.teaching import adapted
from pipeline.tracking import SyncReport

BRIEF = (
    "meta.steps=4",
    "meta.batch=2",
    "model.width=4",
    "data.ways=4",
    "validation={every: 2, episodes: 2}",
    "checkpoint.every=1",
    "evaluate.episodes=4",
    "engine={mode: loop}",
    "workers.threads=1",
)
TWO_CORES = Machine(2, 0)


def source(images: list[np.ndarray], *, each: int = 1) -> Source:
    """A class for each image, which it has so many times."""
    samples = [
        Sample(f"c{label}/{number}", f"c{label}", partial(encode_png, image))
        for label, image in enumerate(images)
        for number in range(each)
    ]
    return Source("images", samples, {})


def surveyed(counts: list[int], **more) -> Survey:
    """What class folders of so many images look like."""
    usual = {"splits": {}, "side": 84, "channels": 3, "is_ink": False, "is_inverted": False}
    return Survey({f"c{number}": count for number, count in enumerate(counts)}, **{**usual, **more})


@pytest.fixture
def quiet(monkeypatch) -> None:
    """No MLflow, no pictures, and nothing is timed."""
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)
    monkeypatch.setattr(evaluate.tracking, "sync", lambda run, uri: SyncReport("", 0, (), True, ""))
    monkeypatch.setattr(drawing, "draw", lambda *_, **__: [])
    monkeypatch.setattr(recipe, "paced", lambda *_: Pace(LOOP, 0.1, 1e-4))


@pytest.fixture
def images(glyphs_root) -> Path:
    """52 class folders of 12 images of 16 pixels."""
    return glyphs_root.parent / "images"


def called(folder: Path | str, out: Path, *overrides: str, **more) -> tuple[int, list[str]]:
    """The exit code of a quickstart, and what it told."""
    told: list[str] = []
    options = {"minutes": 5.0, "support": None, "is_dry": False, **more}
    code = quickstart.quickstart(str(folder), out, overrides=overrides or BRIEF, tell=told.append, **options)
    return code, told


def commands(told: list[str]) -> list[list[str]]:
    """The command lines among what was told."""
    lines = [line.partition("] ")[2] for line in told if line.startswith("\n[")]
    return [shlex.split(line)[1:] for line in lines]


def test_drawings_greys_and_colours_are_told_apart():
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (30, 40, 1), np.uint8)
    ink = np.where(grey > 240, 255, 0).astype(np.uint8)
    colour = random.integers(0, 256, (50, 40, 3), np.uint8)
    assert survey(source([grey]))[2:] == (30, 1, False, False)
    assert survey(source([ink]))[2:] == (30, 1, True, False)
    assert survey(source([255 - ink]))[2:] == (30, 1, True, True)
    assert survey(source([np.repeat(grey, 3, 2)])).channels == 1
    assert survey(source([grey, colour, colour]))[2:4] == (40, 3)


def test_no_images_is_told():
    with pytest.raises(InputError, match="no images found"):
        survey(source([]))


@given(some.integers(recipe.LEAST_CLASSES, 400))
def test_every_class_is_in_one_split_and_most_of_them_teach(count):
    names = [f"class {number}" for number in range(count)]
    splits = recipe.shared_out(names)
    assert sorted(name for own in splits.values() for name in own) == sorted(names)
    assert min(map(len, splits.values())) >= recipe.LEAST_MEASURED
    assert len(splits["train"]) >= count / 2
    if count >= recipe.WAYS**2:
        assert min(len(splits["val"]), len(splits["test"])) >= recipe.WAYS


def test_a_class_keeps_its_split_whatever_its_images():
    assert recipe.classes(surveyed([20] * 30), "x").splits == recipe.classes(surveyed([20] * 29 + [90]), "x").splits


@given(some.lists(some.integers(1, 30), min_size=12, max_size=60))
def test_episodes_have_samples_in_every_class_of_a_split(counts):
    found = surveyed(counts)
    try:
        chosen = recipe.classes(found, "x")
    except InputError as error:
        assert "are the least to meta-train on" in str(error)
        return
    kept = [name for own in chosen.splits.values() for name in own]
    assert min(found.counts[name] for name in kept) >= chosen.shots + chosen.queries
    assert set(kept) | set(chosen.left_out) == found.counts.keys()
    assert len(chosen.left_out) <= len(counts) / 10 or min(counts) == 1


def test_too_few_classes_are_told_with_what_else_can_be_done():
    with pytest.raises(
        InputError, match="birds: 7 of 7 classes .* 8 such classes are the least .* OTHER --support birds"
    ):
        recipe.classes(surveyed([30] * 7), "birds")
    with pytest.raises(InputError, match="birds: 3 of 12 classes have 2 images or more"):
        recipe.classes(surveyed([1] * 9 + [5] * 3), "birds")


def test_splits_of_the_folders_stay():
    own = {"train": ["c0", "c1", "c2", "c3", "c4"], "val": ["c5", "c6"], "test": ["c7", "c8"]}
    assert recipe.classes(surveyed([30] * 9, splits=own), "x").splits == own
    with pytest.raises(InputError, match="its folder 'val' has fewer than 2 classes"):
        recipe.classes(surveyed([30] * 9, splits={**own, "val": ["c5"]}), "x")
    part = recipe.classes(surveyed([30] * 9, splits={"train": list(own)}), "x").splits
    assert sum(map(len, part.values())) == 9


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """A recipe where learning from an image of 84 × 84 pixels takes so long."""

    def plan(found: Survey, machine: Machine = TWO_CORES, *, minutes: float = 5, image_s: float = 1e-3):
        def paced(config, form, _):
            episode = config.data.ways * (config.data.shots + config.data.queries)
            per_image = image_s * (form.images[0] / 84) ** 2 * (10 if config.model.kind == "resnet12" else 1)
            return Pace(LOOP, per_image * episode * config.meta.batch / config.workers.count, per_image / 3)

        monkeypatch.setattr(recipe, "paced", paced)
        chosen = recipe.classes(found, "x")
        side, tree = recipe.recipe(found, chosen, machine, minutes=minutes, name="x", place=tmp_path)
        return side, parse(tree, "test")

    return plan


def test_images_are_as_large_as_the_time_allows(planned):
    found = surveyed([30] * 60, side=300)
    sides = [planned(found, image_s=image_s)[0] for image_s in (1e-4, 1e-3, 4e-3, 1e-1)]
    assert sides[0] == 84 and sides[-1] == 32 and sides == sorted(sides, reverse=True)
    assert planned(surveyed([30] * 60, side=40))[0] == 40
    assert planned(surveyed([30] * 60, side=300, channels=1, is_ink=True))[0] == recipe.INK_SIDE


def test_a_run_takes_about_the_time_it_was_given(planned):
    for minutes in (2, 5, 20):
        _, config = planned(surveyed([30] * 60), minutes=minutes, image_s=3e-4)
        episode = config.data.ways * (config.data.shots + config.data.queries)
        assert config.meta.steps * config.meta.batch * episode * 3e-4 < 60 * minutes
    _, less = planned(surveyed([30] * 60), minutes=2)
    _, more = planned(surveyed([30] * 60), minutes=20)
    assert less.meta.steps < more.meta.steps or less.data.size != more.data.size
    with pytest.raises(InputError, match="--minutes 0.1"):
        planned(surveyed([30] * 60), minutes=0.1)


def test_what_fits_the_images(planned):
    _, photos = planned(surveyed([30] * 60))
    assert photos.data.augment.flip and not photos.data.invert
    _, letters = planned(surveyed([30] * 60, channels=1, is_ink=True, is_inverted=True))
    assert letters.data.invert and not letters.data.augment.flip
    _, few = planned(surveyed([3] * 9))
    assert (few.data.ways, few.data.shots, few.data.queries, few.evaluate.ways) == (5, 1, 2, 2)


def test_every_gpu_has_a_worker_and_they_have_the_larger_model(planned):
    _, config = planned(surveyed([30] * 60), Machine(16, 8), image_s=1e-5)
    assert config.model.kind == "resnet12" and config.workers.count == 8 and config.meta.batch == 8
    _, config = planned(surveyed([30] * 60), Machine(16, 0), image_s=1e-5)
    assert config.model.kind == "conv4" and config.workers.is_alone


def test_the_pace_is_measured(tmp_path):
    data, model = {"root": str(tmp_path), "ways": 2, "shots": 1, "queries": 1}, {"kind": "conv4", "width": 2}
    tree = {
        "name": "x",
        "data": data,
        "model": model,
        "learner": {"kind": "prototype"},
        "meta": {"steps": 1, "batch": 2},
    }
    pace = recipe.paced(parse(tree, "test"), Outline((16, 16, 1), {}, "", 2), Machine(1, 0))
    assert pace.plan.mode in ("loop", "vmap") and 0 < pace.look_s < pace.step_s < 60


def test_a_dry_run_writes_nothing_and_tells_commands_that_there_are(quiet, images, tmp_path):
    code, told = called(images, tmp_path / "out", is_dry=True)
    assert code == 0 and not (tmp_path / "out").exists()
    assert [command[0] for command in commands(told)] == ["pack", "train", "evaluate", "adapt"]
    text = "\n".join(told)
    assert "624 of 52 classes, drawings, 16 pixels" in text and "34 to learn from, 8 others to choose by" in text
    assert "metashard ui" in text and "metashard serve" in text


def by_command(told: list[str], monkeypatch) -> None:
    """Run what was told as a person would, in this process."""
    for command in commands(told):
        monkeypatch.setattr("sys.argv", ["metashard", *command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code


def results(out: Path) -> tuple:
    """What came of it: the data, the figures, and the model."""
    (run,) = (path for path in (out / "runs").iterdir() if (path / "result.json").exists())
    result = json.loads((run / "result.json").read_text())
    (evaluation,) = (json.loads(path.read_text()) for path in (run / "evaluations").iterdir())
    model = adapted.load(out / "model.safetensors")
    values = {name: value.tolist() for name, value in model.learner.learner.state_dict().items()}
    told = {key: value for key, value in result.items() if key != "evaluation_s"}
    origin = {key: value for key, value in model.origin.items() if key != "from"}
    known = (model.support.classes, model.calibration, origin)
    return Index.open(out / "data").fingerprint, told, evaluation, values, known


def test_the_commands_that_are_told_do_the_same(quiet, images, tmp_path, monkeypatch, capsys):
    """In another place, from the files that are laid out before the first step."""
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    code, told = called(images, Path("out"))
    assert code == 0
    there, here = tmp_path / "other" / "out", tmp_path / "one" / "out"
    for path in (path for path in here.rglob("*") if path.is_file()):
        name = path.relative_to(here)
        if name.parts[0] in ("splits", "support", "train.yaml"):
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            (there / name).write_bytes(path.read_bytes().replace(str(here).encode(), str(there).encode()))
    monkeypatch.chdir(there.parent)
    by_command(told, monkeypatch)
    assert results(there) == results(here)
    capsys.readouterr()


def test_what_is_taught_and_asked_about_was_not_learned_from(quiet, images, tmp_path):
    out = tmp_path / "out"
    code, told = called(images, out)
    assert code == 0
    test = (out / "splits" / "test.txt").read_text().split("\n")
    model = adapted.load(out / "model.safetensors")
    assert set(model.support.classes) < set(test) and len(model.support.classes) == recipe.WAYS
    taught, asked = ({path.read_bytes() for path in (out / name).rglob("*.png")} for name in ("support", "queries"))
    assert len(taught) == len(asked) == 25 and not taught & asked
    assert f"metashard predict {out / 'model.safetensors'} {out / 'queries'}" in "\n".join(told)


def test_it_goes_on_where_it_was_stopped(quiet, images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert called(images, tmp_path / "whole")[0] == 0

    class Stopping:
        """Somebody asks the run to stop while it trains."""

        def __init__(self, run: Path, steps: int):
            self.run = run

        def __enter__(self):
            (self.run / STOP_FILE).touch()

        def __exit__(self, *_):
            pass

    with monkeypatch.context() as patch:
        # A run forgets an old wish to stop when it begins, so this one comes after it.
        patch.setattr(quickstart, "watching", Stopping)
        patch.setattr(train, "stoppable", lambda ask: nullcontext([]))
        _, told = called(images, out)
    assert told[-1] == "the same metashard quickstart goes on from here"
    assert not (out / "model.safetensors").exists()
    written = {path: path.stat().st_mtime_ns for path in (out / "data").glob("*.tar")}
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", interrupted_twice(evaluate.evaluate))
        with pytest.raises(KeyboardInterrupt):
            called(images, out)
    monkeypatch.setattr(recipe, "recipe", None)
    monkeypatch.setattr(train, "fit", None)
    assert called(images, out)[0] == 0
    assert results(out)[:3] == results(tmp_path / "whole")[:3]
    assert written == {path: path.stat().st_mtime_ns for path in (out / "data").glob("*.tar")}
    assert called(images, out)[0] == 0
    assert len(list((out / "runs").glob("*/evaluations/*.json"))) == 1


def interrupted_twice(work):
    """Not where a run evaluates its untrained learner, but at the next call."""
    calls = iter(range(10))

    def evaluated(*arguments, **options):
        if next(calls):
            raise KeyboardInterrupt
        return work(*arguments, **options)

    return evaluated


def test_another_folder_or_other_settings_are_refused(quiet, images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(quickstart.prepare, "pack", interrupted_twice(None))
        patch.setattr(quickstart.prepare, "described", str)
        with pytest.raises(TypeError):
            called(images, out)
    with pytest.raises(InputError, match=r"holds a quickstart with minutes 5.0, and this one has 7"):
        called(images, out, minutes=7)
    with pytest.raises(InputError, match="is not empty and holds no quickstart"):
        called(images, out / "splits")
    with pytest.raises(InputError, match="metashard quickstart OTHER"):
        called(one_class(tmp_path), tmp_path / "new")


def one_class(place: Path) -> Path:
    (place / "one" / "class").mkdir(parents=True)
    (place / "one" / "class" / "a.png").write_bytes(encode_png(np.zeros((9, 9, 1), np.uint8)))
    return place / "one"


def test_other_classes_can_be_taught_in_the_end(quiet, images, tmp_path):
    """The few that are too few to learn from, to what drawings taught."""
    support = tmp_path / "support"
    for name, character in zip(("a", "b"), sorted((images / "armenian").iterdir()), strict=False):
        (support / name).mkdir(parents=True)
        for path in sorted(character.iterdir())[:3]:
            (support / name / path.name).write_bytes(path.read_bytes())
    code, told = called("-", tmp_path / "out", support=support, is_dry=True)
    (pack, _, _, teach) = commands(told)
    assert code == 0 and pack[1:5] == ["-", str(tmp_path / "out" / "data"), "--layout", "glyphs"]
    assert teach[3] == str(support)
    assert called(images, tmp_path / "own", support=support)[0] == 0
    assert adapted.load(tmp_path / "own" / "model.safetensors").support.classes == ("a", "b")
    assert not (tmp_path / "own" / "support").exists()


def test_the_command_line(quiet, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv",
        ["metashard", "quickstart", str(images), "--out", str(tmp_path / "out"), "--dry-run", "meta.steps=7"],
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().out
    assert not ended.value.code
    tree = yaml.safe_load(said.partition("# ")[2].partition("\n")[2].partition("\n\n[")[0])
    assert tree["meta"]["steps"] == 7 and parse(tree, "told").data.root == tmp_path / "out" / "data"


def test_a_folder_of_drawings_is_surveyed_as_such(images):
    found = survey(folder(images))
    assert found.is_ink and not found.is_inverted and found.side == 16 and set(found.counts.values()) == {12}
