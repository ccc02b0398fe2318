"""The benchmarks run, at tiny sizes and without looking at their figures."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def said(monkeypatch, capsys) -> Callable[[str], str]:
    """What a benchmark prints that is run in this process: a new one would import everything again."""

    def run(name: str) -> str:
        monkeypatch.setattr("sys.argv", [name, "--quick"])
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_throughput_agrees_on_the_gradient_and_prints_a_row_each(said):
    printed = said("throughput.py")
    assert printed.count("metashard (") == 3
    assert printed.count("plain loop, ") == 6


def test_loading_compares_three_ways_and_measures_the_index(said):
    printed = said("loading.py")
    assert all(name in printed for name in ("raw tars", "encoded tars", "Pillow from folders"))
    assert printed.count("bound") == 3


@pytest.mark.ray
def test_startup_measures_all_three(glyphs_root):
    command = [sys.executable, BENCHMARKS / "startup.py", "--quick", "--data", glyphs_root]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bound") == 2
