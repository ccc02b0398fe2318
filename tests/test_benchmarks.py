"""The benchmarks run, at tiny sizes and without looking at their figures."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gloo import work_here
from small import small_config

from pipeline.config import dump, parse
from pipeline.data.images import encode_png

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def said(monkeypatch, capsys) -> Callable[..., str]:
    """What a benchmark prints that is run in this process: a new one would import everything again."""

    def run(name: str, *more: str) -> str:
        monkeypatch.setattr("sys.argv", [name, "--quick", *more])
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.smoke
def test_throughput_agrees_on_the_gradient_and_prints_a_row_each(said):
    printed = said("throughput.py")
    assert printed.count("metashard (") == 4
    assert printed.count("plain loop, ") == 8


@pytest.mark.slow
@pytest.mark.smoke
def test_throughput_with_loading_compares_loaders_on_the_same_episodes(said):
    printed = said("throughput.py", "--loading")
    assert [printed.count(f", {feed} ") for feed in ("loader", "DataLoader", "memory")] == [1, 1, 2]


@pytest.mark.slow
@pytest.mark.smoke
def test_throughput_says_what_part_of_the_time_are_convolutions(said):
    rows = [line for line in said("throughput.py", "--spent").splitlines() if line.endswith(" ×")]
    assert len(rows) == 8 and all(0 < int(row.split("%")[0].split()[-1]) < 100 for row in rows)


@pytest.mark.slow
@pytest.mark.smoke
def test_loading_compares_three_ways_and_measures_the_index(said):
    printed = said("loading.py")
    assert all(name in printed for name in ("raw tars", "encoded tars", "Pillow from folders"))
    assert printed.count("bound") == 3


@pytest.mark.slow
@pytest.mark.smoke
def test_memory_compares_unrolling_and_walking_back(said):
    printed = said("memory.py")
    assert printed.count("bound") == 4


def test_support_compares_how_many_samples_gradients_flow_through(said):
    assert said("support.py").count("÷ through") == 2


def test_embedding_compares_images_and_features(said):
    assert said("embedding.py").count("features are") == 2


def test_faces_gives_what_needs_no_training(said, glyphs_root):
    printed = said("faces.py", str(glyphs_root), "--ways", "5")
    assert printed.count("whitened") == 3 and "\npixels " in printed


def test_choosing_samples_has_a_row_for_every_strategy_and_budget(said, tmp_path, glyphs_root):
    few = {"meta": {"steps": 2, "batch": 2}, "learner": {"kind": "prototype"}}
    for seed in (0, 1):
        tree = {**dump(small_config(glyphs_root, tmp_path, **few)), "seed": seed}
        work_here(tree, str(tmp_path / f"run{seed}"))
    sizes = ["--ways", "3", "--pool", "4", "--queries", "2", "--budgets", "3", "5"]
    rows = said("choosing_samples.py", str(tmp_path / "run0"), str(tmp_path / "run1"), *sizes).splitlines()
    assert len(rows) == 3 + 2 * 4 and all(row.count("|") == 6 for row in rows[1:])


def test_finding_compares_scores(said, tmp_path, scenes_root):
    sections = {"meta": {"steps": 1, "batch": 1}, "data": {"ways": 2}, "learner": {"kind": "prototype"}}
    dense = {"task": {"kind": "detection"}, "model": {"kind": "unet", "width": 4}}
    work_here(dump(small_config(scenes_root, tmp_path, **sections, **dense)), str(tmp_path / "run"))
    (tmp_path / "own" / "images").mkdir(parents=True)
    told = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    for number in range(6):
        image = np.random.default_rng(number).integers(0, 90, (48, 48), np.uint8)
        image[10:20, 5:25] += 100
        (tmp_path / "own" / "images" / f"{number}.png").write_bytes(encode_png(image))
        told["images"].append({"id": number, "file_name": f"{number}.png", "width": 48, "height": 48})
        told["annotations"].append({"id": number, "image_id": number, "category_id": 1, "bbox": [5, 10, 20, 10]})
    (tmp_path / "own" / "instances.json").write_text(json.dumps(told))
    printed = said("finding.py", str(tmp_path / "run"), str(tmp_path / "own"), "--shots", "3")
    assert printed.splitlines()[-1].startswith("| 3 | ") and printed.count("±") == 4


@pytest.mark.slow
@pytest.mark.smoke
def test_scheduling_classes_has_a_row_for_every_schedule(said, glyphs_root):
    printed = said("scheduling_classes.py", str(glyphs_root), "--ways", "4", "--seeds", "2")
    assert [printed.count(f"\n| {name}") for name in ("uniform", "difficulty", "diversity")] == [1, 1, 1]


def test_the_table_of_results_has_a_row_for_every_cell_that_is_done(tmp_path, monkeypatch, capsys):
    score = {"mean": 0.5, "interval": 0.01}
    row = {"test": {"inductive": {"accuracy": score}, "transductive": {"accuracy": score}}, "seconds": 3, "peak_mib": 1}
    (tmp_path / "rows").mkdir()
    for name in ("maml", "boil"):
        (tmp_path / "rows" / f"omniglot-5w1s-{name}.json").write_text(json.dumps(row))
    monkeypatch.setattr("sys.argv", ["results.py", "--table", "--runs", str(tmp_path)])
    runpy.run_path(str(BENCHMARKS / "results.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "| maml | 50.00 ± 1.00 | 50.00 ± 1.00 | 3 | 1.0 | 98.7 |" in said
    # Published for mini-ImageNet alone.
    assert "| boil | 50.00 ± 1.00 | 50.00 ± 1.00 | 3 | 1.0 | (49.6) |" in said


@pytest.mark.parametrize("benchmark_name", ["omniglot-5w1s", "cifar_fs-5w5s"])
def test_every_cell_of_the_table_is_a_config_that_can_be_built(tmp_path, benchmark_name):
    cells = runpy.run_path(str(BENCHMARKS / "results.py"))
    (tmp_path / "rows").mkdir()
    for name in cells["METHODS"]:
        (tmp_path / "rows" / f"{benchmark_name}-{name}.json").write_text(json.dumps({"run": name}))
        # A method that begins with another's run comes after it.
        assert parse(cells["tree"](name, benchmark_name, tmp_path, tmp_path), name).meta.batch >= 4


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("name", "bounds"), [("startup.py", 2), ("submitting.py", 1), ("serving.py", 5)])
def test_startup_is_measured(name, bounds, glyphs_root):
    command = [sys.executable, BENCHMARKS / name, "--quick", "--data", glyphs_root]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bound") == bounds


@pytest.mark.slow
def test_scaling_is_measured_and_extended(said):
    printed = said("scaling.py")
    assert printed.count("bound 1.8") == 2 and printed.count("| 64 |") == 2


@pytest.mark.slow
@pytest.mark.smoke
def test_remote_reads_the_same_episodes_cold_and_warm(said, monkeypatch):
    monkeypatch.setenv("METASHARD_CACHE", "set anew by the benchmark")
    printed = said("remote.py")
    assert all(f"\n{name} " in printed for name in ("local files", "cold", "warm"))
