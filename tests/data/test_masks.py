"""Pictures with masks beside them become samples, one for each class that is large enough."""

import json

import numpy as np
import pytest

from pipeline import prepare
from pipeline.data.images import encode_png
from pipeline.data.importers.masks import masks
from pipeline.data.index import Index
from pipeline.data.shards import Shards
from pipeline.errors import InputError


def folder(place, truths: dict[str, np.ndarray], *, names: object = None, more: tuple[str, ...] = ()):
    for part in ("images", "masks"):
        (place / part).mkdir(parents=True)
    (place / "classes.json").write_text(json.dumps(names or {"1": "bird", "3": "fish"}))
    for name, mask in truths.items():
        (place / "masks" / f"{name}.png").write_bytes(encode_png(mask))
        (place / "images" / f"{name}.png").write_bytes(encode_png(np.full((*mask.shape, 3), 90, np.uint8)))
    for name in more:
        (place / "images" / f"{name}.png").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8)))
    return place


MASK = np.zeros((10, 10), np.uint8)
MASK[:3], MASK[3, :4], MASK[9] = 3, 1, 255


def test_a_picture_is_a_sample_of_every_class_that_is_large_enough(tmp_path):
    few = masks(folder(tmp_path / "x", {"a": MASK, "b": np.full((4, 4), 1, np.uint8)}), min_area=0.05)
    assert [(sample.key, sample.label) for sample in few.samples] == [("a/3", "fish"), ("b/1", "bird")]
    fish = few.samples[0]
    # What is too small to be drawn for is there all the same: it is not looked at.
    expected = np.zeros_like(MASK)
    expected[:3], expected[3, :4], expected[9] = 1, 255, 255
    assert fish.meta() == {"classes": ["fish"]} and (fish.mask() == expected).all()
    both = masks(tmp_path / "x", min_area=0.01)
    assert fish.meta()["classes"] == ["fish"] and {sample.meta().get("picture") for sample in both.samples} == {
        "a",
        None,
    }
    bird = both.samples[0]
    assert (bird.label, bird.meta()["classes"]) == ("bird", ["bird", "fish"])
    assert bird.mask()[0, 0] == 2 and bird.mask()[3, 0] == 1


def test_what_is_left_out_is_told(tmp_path, capsys):
    place = folder(tmp_path / "x", {"a": MASK, "c": np.zeros((5, 5), np.uint8)}, more=("d", "e"))
    notes = masks(place).notes
    assert notes == (
        "2 images have no mask and are left out",
        "1 images show no class on 1 % of them and are left out (0 is no class, 255 is not looked at)",
    )
    made = prepare.pack(str(place), tmp_path / "out", layout="masks", size=8, rule="train=0.5,test=0.5")
    assert "note: " in capsys.readouterr().err and len(made) == 2
    mask, classes = Shards(Index.open(tmp_path / "out")).mask(0, "x")
    assert mask.shape == (8, 8) and set(classes) == {"bird", "fish"} and set(np.unique(mask)) == {0, 1, 2, 255}


def test_a_coco_file_names_the_values(tmp_path):
    place = folder(tmp_path / "x", {"a": MASK})
    (place / "classes.json").rename(place / "instances.json")
    (place / "instances.json").write_text(json.dumps({"categories": [{"id": 1, "name": "b"}, {"id": 3, "name": "f"}]}))
    assert {sample.label for sample in masks(place).samples} == {"b", "f"}


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(InputError, match="no classes.json that names"):
        masks(tmp_path)
    place = folder(tmp_path / "x", {"a": MASK})
    with pytest.raises(InputError, match="--min-area 1 is no share"):
        masks(place, min_area=1)
    (place / "images" / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="a.jpg and a.png have one name"):
        masks(place)
    (place / "images" / "a.jpg").unlink()
    (place / "classes.json").write_text('["bird"]')
    with pytest.raises(InputError, match="names no classes"):
        masks(place)
    (place / "classes.json").write_text('{"1": "bird"}')
    with pytest.raises(InputError, match="a.png: value 3 has no name"):
        masks(place)
    (place / "images" / "a.png").unlink()
    with pytest.raises(InputError, match="1 masks have no image, as 'a'"):
        masks(place)
    (place / "masks" / "a.png").unlink()
    (place / "masks").rmdir()
    (place / "classes.json").write_text('{"1": "bird"}')
    with pytest.raises(InputError, match="masks: no such folder"):
        masks(place)


def test_a_mask_of_another_size_is_refused(tmp_path):
    place = folder(tmp_path / "x", {"a": MASK})
    (place / "images" / "a.png").write_bytes(encode_png(np.zeros((10, 12, 3), np.uint8)))
    with pytest.raises(InputError, match=r"its mask is \(10, 10\) .*, its image \(10, 12\)"):
        prepare.pack(str(place), tmp_path / "out", layout="masks", size=8, rule="train=1.0")


def test_the_real_set_is_read():
    """510 pictures, 455 of them with masks."""
    from pathlib import Path

    place = Path(__file__).parents[2].parent / "shared" / "data" / "coco_mini"
    if not place.is_dir():
        pytest.skip("the data set is not on this machine")
    source = masks(place)
    assert (
        source.notes[0].startswith("55 images have no mask") and len({sample.label for sample in source.samples}) > 51
    )
