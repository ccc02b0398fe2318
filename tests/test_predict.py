"""What a model says of files: everything is answered or named, once, and written nowhere but where it was asked for."""

from __future__ import annotations

import csv
import json
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from taught import DETECTION, PROTOTYPE, SEGMENTATION, VERIFICATION, taught
from test_cli import error_of, here  # noqa: F401  the fixture

from pipeline import predict as verb
from pipeline.data.images import decode, decode_mask, encode_png
from pipeline.errors import InputError
from pipeline.image_files import ImageFile, files_of
from pipeline.predict import Wanted, predict
from pipeline.predict_pairs import compare, named
from pipeline.teaching import adapted
from pipeline.teaching.adapted import UNKNOWN, Adapted
from pipeline.teaching.answers import answers, as_json, opened
from pipeline.teaching.pairs import compared, pair_threshold

FILES = ("one/a.png", "two/a.png", "two/b.png", "c.png")


def picture(number: int, *, height: int = 20, width: int = 24) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 1))
    return encode_png(noise.astype(np.uint8))


@pytest.fixture(scope="module")
def model(glyphs_root, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("model") / "m.safetensors"
    adapted.save(taught(glyphs_root, place.parent, **PROTOTYPE), place)
    return place


@pytest.fixture(scope="module")
def pixels(scenes_root, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("pixels") / "m.safetensors"
    adapted.save(taught(scenes_root, place.parent, **SEGMENTATION), place)
    return place


@pytest.fixture(scope="module")
def objects(scenes_root, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("objects") / "m.safetensors"
    adapted.save(taught(scenes_root, place.parent, **DETECTION), place)
    return place


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two folders that have files of the same names, and a file beside them."""
    for number, name in enumerate(FILES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return tmp_path / "photos"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def said(place: Path, path: Path) -> dict:
    """What the model says of one file by itself."""
    model = adapted.load(place)
    (answer,) = answers(model, [opened(model, path.read_bytes(), str(path))])
    return as_json(answer, model)


def test_every_image_is_answered_in_order_as_if_it_were_alone(model, photos, tmp_path):
    done = predict(model, [str(photos)], Wanted(tmp_path / "out"))
    told = read_json(tmp_path / "out" / "answers.json")
    names = [str(photos / name) for name in ("c.png", "one/a.png", "two/a.png", "two/b.png")]
    assert done.total == 4 and not done.errors
    assert [each["name"] for each in told["predictions"]] == names
    for each in told["predictions"]:
        alone = said(model, Path(each["name"]))
        assert each["label"] == alone["label"] and each["nearest"] == alone["nearest"]
        assert each["probabilities"] == pytest.approx(alone["probabilities"], rel=1e-5)
    assert told["task"] == "classification" and told["classes"] == ["a", "b", "c"]
    rows = rows_of(tmp_path / "out" / "answers.csv")
    assert [row["name"] for row in rows] == names
    for row, each in zip(rows, told["predictions"], strict=True):
        assert float(row["probability of b"]) == each["probabilities"]["b"] and row["label"] == each["label"]


def test_batches_change_nothing(model, photos, tmp_path, monkeypatch):
    predict(model, [str(photos)], Wanted(tmp_path / "a.json"))
    monkeypatch.setattr(verb, "MOST_PIXELS", 1)
    predict(model, [str(photos)], Wanted(tmp_path / "b.json"))
    one, other = (read_json(tmp_path / name)["predictions"] for name in ("a.json", "b.json"))
    for each, again in zip(one, other, strict=True):
        assert each["name"] == again["name"] and each["probability"] == pytest.approx(again["probability"], rel=1e-5)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def vast() -> bytes:
    """A PNG that claims 50,000 × 50,000 pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD = {
    "text.png": (b"no image at all", "not a whole image"),
    "empty.png": (b"", "is empty"),
    "cut.png": (picture(1)[:-20], "cut off"),
    "vast.png": (vast(), "50000 x 50000 is more than"),
    "cut.jpg": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "not a whole image"),
}


def test_a_bad_image_stops_no_other_and_is_named_at_the_end(model, photos, here):  # noqa: F811
    for name, (data, _) in BAD.items():
        (photos / name).write_bytes(data)
    done = here("predict", model, photos, photos / "gone.png", "--out", "out.json", "--csv", "out.csv")
    assert done.returncode == 1 and "6 of 10 have no answer" in done.stderr
    told = {Path(each["name"]).name: each for each in read_json(photos.parent / "out.json")["predictions"]}
    reasons = {**{name: reason for name, (_, reason) in BAD.items()}, "gone.png": "there is no such file"}
    for name, reason in reasons.items():
        assert reason in told[name]["error"] and "label" not in told[name]
        (line,) = [line for line in done.stderr.splitlines() if name in line]
        assert reason in line
    assert {name for name, each in told.items() if "label" in each} == {"a.png", "b.png", "c.png"}
    assert {row["error"] for row in rows_of(photos.parent / "out.csv")} >= {told["cut.png"]["error"], ""}


def test_lines_and_json_on_standard_output(model, photos, here):  # noqa: F811
    done = here("predict", model, photos / "c.png")
    assert done.returncode == 0 and done.stdout.startswith(f"{photos / 'c.png'}  ")
    told = json.loads(here("predict", model, photos, "--json").stdout)
    assert len(told["predictions"]) == 4


def test_patterns_and_repeated_names_mean_each_file_once(photos, monkeypatch):
    (photos / ".hidden.png").write_bytes(b"")
    (photos / "notes.txt").write_bytes(b"")
    monkeypatch.chdir(photos)
    found = files_of(["*/a.png", ".", "two/../two/b.png"])
    assert [file.name for file in found] == ["one/a.png", "two/a.png", "./c.png", "./two/b.png"]
    assert [file.place for file in found] == ["one/a.png", "two/a.png", "c.png", "two/b.png"]
    (photos / "[x].png").write_bytes(picture(9))
    assert [file.name for file in files_of(["[x].png"])] == ["[x].png"], "a file is no pattern"
    for nothing, reason in (("*.tiff", "nothing is called so"), ("no\0name", "is no path")):
        with pytest.raises(InputError, match=reason):
            files_of([nothing])
    (photos / "none").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        files_of(["none"])
    with pytest.raises(InputError, match="no image is named"):
        files_of([])


def test_files_of_one_name_stay_apart_and_nothing_leaves_the_folder(pixels, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos / "one")
    out = tmp_path / "out"
    before = {path for path in tmp_path.rglob("*")}
    predict(pixels, ["../two/a.png", "a.png", "../c.png"], Wanted(out))
    told = read_json(out / "answers.json")["predictions"]
    assert [each["mask"] for each in told] == ["masks/two/a.png.png", "masks/one/a.png.png", "masks/c.png.png"]
    made = {path for path in tmp_path.rglob("*")} - before
    assert all(path == out or path.is_relative_to(out) for path in made)
    assert not [path for path in made if path.name.endswith(".part")]


def test_a_mask_can_be_read_again_and_is_as_large_as_its_image(pixels, photos, tmp_path):
    out = tmp_path / "out"
    predict(pixels, [str(photos)], Wanted(out))
    names, model = read_json(out / "classes.json"), adapted.load(pixels)
    assert names == {"1": "a", "2": "b"}
    for each in read_json(out / "answers.json")["predictions"]:
        path = Path(each["name"])
        (answer,) = answers(model, [opened(model, path.read_bytes(), path.name)])
        mask = decode_mask((out / each["mask"]).read_bytes(), "mask")
        assert mask.shape == (20, 24) and np.array_equal(mask, answer.mask)
        assert each["areas"] == {names[str(value)]: (mask == value).mean() for value in np.unique(mask) if value}
        assert decode((out / each["overlay"]).read_bytes(), "overlay").shape == (20, 24, 3)
    areas = {(row["name"], row["class"]): float(row["area"] or 0) for row in rows_of(out / "answers.csv")}
    for each in read_json(out / "answers.json")["predictions"]:
        assert {key[1]: area for key, area in areas.items() if key[0] == each["name"] and area} == each["areas"]


def test_coco_tools_read_detections(objects, photos, tmp_path, capsys):
    from pycocotools.coco import COCO

    (photos / "bad.png").write_bytes(b"")
    done = predict(objects, [str(photos)], Wanted(tmp_path / "out", pictures=True), least=0.0)
    assert len(done.errors) == 1
    path = tmp_path / "out" / "coco.json"
    read, told = COCO(path), read_json(path)
    assert len(told["failed"]) == 1 and "bad.png" in told["failed"][0]["name"]
    found = read.loadRes(told["annotations"])
    assert {c["name"] for c in read.loadCats(read.getCatIds())} == {"a", "b"}
    by_name = {each["name"]: each for each in read_json(tmp_path / "out" / "answers.json")["predictions"]}
    for number in read.getImgIds():
        (image,) = read.loadImgs(number)
        assert (image["height"], image["width"]) == (20, 24)
        own, boxes = found.loadAnns(found.getAnnIds(imgIds=number)), by_name[image["file_name"]]["boxes"]
        assert len(own) == len(boxes) > 0
        for annotation, box in zip(own, boxes, strict=True):
            left, top, wide, high = annotation["bbox"]
            assert (left, top, left + wide, top + high) == pytest.approx(tuple(box["box"]))
            assert 0 <= left <= left + wide <= 24 and annotation["score"] == box["score"]
        drawn = decode((tmp_path / "out" / by_name[image["file_name"]]["picture"]).read_bytes(), "picture")
        assert drawn.shape == (20, 24, 3)
    predict(objects, [str(photos / "c.png")], Wanted(tmp_path / "alone.json"))
    assert read_json(tmp_path / "alone.json")["images"][0]["file_name"] == str(photos / "c.png")


def test_a_threshold_decides_what_is_unknown(model, photos, tmp_path):
    def labels(**options) -> set[str]:
        predict(model, [str(photos)], Wanted(tmp_path / "x.json"), **options)
        return {each["label"] for each in read_json(tmp_path / "x.json")["predictions"]}

    assert labels(least=1e9) == {UNKNOWN}
    assert UNKNOWN not in labels(least=-1e9) and UNKNOWN not in labels(is_closed=True)
    assert read_json(tmp_path / "x.json")["threshold"] is None


@pytest.mark.parametrize(
    ("fixture", "arguments", "reason"),
    [
        ("model", ["--threshold", "nan"], "is no likeness"),
        ("model", ["--threshold", "1", "--no-unknown"], "leave one out"),
        ("model", ["--pictures", "--out", "x"], "leave it out of classification"),
        ("model", ["--csv", "x.txt"], "ends with .csv"),
        ("model", ["--csv", "x.csv", "--out", "x.csv"], "by --out already"),
        ("model", ["--out", "folder.json"], "is a folder"),
        ("model", ["--out", "file"], "is a file"),
        ("pixels", ["--threshold", "0.5"], "the likeliest class"),
        ("pixels", ["--no-unknown"], "calls no image unknown"),
        ("objects", ["--threshold", "2"], "no score from 0 to 1"),
        ("objects", ["--pictures"], "name a folder"),
    ],
)
def test_what_is_asked_wrongly_is_told_before_anything_starts(request, here, photos, fixture, arguments, reason):  # noqa: F811
    (photos.parent / "folder.json").mkdir()
    (photos.parent / "file").write_bytes(b"")
    assert reason in error_of(here("predict", request.getfixturevalue(fixture), photos, *arguments))


def test_nothing_that_was_asked_about_is_written_over(pixels, photos, tmp_path):
    masks = tmp_path / "out" / "masks"
    masks.mkdir(parents=True)
    for name in ("a.png", "a.png.png"):
        (masks / name).write_bytes(picture(0))
    with pytest.raises(InputError, match="would be written over"):
        predict(pixels, [str(masks / "a.png"), str(masks / "a.png.png")], Wanted(tmp_path / "out"))
    assert (masks / "a.png.png").read_bytes() == picture(0)
    csv_model = tmp_path / "m.csv"
    csv_model.write_bytes(pixels.read_bytes())
    with pytest.raises(InputError, match="would be written over"):
        predict(csv_model, [str(photos)], Wanted(csv_model))


def test_what_was_written_is_not_read_again(pixels, photos):
    for _ in range(2):
        assert predict(pixels, [str(photos)], Wanted(photos / "out")).total == 4


def test_a_link_out_of_the_folder_is_not_followed(pixels, photos, tmp_path):
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "masks" / "one").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link out of"):
        predict(pixels, [str(photos)], Wanted(tmp_path / "out"))
    assert not list((tmp_path / "elsewhere").iterdir()) and not list((tmp_path / "out").glob("answers*"))


def test_strange_names_break_no_table_and_no_terminal(model, photos, here):  # noqa: F811
    names = ['a "b", c\n;=1+1.png', "\x1b[31mred.png", os.fsdecode(b"\xff\xfe.png"), "-rf.png"]
    strange = photos.parent / "strange"
    strange.mkdir()
    for name in names:
        (strange / name).write_bytes(picture(1))
    (strange / "\x1b]0;bad.png").write_bytes(b"")
    done = here("predict", model, strange, "--out", "out")
    assert done.returncode == 1 and "\x1b" not in done.stderr
    shown = here("predict", model, strange)
    assert "\x1b" not in shown.stdout + shown.stderr and len(shown.stdout.splitlines()) == len(names)
    rows = rows_of(photos.parent / "out" / "answers.csv")
    told = read_json(photos.parent / "out" / "answers.json")["predictions"]
    assert sorted(row["name"] for row in rows) == sorted(str(path) for path in strange.iterdir())
    assert [row["name"] for row in rows] == [each["name"] for each in told]


def test_what_is_no_file_is_not_waited_for(model, photos, tmp_path):
    os.mkfifo(photos / "pipe.png")
    done = predict(model, [str(photos)], Wanted(tmp_path / "x.json"))
    (error,) = done.errors
    assert "is no file" in error.said["error"] and done.total == 5


def test_a_model_that_was_altered_is_refused(model, photos, tmp_path):
    """Also one of another format, and what is none."""
    whole, broken = model.read_bytes(), tmp_path / "m"
    changes = {
        "sha256 differs": whole[:-1] + bytes([whole[-1] ^ 1]),
        "format 99": whole.replace(b'\\"format\\": 1,', b'\\"format\\":99,', 1),
        "is no model of metashard adapt": whole[: len(whole) // 2],
    }
    for reason, data in changes.items():
        broken.write_bytes(data)
        with pytest.raises(InputError, match=reason):
            predict(broken, [str(photos)], Wanted())


def test_a_model_that_was_taught_on_a_gpu_is_used_without_one(model, photos, tmp_path, monkeypatch):
    """Files hold values without a device; that there is a GPU is asked on the machine where it is loaded."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = adapted.load(model)
    assert isinstance(found, Adapted) and found.support.inputs.device.type == "cpu"
    assert not predict(model, [str(photos)], Wanted(tmp_path / "x.json")).errors


@pytest.fixture(scope="module")
def persons(glyphs_root, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("persons") / "m.safetensors"
    adapted.save(taught(glyphs_root, place.parent, **VERIFICATION), place)
    return place


def test_pairs_are_told_in_their_order_and_each_image_is_read_once(persons, photos, here, monkeypatch):  # noqa: F811
    (photos / "bad.png").write_bytes(b"")
    asked = [("c.png", "c.png"), ("one/a.png", "two/a.png"), ("two/a.png", "one/a.png"), ("c.png", "bad.png")]
    read: list[str] = []
    keep = ImageFile.read
    monkeypatch.setattr(ImageFile, "read", lambda file: read.append(file.name) or keep(file))
    for name, head, fold in (("plain.csv", [], []), ("named.csv", ["fold", "image_a", "image_b", "same"], ["0"])):
        with (photos / name).open("w", newline="") as file:
            table = csv.writer(file)
            table.writerows([head] if head else [])
            table.writerows([*fold, *pair, *["1"] * len(fold)] for pair in asked)
        read.clear()
        done = here("predict", persons, "--pairs", photos / name, "--out", "x.json", "--csv", "x.csv")
        assert sorted(read) == ["bad.png", "c.png", "one/a.png", "two/a.png"]
        assert done.returncode == 1 and "1 of 4 have no answer" in done.stderr and "'bad.png': is empty" in done.stderr
        told = read_json(photos.parent / "x.json")["predictions"]
        assert [(each["image_a"], each["image_b"]) for each in told] == asked
        assert told[0]["same"] is True and told[0]["likeness"] == pytest.approx(1, abs=1e-5)
        assert told[1]["likeness"] == pytest.approx(told[2]["likeness"], abs=1e-6)
        assert "is empty" in told[3]["error"]
        rows = rows_of(photos.parent / "x.csv")
        assert [row["same"] for row in rows] == [*(str(each["same"]) for each in told[:3]), ""]


def test_two_images_are_compared(persons, photos, here):  # noqa: F811
    shown = here("predict", persons, "--compare", photos / "c.png", photos / "c.png")
    assert shown.returncode == 0 and "  same  cosine 1.000, same from " in shown.stdout
    other = here("predict", persons, "--compare", photos / "c.png", photos / "c.png", "--threshold", "2")
    assert "  different  " in other.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--compare", "a"], "takes two images, and 1 are named"),
        (["--compare", "a", "b", "--no-unknown"], "say nothing of pairs"),
        (["--compare", "a", "b", "--threshold", "nan"], "is no cosine"),
        (["--pairs", "three.csv"], "line 2: 3 values are no pair"),
        (["--pairs", "three.csv", "a"], "names the images"),
        (["--pairs", "empty.csv"], "holds no pair"),
        (["--pairs", "gone.csv"], "cannot be read"),
    ],
)
def test_pairs_that_are_none_are_told(persons, tmp_path, here, arguments, reason):  # noqa: F811
    (tmp_path / "three.csv").write_text("a,b\na,b,c\n")
    (tmp_path / "empty.csv").write_text("image_a,image_b\n")
    assert reason in error_of(here("predict", persons, *arguments))


def test_without_two_images_of_a_class_or_classes_at_all_nothing_is_compared(glyphs_root, pixels, tmp_path):
    place = tmp_path / "m"
    adapted.save(taught(glyphs_root, tmp_path, shots=1, **VERIFICATION), place)
    asked = named(["a", "b"])
    with pytest.raises(InputError, match="no two images of one class"):
        compare(place, asked, Wanted())
    with pytest.raises(InputError, match="task.kind = segmentation: pairs are compared by"):
        compare(pixels, asked, Wanted())


def test_the_threshold_of_pairs_parts_them_best():
    """Two classes in two directions, one of them wide: from the least cosine within a class on pairs are of one."""
    angles = torch.tensor([0.0, 0.2, 0.5, 1.4, 1.5], dtype=torch.float64)
    features, targets = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 0, 0, 1, 1])
    found = pair_threshold(features, targets)
    assert found is not None and math.cos(0.9) < found < math.cos(0.5)
    assert pair_threshold(features, torch.arange(5)) is None
    order = torch.tensor([3, 1, 4, 0, 2])
    assert pair_threshold(features[order], targets[order]) == pytest.approx(found)
    assert pair_threshold(features[:3], targets[:3]) is None
    same = compared(features[:1], features[1:2], least=found)
    assert same[0].same and same[0].likeness == pytest.approx(math.cos(0.2))
