"""Class folders, zips and Omniglot are read completely or refused."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tars import class_folders, picture

from pipeline.data.images import decode, encode_png
from pipeline.data.importers.folder import folder
from pipeline.data.importers.omniglot import omniglot
from pipeline.data.pack import check
from pipeline.data.source import keys_of
from pipeline.errors import InputError

OMNIGLOT = Path(__file__).parents[3] / "shared" / "data" / "omniglot"
PNG = encode_png(picture(0))


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in files.items():
            target.writestr(name, data)
    return path


def labels(source):
    return sorted(sample.label for sample in source.samples)


def test_folders_are_classes(tmp_path):
    source = folder(class_folders(tmp_path / "set"))
    check(source)
    assert (source.name, source.splits) == ("set", {})
    assert labels(source) == ["ant"] * 4 + ["bee"] * 4 + ["cat"] * 4
    assert {sample.key for sample in source.samples if sample.label == "ant"} == {f"ant/{n}" for n in range(4)}
    first = min(source.samples, key=lambda sample: sample.key)
    np.testing.assert_array_equal(decode(first.image(), "x"), picture(0))


def test_nested_folders_hidden_files_and_notes(tmp_path):
    for name in ("a/1.png", "a/b/1.png", "a/.hidden.png", ".git/x.png", "a/notes.txt", "README", "a/b/Thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    assert labels(folder(tmp_path)) == ["a", "a/b"]


def test_other_formats_become_png(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(picture(3)[..., 0]).save(tmp_path / "a" / "face.PGM", "PPM")
    (sample,) = folder(tmp_path).samples
    assert sample.extension == "png"
    np.testing.assert_array_equal(sample.image(), picture(3))


def test_a_format_that_is_not_read_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.tiff").write_bytes(b"II*\0")
    with pytest.raises(InputError, match="'a/x.tiff' is of a kind that is not read"):
        folder(tmp_path)


def test_an_image_outside_class_folders_is_named(tmp_path):
    (tmp_path / "x.png").write_bytes(PNG)
    with pytest.raises(InputError, match="'x.png' lies in no class folder"):
        folder(tmp_path)


def test_split_folders_become_splits(tmp_path):
    for name in ("train/ant/1.png", "train/bee/1.png", "test/cat/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    source = folder(tmp_path)
    assert source.splits == {"train": ["ant", "bee"], "test": ["cat"]} and labels(source) == ["ant", "bee", "cat"]


def test_linked_folders_are_followed_but_not_for_ever(tmp_path):
    class_folders(tmp_path / "disk")
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "disk" / "ant", tmp_path / "set" / "ant")
    assert labels(folder(tmp_path / "set")) == ["ant"] * 4
    os.symlink(tmp_path / "set", tmp_path / "disk" / "ant" / "loop")
    with pytest.raises(InputError, match="is the same folder as"):
        folder(tmp_path / "set")


@pytest.mark.parametrize("top", ["", "birds/"])
def test_zips_are_read_like_folders(tmp_path, top):
    files = {f"{top}wren/1.png": PNG, f"{top}owl/1.png": PNG, "__MACOSX/birds/._x.png": b"", f"{top}.DS_Store": b""}
    source = folder(write_zip(tmp_path / "birds.zip", files))
    assert labels(source) == ["owl", "wren"] and source.samples[0].image() == PNG


@pytest.mark.parametrize("name", ["../x/1.png", "/x/1.png", "a/../../1.png"])
def test_zip_names_stay_inside(tmp_path, name):
    with pytest.raises(InputError, match="leaves the zip"):
        folder(write_zip(tmp_path / "a.zip", {name: PNG}))


def test_damaged_zips_are_named(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a/1.png": PNG * 50})
    data = path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="no readable zip"):
        folder(tmp_path / "cut.zip")
    (tmp_path / "flip.zip").write_bytes(data[:60] + bytes([data[60] ^ 255]) + data[61:])
    with pytest.raises(InputError, match="file 'a/1.png' cannot be read"):
        folder(tmp_path / "flip.zip").samples[0].image()
    with pytest.raises(InputError, match="no such folder or zip"):
        folder(tmp_path / "none")


def test_keys_are_unique_and_stable():
    keys = keys_of(["a b/1.png", "a_b/1.png", "c/1.png", "c/1.jpg", "d.e/1.x.png"])
    assert len(set(keys)) == 5 and keys[4] == "d_e/1_x"
    assert keys_of(["c/1.jpg", "c/1.png"]) == [keys[3], keys[2]]


def fake_omniglot(root, *, turns=("rot000", "rot090", "rot180", "rot270"), other="train"):
    (root / "splits").mkdir(parents=True)
    for number, name in enumerate(("background", "evaluation")):
        names = [f"images_{name}/Abc_(x)/character{number}{c}/000{n}.png" for c in (1, 2) for n in (1, 2)]
        write_zip(root / f"images_{name}.zip", {entry: PNG for entry in names})
    lines = {"train": ["Abc_(x)/character01"], "val": ["Abc_(x)/character02"], "test": ["Abc_(x)/character11"]}
    text = {split: [f"{name}/{turn}" for name in names for turn in turns] for split, names in lines.items()}
    text[other].append("Abc_(x)/character12/rot000")
    for split, rows in text.items():
        (root / "splits" / f"vinyals_{split}.txt").write_text("\n".join(rows))
    return root


def test_the_turns_of_a_character_belong_together(tmp_path):
    with pytest.raises(InputError, match="four turns of .*character12 are not in one split"):
        omniglot(fake_omniglot(tmp_path / "a"))
    with pytest.raises(InputError, match="'Abc_\\(x\\)/character01/rot45' is not"):
        omniglot(fake_omniglot(tmp_path / "b", turns=("rot45",)))


def test_without_split_files_the_user_must_say(tmp_path):
    root = fake_omniglot(tmp_path)
    (root / "splits" / "vinyals_val.txt").unlink()
    with pytest.raises(InputError, match="vinyals_val.txt is absent"):
        omniglot(root)
    for path in (root / "splits").iterdir():
        path.unlink()
    assert omniglot(root).splits == {}
    (root / "images_evaluation.zip").unlink()
    with pytest.raises(InputError, match="images_evaluation.zip is absent"):
        omniglot(root)


@pytest.mark.skipif(not OMNIGLOT.exists(), reason="Omniglot is not on this machine")
def test_the_real_omniglot():
    source = omniglot(OMNIGLOT)
    check(source)
    assert len(source.samples) == 32_460
    assert {split: len(names) for split, names in source.splits.items()} == {"train": 1028, "val": 172, "test": 423}
    assert len({sample.label for sample in source.samples}) == 1623
    assert decode(source.samples[-1].image(), "x").shape == (105, 105, 1)
