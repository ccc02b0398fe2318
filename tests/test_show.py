"""The verb `show`: what it draws, what it lists, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import show
from pipeline.errors import InputError
from pipeline.spool import Spool


def test_an_episode_of_a_data_set_is_drawn(glyphs_root, tmp_path):
    (path,) = show.show(glyphs_root, tmp_path / "new" / "episode.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 800
    first = path.read_bytes()
    assert show.show(glyphs_root, path) == [path] and path.read_bytes() == first


def test_an_episode_needs_two_classes_of_two_samples(glyphs_root, tmp_path, monkeypatch):
    index = show.Index.open(glyphs_root)
    index.counts = np.ones_like(index.counts)
    monkeypatch.setattr(show.Index, "open", lambda root: index)
    with pytest.raises(InputError, match="fewer than 2 classes"):
        show.show(glyphs_root, tmp_path / "x.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_images_of_any_dtype_are_brought_to_0_1(dtype):
    image = np.linspace(0, 200, 12).astype(dtype).reshape(2, 2, 3)
    found = show._unit(image)
    assert 0 <= found.min() and found.max() <= 1
    assert show._unit(np.full((2, 2, 1), 3.0)).max() <= 1


@pytest.fixture
def run(tmp_path):
    """A run that has told nothing but that it is one."""
    folder = tmp_path / "a"
    folder.mkdir()
    told = Spool(folder)
    told.status("FINISHED")
    told.close()
    return folder


def test_pictures_of_a_run_are_listed_or_copied_with_their_numbers(run, tmp_path):
    with pytest.raises(InputError, match="no pictures yet"):
        show.show(run, Path("episode.png"))
    (run / "pictures").mkdir()
    (run / "pictures" / "losses.png").write_bytes(b"png")
    (run / "pictures" / "losses.csv").write_text("step,train_loss\n")
    assert show.show(run, Path("episode.png")) == [run / "pictures" / "losses.png"]
    (copied,) = show.show(run, tmp_path / "out")
    assert copied == tmp_path / "out" / "losses.png" and copied.read_bytes() == b"png"
    assert (tmp_path / "out" / "losses.csv").read_text() == "step,train_loss\n"
    with pytest.raises(InputError, match="neither a packed data set nor a run"):
        show.show(tmp_path, Path("episode.png"))


def test_only_runs_that_have_ended_are_drawn_anew(run, glyphs_root):
    with pytest.raises(InputError, match="its training has not ended; metashard train CONFIG --resume"):
        show.show(run, Path("episode.png"), redraw=True)
    with pytest.raises(InputError, match="--redraw: .* is a data set"):
        show.show(glyphs_root, Path("episode.png"), redraw=True)
