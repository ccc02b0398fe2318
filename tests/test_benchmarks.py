"""The benchmarks run, at tiny sizes and without looking at their figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(name: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / name, "--quick", *options], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_throughput_agrees_on_the_gradient_and_prints_a_row_each():
    said = run("throughput.py")
    assert said.count("metashard (") == 2
    assert said.count("plain loop, ") == 4


def test_loading_compares_three_ways_and_measures_the_index():
    said = run("loading.py")
    assert all(name in said for name in ("raw tars", "encoded tars", "Pillow from folders"))
    assert said.count("bound") == 3


@pytest.mark.ray
def test_startup_measures_all_three(glyphs_root):
    said = run("startup.py", "--data", str(glyphs_root))
    assert said.count("bound") == 2
