"""`choose samples` on folders of images: what it chooses depends on the images alone, and faults are told by name."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
from gloo import work_here
from small import small_config

from pipeline import checkpoint, cli, selection
from pipeline.choose_samples import choose_samples
from pipeline.config import dump
from pipeline.data.images import decode, encode_png
from pipeline.data.shards import Shards
from pipeline.embed import embed
from pipeline.errors import InputError
from pipeline.selection import Strategy


@pytest.fixture(scope="module")
def runs(tmp_path_factory, glyphs_root):
    """A folder of runs: `prototype`, and `maml`, which keeps no norm statistics."""
    place = tmp_path_factory.mktemp("runs")
    few = {"meta": {"steps": 2, "batch": 2}, "data": {"invert": True}}
    work_here(dump(small_config(glyphs_root, place, learner={"kind": "prototype"}, **few)), str(place / "prototype"))
    work_here(dump(small_config(glyphs_root, place, **few)), str(place / "maml"))
    return place


@pytest.fixture(scope="module")
def drawings(tmp_path_factory, glyphs_root):
    """Twelve drawings of each of three classes, all in one folder, whose names say nothing."""
    place = tmp_path_factory.mktemp("pool")
    files = sorted((glyphs_root.parent / "images").rglob("*.png"))[:36]
    for number, file in enumerate(files):
        shutil.copy(file, place / f"{number * 7 % 36:02d}.png")
    return place


def chosen(folder, runs, **asked):
    return choose_samples(folder, runs / "prototype", **{"budget": 6, "strategy": Strategy.TYPICALITY, **asked})


def contents(found) -> list[bytes]:
    return [file.read_bytes() for file in found.files]


@pytest.mark.parametrize("strategy", Strategy)
def test_neither_names_nor_places_nor_their_order_matter(drawings, runs, tmp_path, strategy):
    """The same images under other names, in other folders, written in another order: the same choice."""
    first = contents(chosen(drawings, runs, strategy=strategy, seed=3))
    assert len(set(first)) == 6
    for number, file in enumerate(sorted(drawings.iterdir(), reverse=True)):
        place = tmp_path / f"part{number % 4}" / "deeper"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / f"{number * 11 % 36}.png")
    assert contents(chosen(tmp_path, runs, strategy=strategy, seed=3)) == first


def test_features_are_those_that_embed_makes_of_the_packed_images(drawings, runs, tmp_path, monkeypatch):
    seen = {}

    def looked(features, budget, strategy, *, seed):
        seen["features"] = features
        return selection.choose(features, budget, strategy, seed=seed)

    monkeypatch.setattr("pipeline.choose_samples.choose", looked)
    found = chosen(drawings, runs)
    embedded = embed(checkpoint.best(runs / "prototype"), tmp_path / "features")
    assert found.encoder == embedded.encoder and found.pool == 36
    packed = Shards(embedded)
    whole = np.stack([packed.image(row).ravel() for row in range(len(embedded))])
    nearest = np.abs(whole[None] - seen["features"][:, None]).max(2).min(1)
    assert nearest.max() < 1e-5


def test_images_of_another_size_and_colour_are_converted(drawings, runs, tmp_path):
    for number, file in enumerate(sorted(drawings.iterdir())):
        array = decode(file.read_bytes(), "x", channels=3)
        larger = np.kron(array, np.ones((3, 3, 1), np.uint8))
        (tmp_path / f"{number}.png").write_bytes(encode_png(larger))
    assert len(set(chosen(tmp_path, runs).files)) == 6


def test_the_command_line_tells_the_list_in_three_forms(drawings, runs, tmp_path, capsys, monkeypatch):
    def here(*more):
        base = ["metashard", "choose", "samples", drawings, "--run", "prototype", "--runs", runs, "--budget", 4]
        monkeypatch.setattr("sys.argv", [str(part) for part in (*base, *more)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    lines = here("--out", tmp_path / "new" / "list.csv").splitlines()
    with open(tmp_path / "new" / "list.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"rank": str(rank), "file": line} for rank, line in enumerate(lines, 1)] and len(rows) == 4
    told = json.loads(here("--json", "--out", tmp_path / "list.txt"))
    assert told["files"] == lines == (tmp_path / "list.txt").read_text().splitlines()
    assert (told["budget"], told["pool"], told["strategy"], told["seed"]) == (4, 36, "typicality", 0)
    assert here("--strategy", "random", "--seed", 1).splitlines() != lines


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--budget", "37"], "--budget 37: there are 36 samples to choose from; give 1 to 36"),
        (["--budget", "0"], "--budget 0: there are 36 samples"),
        (["--budget", "2", "--strategy", "best"], "--strategy best: .* typicality, random"),
        (["--budget", "2", "--run", "nothing"], "nothing is neither a run under"),
        (["--budget", "2", "--run", "maml"], "--run: running.block0_mean is not in .*keeps norm statistics"),
        (["--budget", "2", "--out", "."], "--out .: is a folder; name a file"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(drawings, runs, capsys, monkeypatch, asked, words):
    run = [] if "--run" in asked else ["--run", "prototype"]
    monkeypatch.setattr(
        "sys.argv", ["metashard", "choose", "samples", str(drawings), *run, "--runs", str(runs), *asked]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("looking at")]
    assert ended.value.code == 2
    assert re.search(words, line), line


def test_images_that_cannot_be_used_are_named(drawings, runs, tmp_path):
    folder = shutil.copytree(drawings, tmp_path / "pool")
    whole = (folder / "03.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:-20])
    (folder / "text.jpg").write_bytes(b"no image")
    (folder / "sub").mkdir()
    (folder / "sub" / "again.png").write_bytes(whole)
    with pytest.raises(InputError) as caught:
        chosen(folder, runs)
    said = str(caught.value)
    assert "cut.png: PNG is cut off" in said and "text.jpg: not a whole image" in said
    assert "is to the encoder what" in said and "03.png" in said and "sub/again.png" in said
    for number in range(3):
        (folder / f"more{number}.gif").write_bytes(b"GIF")
    with pytest.raises(InputError, match="; and 3 more$"):
        chosen(folder, runs)


def test_a_folder_that_is_no_pool_is_refused(drawings, runs, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        chosen(tmp_path / "nothing", runs)
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    (tmp_path / "empty" / "sub" / "notes.txt").write_text("x")
    (tmp_path / "empty" / ".hidden.png").write_text("x")
    with pytest.raises(InputError, match="holds no image; name a folder"):
        chosen(tmp_path / "empty", runs)
    (tmp_path / "empty" / "two\nlines.png").write_text("x")
    with pytest.raises(InputError, match=r"'two\\nlines.png' cannot be told in a line; rename it"):
        chosen(tmp_path / "empty", runs, budget=1)
    os.remove(tmp_path / "empty" / "two\nlines.png")
    (tmp_path / "empty" / "scan.tiff").write_text("x")
    with pytest.raises(InputError, match="'scan.tiff' is of a kind that is not read"):
        chosen(tmp_path / "empty", runs)


def test_an_encoder_of_anything_but_images_is_refused(drawings, runs, tmp_path, glyphs_root):
    index = embed(checkpoint.best(runs / "prototype"), tmp_path / "features")
    config = small_config(
        index.root, tmp_path, model={"kind": "features"}, learner={"kind": "ridge"}, meta={"steps": 1, "batch": 2}
    )
    work_here(dump(config), str(tmp_path / "on-features"))
    with pytest.raises(InputError, match="has no encoder, only what was learned on features"):
        choose_samples(drawings, tmp_path / "on-features", budget=2, strategy=Strategy.RANDOM)
