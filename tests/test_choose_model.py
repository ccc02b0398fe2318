"""Choosing a run: what a chooser learns, what it falls back to, what it says of new classes, and what is refused."""

from __future__ import annotations

import json
import math
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from gloo import work_here
from small import small_config

from pipeline import adaptation, checkpoint, choose_model, chooser, cli, prepare, restore, shelf, table
from pipeline import evaluate as measuring
from pipeline.adaptation import Held, Settings
from pipeline.candidates import Candidate, Outcome
from pipeline.chooser import Task
from pipeline.config import dump
from pipeline.data.images import encode_png, resize
from pipeline.data.index import Index
from pipeline.data.shards import Shards
from pipeline.errors import InputError
from pipeline.learners.learner import Mode
from pipeline.noise import Noise, Purpose
from pipeline.task_family import Family, Range, range_of

FAMILY = Family(Range(2, 4), Range(1, 3), 2)
TASKS = {"tasks": 20, "seed": 0, "progress": lambda done, total: None}
RUNS = {
    "prototypes": {"learner": {"kind": "prototype"}},
    "protomaml": {
        "learner": {
            "kind": "gradient",
            "initial": {"kind": "prototypes"},
            "rule": {"kind": "sgd", "lr": 0.1},
            "steps": 1,
        }
    },
    "maml": {},
    "ridge-twenty": {"learner": {"kind": "ridge"}, "data": {"size": 20}},
    "segmenting": {},
}


def candidate(name: str) -> Candidate:
    return Candidate(name, Path(f"/{name}"), "", "prototype", "conv4", None)


def world(count: int, *, choice_matters: bool, seed: int = 0) -> list[Task]:
    """Tasks on which one run is better where it is bright and the other where it is dark, or both by chance."""
    noise = np.random.default_rng(seed)
    tasks = []
    for _ in range(count):
        brightness, level = noise.uniform(), noise.uniform(0.3, 0.7)
        gain = 0.3 * (brightness - 0.5) if choice_matters else 0.05 * noise.normal() + 0.03
        accuracies = (level + gain, level - gain)
        outcomes = [Outcome(Held(float(noise.uniform()), 1.0), None, float(own)) for own in accuracies]
        tasks.append(Task("data", {"brightness": float(brightness), "noise": float(noise.normal())}, outcomes))
    return tasks


def test_a_chooser_gains_where_choice_matters_and_stays_between_the_best_on_average_and_the_oracle():
    fitted = chooser.fit([candidate("a"), candidate("b")], world(120, choice_matters=True))
    rows = choose_model.judged(fitted, world(200, choice_matters=True, seed=1)).rows()
    assert fitted.kind != "constant"
    means = {name: own.mean for name, (own, _) in rows.items()}
    assert means["best on average"] < means["chosen"] <= means["oracle"]
    gained = rows["chosen"][1]
    assert gained.mean - gained.interval > 0
    assert means["chosen"] > means["oracle"] - 0.01
    assert means["held out alone"] == pytest.approx(means["best on average"], abs=0.03)


def test_where_choice_does_not_matter_the_best_on_average_is_nearly_always_taken():
    tasks, new = (world(200, choice_matters=False, seed=seed) for seed in (0, 1))
    fitted = chooser.fit([candidate("a"), candidate("b")], tasks)
    assert fitted.best == 0
    assert (fitted.choice(chooser.inputs_of(new)) == 0).mean() > 0.9


def test_the_best_on_average_and_the_oracle_are_what_they_are_called():
    tasks = world(50, choice_matters=True)
    fitted = chooser.fit([candidate("a"), candidate("b")], tasks)
    found = choose_model.judged(fitted, tasks)
    reached = chooser.accuracies_of(tasks)
    assert found.values["oracle"] == reached.max(1).tolist()
    assert math.fsum(found.values["best on average"]) == pytest.approx(reached.sum(0).max())
    assert found.rows()["best on average"][1].mean == 0


def test_a_fit_is_a_function_of_its_rows():
    tasks = world(60, choice_matters=True)
    inputs = chooser.inputs_of(world(20, choice_matters=True, seed=3))
    again = [chooser.task_of(json.loads(json.dumps(task.as_json()))) for task in tasks]
    assert again == tasks
    one, other = (chooser.fit([candidate("a"), candidate("b")], own) for own in (tasks, again))
    assert np.array_equal(one.expected(inputs), other.expected(inputs))


