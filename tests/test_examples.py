"""What docs/examples says is run, block by block, and what it shows is what is printed."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline import cli, drawing, evaluate, tracking, train
from pipeline.data.glyphs import characters, draw
from pipeline.data.images import encode_png
from pipeline.tracking import SyncReport, sync

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
FENCE = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(r"\d+\.\d+")
CLOSE = 5.0
"""Points that an accuracy may be away: products are added up in another order elsewhere, and training begins to differ."""
NEW, TAUGHT = ("alpha", "beta", "gamma"), 5
# MLflow asks SQLAlchemy 2.1 and pandas 3 for what will go one day.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow.*"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]


class Block(NamedTuple):
    """A fenced block: its language, the file that it is to be put into, if any, and what stands in it."""

    kind: str
    file: str
    text: str


def blocks(name: str) -> list[Block]:
    return [Block(*found) for found in FENCE.findall((EXAMPLES / name).read_text())]


@pytest.fixture
def here(tmp_path, monkeypatch, glyphs_root) -> Path:
    """A folder with the images, the packed data and the few new images that examples speak of; modules there can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "images").symlink_to(glyphs_root.parent / "images")
    others = [character for character in characters() if character.split == "test"][15::40]
    for label, character in zip(NEW, others, strict=False):
        (tmp_path / "new" / label).mkdir(parents=True)
        (tmp_path / "unseen").mkdir(exist_ok=True)
        for number in range(TAUGHT + 1):
            file = f"new/{label}/{number}.png" if number < TAUGHT else f"unseen/{label}-1.png"
            (tmp_path / file).write_bytes(encode_png(draw(character, seed=0, number=number, size=16).image))
    return tmp_path


@pytest.fixture
def packed(here, glyphs_root) -> Path:
    (here / "data").mkdir()
    shutil.copytree(glyphs_root, here / "data" / "mine")
    manifest = here / "data" / "mine" / "index" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "name": "mine"}))
    return here


@pytest.fixture
def untold(monkeypatch) -> None:
    """No MLflow and no pictures, where the example is not about them."""
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)
    monkeypatch.setattr(evaluate.tracking, "sync", lambda run, uri: SyncReport("", 0, (), True, ""))
    monkeypatch.setattr(drawing, "draw", lambda *_, **__: [])


@pytest.fixture
def told_here(monkeypatch) -> None:
    """MLflow is told in this process, where it is imported anyway."""
    monkeypatch.setattr(tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(tracking.Sender, "stop", lambda self, limit: sync(self.run_dir, uri=self.uri).complete)


def run(name: str, monkeypatch) -> None:
    """Do what an example says, in order; each output that it shows must have been printed."""
    said, names = "", {}
    for block in blocks(name):
        if block.file:
            Path(block.file).write_text(block.text)
        elif block.kind == "python":
            said = executed(block.text, names)
        elif block.kind == "console":
            for command, shown in commands(block.text):
                assert_shown(shown, called(command, monkeypatch))
        elif block.kind == "output":
            assert_shown(block.text, said)


def executed(code: str, names: dict[str, Any]) -> str:
    told = io.StringIO()
    with redirect_stdout(told):
        exec(compile(code, "example", "exec"), names)
    return told.getvalue()


def commands(text: str) -> Iterator[tuple[list[str], str]]:
    """Command lines of metashard, and what is shown of the output of each."""
    for part in text.split("$ metashard ")[1:]:
        command, _, shown = part.partition("\n")
        yield shlex.split(command), shown


def called(command: list[str], monkeypatch) -> str:
    monkeypatch.setattr("sys.argv", ["metashard", *command])
    told = io.StringIO()
    with redirect_stdout(told), pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, command
    return told.getvalue()


def assert_shown(shown: str, said: str) -> None:
    """Every line of `shown` is there; `…` stands for anything, and figures may be a little other on another processor."""
    for line in filter(None, map(spaced, shown.splitlines())):
        pattern = ".*".join(map(re.escape, FIGURE.sub("#", line).split("…"))).replace(r"\#", f"({FIGURE.pattern})")
        found = [match for other in said.splitlines() if (match := re.fullmatch(pattern, spaced(other)))]
        assert found, f"{line!r} was not printed, but:\n{said}"
        figures = [float(figure) for figure in FIGURE.findall(line)]
        assert [float(figure) for figure in found[0].groups()] == pytest.approx(figures, abs=CLOSE), line


def spaced(line: str) -> str:
    return " ".join(line.split())


def test_own_images(here, untold, monkeypatch):
    run("own_images.md", monkeypatch)


def test_own_learner(packed, untold, monkeypatch):
    run("own_learner.md", monkeypatch)


def test_own_task(packed, untold, monkeypatch):
    run("own_task.md", monkeypatch)


def test_reading_the_mlflow_run(packed, told_here, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run("reading_the_mlflow_run.md", monkeypatch)


def test_every_example_has_a_test():
    tests = Path(__file__).read_text()
    assert [name for name in (path.name for path in EXAMPLES.iterdir()) if f'run("{name}"' not in tests] == []


def patched(text: str, diff: str) -> str:
    """A text with the additions of a diff whose other lines must be there, in their order."""
    at = 0
    for hunk in diff.split("@@\n")[1:]:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] == " ")
        after = "".join(line[1:] for line in lines)
        assert text.count(before, at) == 1 or not any(line[0] == "+" for line in lines), hunk
        at = text.index(before, at)
        text = text[:at] + after + text[at + len(before) :]
    return text


@pytest.mark.slow
def test_a_kind_of_its_own_trains(packed, monkeypatch):
    """In a copy of the package, changed as the example says."""
    shutil.copytree(ROOT / "pipeline", packed / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "cluster", packed / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    for block in blocks("own_learner.md"):
        if block.kind == "diff":
            path = packed / block.text.splitlines()[1].removeprefix("+++ b/")
            path.write_text(patched(path.read_text(), block.text))
        elif block.file == "nearest.py":
            (packed / "pipeline" / "learners" / "nearest.py").write_text(block.text)
    tree = {"name": "kind", "data": {"root": "data/mine", "ways": 3, "queries": 2}, "learner": {"kind": "nearest"}}
    tree |= {"model": {"kind": "conv4", "width": 4}, "meta": {"steps": 2}, "evaluate": {"episodes": 4}}
    (packed / "kind.yaml").write_text(json.dumps({**tree, "engine": {"mode": "loop"}, "validation": {"episodes": 2}}))
    command = [sys.executable, "-m", "pipeline.cli", "train", "kind.yaml", "--run", "first"]
    done = subprocess.run(command, cwd=packed, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    taught = [sys.executable, "-m", "pipeline.cli", "adapt", "first", "--support", "new", "--out", "new.safetensors"]
    done = subprocess.run(taught, cwd=packed, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "alpha (5)" in done.stdout, done.stderr