def test_tasks_have_ways_and_shots_of_their_ranges():
    noise = Noise(0, Purpose.EPISODE)
    ways = {FAMILY.drawn_ways(99, noise) for _ in range(200)}
    shots = {FAMILY.counts([9] * 3, noise).shots for _ in range(200)}
    assert ways == {2, 3, 4} and shots == {(1,) * 3, (2,) * 3, (3,) * 3}
    assert range_of("--ways", "5", least=2) == Range(5, 5) and range_of("--ways", "2-20", least=2) == Range(2, 20)
    for text in ("1-5", "7-3", "five", "2-", "-2"):
        with pytest.raises(InputError, match="--ways"):
            range_of("--ways", text, least=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, glyphs_root, scenes_root) -> Path:
    place = tmp_path_factory.mktemp("shelf") / "runs"
    for name, sections in RUNS.items():
        config = small_config(glyphs_root, place, **sections)
        if name == "segmenting":
            segments = {"task": {"kind": "segmentation"}, "model": {"kind": "unet", "width": 4, "depth": 2}}
            config = small_config(scenes_root, place, **segments, learner={"kind": "prototype"}, meta={"steps": 2})
        work_here(dump(config), str(place / name))
    return place


@pytest.fixture(scope="module")
def made(runs, glyphs_root, tmp_path_factory) -> Path:
    """A chooser of three runs, four candidates, one of which takes larger images."""
    own = shelf.shelve(
        [Path("prototypes"), Path("protomaml"), Path("ridge-twenty")],
        runs,
        table.columns([f"{glyphs_root}:val"], "val"),
        FAMILY,
        **TASKS,
    )
    return shelf.keep(own, tmp_path_factory.mktemp("chooser") / "own")


@pytest.fixture(scope="module")
def new_classes(glyphs_root, tmp_path_factory) -> Path:
    """Two images of each of three test classes in folders, of another size than any run takes."""
    place = tmp_path_factory.mktemp("new")
    index = Index.open(glyphs_root)
    for number in index.splits["test"][:3]:
        folder = place / index.class_names[int(number)]
        folder.mkdir(parents=True)
        for row in index.postings(int(number))[:2]:
            (folder / f"{row}.png").write_bytes(encode_png(resize(Shards(index).image(int(row)), 30)))
    return place


def test_what_is_kept_is_read_again(made, runs):
    own = shelf.read(made)
    assert [each.name for each in own.candidates] == [
        "prototypes",
        "protomaml",
        "protomaml, leave-one-out",
        "ridge-twenty",
    ]
    assert own.family == FAMILY and len(own.tasks) == 20
    assert json.loads(json.dumps(own.as_json())) == json.loads((made / shelf.FILE).read_text())
    assert not [path for path in made.iterdir() if path.suffix != ".json"]


def test_a_candidate_reaches_on_a_task_what_adapting_to_it_gives(made, glyphs_root):
    own = shelf.read(made)
    (column,) = table.columns([f"{glyphs_root}:val"], "val")
    sampler = shelf.sampler_of(column, own.family, own.seed)
    for place, each in enumerate(own.candidates):
        found = restore.restored(restore.subject_of(each.checkpoint, data=column.root))
        episode = shelf.reader_of(found).episode(sampler.draw(0, 5))
        settings = own.tasks[5].outcomes[place].settings
        if settings is None or not each.is_tuned:
            predictor = found.learner.adapt(episode.support, episode.ways, mode=Mode.INDUCTIVE)
            right = predictor(episode.query.inputs).argmax(1) == episode.query.targets
            assert own.tasks[5].outcomes[place].accuracy == right.double().mean().item()
        assert (settings is not None) == (each.learner == "gradient")


def test_rows_do_not_depend_on_threads(made, runs, glyphs_root, threads):
    threads(3)
    columns = table.columns([f"{glyphs_root}:val"], "val")
    again = shelf.shelve([Path("prototypes"), Path("ridge-twenty")], runs, columns, FAMILY, **TASKS)
    for one, other in zip(again.tasks, shelf.read(made).tasks, strict=True):
        assert one.outcomes == [other.outcomes[0], other.outcomes[3]] and one.features == other.features


def run_line(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, what was printed and what was said on the error stream."""
    monkeypatch.setattr("sys.argv", ["metashard", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_a_run_is_recommended_from_support_images_alone(made, new_classes, monkeypatch, capsys):
    code, out, _ = run_line(monkeypatch, capsys, "choose", "model", "--from", made, "--support", new_classes, "--json")
    told = json.loads(out)
    assert not code and told["recommended"] == told["ranked"][0] and len(told["ranked"]) == 4
    expected = [row["expected_accuracy"] for row in told["ranked"]]
    assert expected == sorted(expected, reverse=True) and all(0 <= value <= 1 for value in expected)
    assert told["meta_features"]["ways"] == 3 and told["meta_features"]["shots"] == 2
    assert told["meta_features"]["size"] == 30 and told["notes"] == []
    assert told["best_on_average"]["expected_accuracy"] <= expected[0]
    tuned = next(row for row in told["ranked"] if row.get("chosen_by") == "leave-one-out")
    assert tuned["rate"] / 0.1 in map(pytest.approx, adaptation.PACES) and tuned["steps"] >= 0
    assert {"learner", "model", "run", "checkpoint"} <= tuned.keys()
    code, out, _ = run_line(monkeypatch, capsys, "choose", "model", "--from", made, "--support", new_classes)
    assert not code and f"take       {told['recommended']['run']}" in out and "best on average" in out


def test_a_support_set_beyond_what_was_fitted_is_said_to_be(made, new_classes, tmp_path):
    own = shelf.read(made)
    shutil.copytree(new_classes, tmp_path / "many")
    for number in range(2):
        shutil.copytree(new_classes, tmp_path / "many" / f"again{number}")
    found = choose_model.recommend(own, tmp_path / "many")
    assert found.features["ways"] == 9 and any("9 classes" in note and "2-4" in note for note in found.notes)


def test_a_chooser_is_judged_on_classes_it_was_not_fitted_to(made, glyphs_root, monkeypatch, capsys):
    judge = ("choose", "model", "--from", made, "--tasks", 20, "--json", "--data")
    code, out, _ = run_line(monkeypatch, capsys, *judge, f"{glyphs_root}:test")
    told = json.loads(out)
    assert not code and told["tasks"] == 20
    assert told["all"]["best on average"]["difference"] == 0
    assert told["all"]["chosen"]["mean"] <= told["all"]["oracle"]["mean"]
    assert json.loads(next(made.glob("judged-*.json")).read_text()) == told
    code, _, said = run_line(monkeypatch, capsys, *judge, f"{glyphs_root}:val")
    assert code == 2 and "fitted to 8 of its classes" in said
    code, _, said = run_line(monkeypatch, capsys, *judge, f"{glyphs_root}:train")
    assert code == 2 and "was trained on 36 of the classes" in said


def test_the_command_line_measures_and_keeps_a_chooser(runs, glyphs_root, tmp_path, monkeypatch, capsys):
    where = (
        "--runs",
        runs,
        "--data",
        f"{glyphs_root}:val",
        "--tasks",
        20,
        "--ways",
        "2-3",
        "--shots",
        "1-2",
        "--queries",
        2,
    )
    code, out, _ = run_line(
        monkeypatch, capsys, "choose", "model", "prototypes", "maml", *where, "--out", tmp_path / "new"
    )
    assert not code and "best on average:" in out and "maml, leave-one-out" in out
    assert shelf.read(tmp_path / "new").family == Family(Range(2, 3), Range(1, 2), 2)
    code, _, said = run_line(
        monkeypatch, capsys, "choose", "model", "prototypes", "maml", *where, "--out", tmp_path / "new"
    )
    assert code == 2 and "there is something already" in said


@pytest.mark.parametrize(
    ("targets", "options", "said"),
    [
        (["prototypes"], [], "nothing to choose from"),
        (["prototypes", "nobody"], [], "nobody is neither a run"),
        (["prototypes", "prototypes"], [], "another of the runs is called 'prototypes'"),
        (["prototypes", "segmenting"], [], "task.kind = segmentation; what is chosen from must classify"),
        (["prototypes", "maml"], [], "its head has 3 outputs and tasks have 2-20 ways"),
        (["prototypes", "ridge-twenty"], ["--shots", "1-2"], "fewer than ways = 20; lower ways"),
        (["prototypes", "ridge-twenty"], ["--ways", "2-3", "--tasks", "3"], "--tasks 3: too few"),
        (["prototypes", "ridge-twenty"], ["--ways", "2-3", "--shots", "1-12"], "fewer than shots + queries"),
        (["prototypes", "ridge-twenty"], ["--ways", "20-2"], "--ways 20-2"),
        (["prototypes", "ridge-twenty"], ["--support", "x"], "name its folder with --from"),
        (["prototypes", "ridge-twenty"], ["--from", "x"], "brings its own runs"),
    ],
)
def test_what_cannot_be_measured_is_refused(runs, glyphs_root, tmp_path, monkeypatch, capsys, targets, options, said):
    where = ("--runs", runs, "--data", glyphs_root, "--out", tmp_path / "out")
    code, _, told = run_line(monkeypatch, capsys, "choose", "model", *targets, *where, *options)
    assert code == 2 and said in told and len(told.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_support_folders_without_two_classes_are_refused(made, new_classes, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    one = next(path for path in new_classes.rglob("*") if path.is_dir() and any(path.glob("*.png")))
    shutil.copytree(one, tmp_path / "one" / "class")
    for name, said in (("empty", "empty"), ("one", "at least two"), ("nowhere", "nowhere")):
        code, _, told = run_line(monkeypatch, capsys, "choose", "model", "--from", made, "--support", tmp_path / name)
        assert code == 2 and said in told and len(told.strip().splitlines()) == 1
    code, _, told = run_line(monkeypatch, capsys, "choose", "model", "--from", made)
    assert code == 2 and "give --support DIR" in told


def test_choosers_that_are_not_whole_are_refused(made, tmp_path):
    with pytest.raises(InputError, match="no chooser.json there"):
        shelf.read(tmp_path)
    whole = json.loads((made / shelf.FILE).read_text())
    changed = {
        "format 99, and this version reads": {**whole, "format": 99},
        "has changed since it was measured": {
            **whole,
            "candidates": [{**own, "sha256": "0"} for own in whole["candidates"]],
        },
        "is gone; bring it back": {
            **whole,
            "candidates": [{**own, "checkpoint": "/nowhere"} for own in whole["candidates"]],
        },
        "damaged: not every task has an outcome of each of 3": {**whole, "candidates": whole["candidates"][1:]},
        r"damaged \(KeyError": {key: value for key, value in whole.items() if key != "family"},
    }
    for said, told in changed.items():
        (tmp_path / shelf.FILE).write_text(json.dumps(told))
        with pytest.raises(InputError, match=said):
            shelf.read(tmp_path)
    (tmp_path / shelf.FILE).write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        shelf.read(tmp_path)


def test_settings_are_compared_on_the_same_episodes(runs, monkeypatch, capsys):
    evaluate = ("evaluate", "maml", "--runs", runs, "--settings", "leave-one-out", "--episodes", 6)
    code, out, _ = run_line(monkeypatch, capsys, *evaluate, "--json")
    told = json.loads(out)
    tuned = told["leave-one-out"]
    assert not code and told["episodes"] == 6 == sum(each["episodes"] for each in tuned["chosen"])
    assert tuned["difference"] == pytest.approx(tuned["mean"] - told["configured"]["mean"])
    subject = restore.subject_of(checkpoint.best(runs / "maml"))
    usual = measuring.evaluate(subject, split="test", episodes=6, workers=1).scores[Mode.INDUCTIVE]["accuracy"]
    assert usual.mean == pytest.approx(told["configured"]["mean"])
    code, out, _ = run_line(monkeypatch, capsys, *evaluate)
    assert not code and "leave-one-out" in out and "of the config (1 steps)" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["maml", "--settings", "guess"], "there is no such way to choose them; give leave-one-out"),
        (["prototypes", "--settings", "leave-one-out"], "has learner.kind = prototype"),
        (["maml", "--settings", "leave-one-out", "--pairs"], "judges one run"),
        (["maml", "maml", "--settings", "leave-one-out"], "judges one run"),
    ],
)
def test_settings_that_cannot_be_chosen_are_refused(runs, monkeypatch, capsys, arguments, said):
    code, _, told = run_line(monkeypatch, capsys, "evaluate", *arguments, "--runs", runs)
    assert code == 2 and said in told


def test_settings_are_told_as_rates_where_there_is_one_rate():
    own = candidate("a")._replace(rate=0.4, learner="gradient", is_tuned=True)
    assert own.told(Settings(3, 10.0))["rate"] == pytest.approx(4.0)
    assert own._replace(rate=None).told(Settings(3, 10.0))["pace"] == 10.0 and own.name == "a, leave-one-out"


@pytest.mark.slow
def test_the_benchmark_measures_both_shelves(glyphs_root, tmp_path, monkeypatch, capsys):
    benchmarks = Path(__file__).resolve().parent.parent / "benchmarks"
    shutil.copytree(glyphs_root, tmp_path / "glyphs")
    source, splits = glyphs_root.parent / "images", glyphs_root.parent / "splits"
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "others").symlink_to(source)
    prepare.pack(str(tmp_path / "named" / "others"), tmp_path / "omniglot", layout="folder", size=16, splits=splits)
    monkeypatch.setattr("sys.argv", ["choosing_models.py", str(tmp_path), "--quick"])
    runpy.run_path(str(benchmarks / "choosing_models.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("chosen") == 6 and printed.count("all seeds") == 2
