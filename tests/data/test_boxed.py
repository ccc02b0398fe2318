"""Pictures with boxes in the layouts of COCO, Pascal VOC and FlickrLogos: what is read, clipped, left out and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as runs

from pipeline import prepare
from pipeline.data.images import encode_png
from pipeline.data.importers.boxed import inside
from pipeline.data.importers.coco import _packed_length, coco
from pipeline.data.importers.logos import logos
from pipeline.data.importers.voc import voc
from pipeline.data.index import Index
from pipeline.data.shards import Shards
from pipeline.errors import InputError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
WIDTH, HEIGHT = 20, 10
SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)))


def annotation(image: int, kind: int, bbox: list[float], **more) -> dict:
    return {"image_id": image, "category_id": kind, "bbox": bbox, **more}


def coco_folder(
    place: Path, annotations: list[dict], *, images: tuple[str, ...] = ("a.png", "b.png"), there=None, **fields
) -> Path:
    listed = [{"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT} for n, name in enumerate(images, 1)]
    kinds = [{"id": 7, "name": "bird"}, {"id": 9, "name": "fish"}]
    place.mkdir(exist_ok=True)
    told = {"images": listed, "annotations": annotations, "categories": kinds}
    (place / "instances.json").write_text(json.dumps(told))
    for name in images if there is None else there:
        picture(place / "images" / name)
    return place


def test_a_picture_is_a_sample_of_every_class_in_it(tmp_path):
    told = [annotation(1, 9, [2, 2, 6, 6]), annotation(1, 7, [0, 0, 4, 5]), annotation(2, 9, [1, 1, 5, 5]),
            annotation(2, 9, [10, 1, 5, 5], iscrowd=1), annotation(2, 7, [3, 3, 4, 4], iscrowd=1)]  # fmt: skip
    source = coco(coco_folder(tmp_path / "x", told))
    assert [(s.key, s.label, s.meta()) for s in source.samples] == [
        ("a/0", "bird", {"classes": ["bird", "fish"], "boxes": [[2, 2, 8, 8, 2], [0, 0, 4, 5, 1]], "picture": "a"}),
        ("a/1", "fish", {"classes": ["fish", "bird"], "boxes": [[2, 2, 8, 8, 1], [0, 0, 4, 5, 2]], "picture": "a"}),
        (
            "b/1",
            "fish",
            {"classes": ["fish", "bird"], "boxes": [[1, 1, 6, 6, 1], [10, 1, 15, 6, -1], [3, 3, 7, 7, -2]]},
        ),
    ]
    assert source.notes == () and all(sample.mask is None for sample in source.samples)


def test_what_is_clipped_or_left_out_is_counted(tmp_path):
    """Boxes beyond the image and without area, images without annotation or file, annotations of strangers, small boxes."""
    told = [annotation(1, 7, [-5, 2, 10, 6]), annotation(1, 7, [3, 3, 0, 4]), annotation(1, 7, [30, 3, 5, 4]),
            annotation(1, 9, [1, 1, 2, 2]), annotation(3, 7, [1, 1, 4, 4]), annotation(8, 7, [1, 1, 4, 4]),
            annotation(4, 9, [1, 1, 2, 2]), annotation(1, 7, [float("nan"), 3, 5, 4])]  # fmt: skip
    names = ("a.png", "b.png", "c.png", "d.png")
    source = coco(coco_folder(tmp_path / "x", told, images=names, there=("a.png", "b.png", "d.png")), min_area=0.05)
    assert [(sample.key, sample.meta()["boxes"]) for sample in source.samples] == [
        ("a/0", [[0, 2, 5, 8, 1], [1, 1, 3, 3, -2]])
    ]
    assert set(source.notes) == {
        "1 images that instances.json lists are not there and are left out",
        "1 images have no annotation and are left out",
        "1 annotations are of images that the file does not list and are left out",
        "1 boxes reached beyond their image and are clipped",
        "3 boxes had less than a pixel inside their image and are left out",
        "2 boxes cover less than --min-area of their image and are not looked at",
        "1 images have no box to be looked at and are left out",
    }


def run_lengths(mask: np.ndarray, *, packed: bool) -> dict:
    made = runs.encode(np.asfortranarray(mask))
    if packed:
        return {"size": [int(side) for side in made["size"]], "counts": made["counts"].decode()}
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [-1]])))
    counts = np.diff(np.concatenate([[0], edges])).tolist()
    return {"size": list(mask.shape), "counts": counts}


def test_outlines_of_all_three_kinds_become_masks(tmp_path):
    """Polygons and run lengths, packed or not; the smaller object lies on top, a crowd is not looked at."""
    one, crowd = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    one[3:5, 4:6], crowd[:, 18:] = 1, 1
    told = [annotation(1, 7, [2, 2, 6, 6], segmentation=SQUARE),
            annotation(1, 9, [4, 3, 2, 2], segmentation=run_lengths(one, packed=True)),
            annotation(1, 9, [18, 0, 2, 10], segmentation=run_lengths(crowd, packed=False), iscrowd=1),
            annotation(2, 7, [2, 2, 6, 6])]  # fmt: skip
    bird, fish, plain = coco(coco_folder(tmp_path / "x", told)).samples
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:8, 2:8], expected[3:5, 4:6], expected[:, 18:] = 1, 2, 255
    assert (bird.mask() == expected).all()
    expected[2:8, 2:8], expected[3:5, 4:6] = 2, 1
    assert (fish.mask() == expected).all()
    # Without an outline nobody knows which pixels of its box are the object's.
    assert set(np.unique(plain.mask())) == {0, 255} and (plain.mask()[2:8, 2:8] == 255).all()


@pytest.mark.parametrize(
    "outline",
    [
        [[2, 2, 8, 2]],
        [[2, 2, 8, 2, 8]],
        [[2, 2, 8, 2, 8, "x", 2, 2]],
        [[2, 2, 8, 2, 8, float("nan")]],
        [[2, 2, 8, 2, 8, 1e30]],
        ["2 2 8 8"],
        "somewhere",
        {"size": [5, 5], "counts": [25]},
        {"size": [HEIGHT, WIDTH], "counts": [5, 3]},
        {"size": [HEIGHT, WIDTH], "counts": [-5, 205]},
        {"size": [HEIGHT, WIDTH], "counts": "zz\x00"},
        {"size": [HEIGHT, WIDTH], "counts": "oooooooooooooooooooo"},
        {"size": [HEIGHT, WIDTH]},
    ],
    ids=str,
)
def test_broken_outlines_are_counted_and_their_boxes_stay(tmp_path, outline):
    told = [annotation(1, 7, [2, 2, 6, 6], segmentation=outline), annotation(2, 7, [2, 2, 6, 6], segmentation=SQUARE)]
    source = coco(coco_folder(tmp_path / "x", told))
    assert source.notes == ("1 outlines are broken: their boxes stay, their masks do not look at them",)
    broken, whole = source.samples
    assert broken.meta()["boxes"] == [[2, 2, 8, 8, 1]]
    assert (broken.mask()[2:8, 2:8] == 255).all() and (whole.mask()[2:8, 2:8] == 1).all()


def test_packed_run_lengths_are_measured_before_they_are_drawn():
    for number in range(20):
        mask = (np.random.default_rng(number).random((HEIGHT, WIDTH)) < 0.3).astype(np.uint8)
        assert _packed_length(run_lengths(mask, packed=True)["counts"]) == HEIGHT * WIDTH
    wide = np.zeros((3000, 700), np.uint8)
    wide[:, 300:] = 1
    assert _packed_length(run_lengths(wide, packed=True)["counts"]) == wide.size


def test_masks_and_boxes_of_coco_are_packed_together(tmp_path, capsys):
    told = [annotation(1, 7, [2, 2, 6, 6], segmentation=SQUARE), annotation(2, 9, [2, 2, 30, 6], segmentation=SQUARE)]
    place = coco_folder(tmp_path / "x", told)
    prepare.pack(str(place), tmp_path / "out", layout="coco", size=40, rule="train=0.5,test=0.5")
    assert "note: " in capsys.readouterr().err
    shards = Shards(Index.open(tmp_path / "out"))
    mask, classes = shards.mask(0, "bird")
    assert mask.shape == (40, 40) and classes == ["bird"] and (mask[12:28, 6:14] == 1).all()
    boxes, _ = shards.boxes(1, "fish")
    assert boxes.tolist() == [[0.1, 0.2, 1, 0.8, 1]]


def test_coco_as_it_is_published_lies_in_other_folders(tmp_path):
    place = coco_folder(tmp_path / "x", [annotation(1, 7, [2, 2, 6, 6])])
    (place / "annotations").mkdir()
    file = (place / "instances.json").rename(place / "annotations" / "instances_val2017.json")
    (place / "images").rename(place / "val2017")
    assert [sample.key for sample in coco(file).samples] == ["a/0"]


def test_what_is_wrong_with_coco_is_named(tmp_path):
    with pytest.raises(InputError, match="instances.json: cannot be read as COCO's JSON"):
        coco(tmp_path)
    (tmp_path / "instances.json").write_text("[1]")
    with pytest.raises(InputError, match="is no COCO annotation"):
        coco(tmp_path)
    with pytest.raises(InputError, match="annotation 0 is of category 8, which the file does not name"):
        coco(coco_folder(tmp_path, [annotation(1, 8, [1, 1, 4, 4])]))
    with pytest.raises(InputError, match="is no COCO annotation .KeyError"):
        coco(coco_folder(tmp_path, [{"image_id": 1}]))
    with pytest.raises(InputError, match="is no COCO annotation .ValueError"):
        coco(coco_folder(tmp_path, [annotation(1, 7, [1, 1, 4])]))
    with pytest.raises(InputError, match="file name '../x.png' leaves the folder"):
        coco(coco_folder(tmp_path / "y", [], images=("../x.png",), there=()))
    with pytest.raises(InputError, match="none of its 2 images is in"):
        coco(coco_folder(tmp_path / "z", [annotation(1, 7, [1, 1, 4, 4])], there=()))
    with pytest.raises(InputError, match="--min-area 1 is no share"):
        coco(coco_folder(tmp_path, [annotation(1, 7, [1, 1, 4, 4])]), min_area=1)


def test_a_size_that_the_file_tells_wrongly_is_found_when_it_is_packed(tmp_path):
    wrong = [{"id": 1, "file_name": "a.png", "width": 99, "height": 99}]
    place = coco_folder(tmp_path / "x", [annotation(1, 7, [1, 1, 60, 60])], images=("a.png",), there=("a.png",))
    told = json.loads((place / "instances.json").read_text())
    (place / "instances.json").write_text(json.dumps({**told, "images": wrong}))
    with pytest.raises(InputError, match="leaves its image, 20 × 10 pixels"):
        prepare.pack(str(place), tmp_path / "out", layout="coco", size=16, rule="train=1.0")


def test_names_stay_in_their_folder(tmp_path):
    assert inside(tmp_path, "a/b.jpg") == tmp_path / "a" / "b.jpg"
    for name in ("../a", "/etc/x", "a/../../b", "\\x"):
        with pytest.raises(InputError, match="leaves the folder"):
            inside(tmp_path, name)


OBJECT = (
    "<object><name>{}</name>{}<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def voc_folder(place: Path, **xml: str) -> Path:
    for name, text in xml.items():
        picture(place / "JPEGImages" / f"{name}.png")
        (place / "Annotations").mkdir(exist_ok=True)
        (place / "Annotations" / f"{name}.xml").write_text(f"<annotation>{text}</annotation>")
    return place


def test_voc_counts_pixels_from_one_and_difficult_objects_are_not_looked_at(tmp_path):
    difficult = "<difficult>1</difficult>"
    text = OBJECT.format("cat", "", 1, 1, 20, 10) + OBJECT.format("dog", difficult, 3, 3, 6, 6)
    place = voc_folder(tmp_path / "x", a=text, b="", c=OBJECT.format("dog", difficult, 3, 3, 6, 6))
    picture(place / "JPEGImages" / "d.png")
    (place / "Annotations" / "e.xml").write_text("<annotation/>")
    source = voc(place)
    (sample,) = source.samples
    assert (sample.key, sample.label) == ("a/0", "cat")
    assert sample.meta() == {"classes": ["cat", "dog"], "boxes": [[0, 0, 20, 10, 1], [2, 2, 6, 6, -2]]}
    assert set(source.notes) == {
        "1 images have no annotation and are left out",
        "1 annotations have no image and are left out",
        "2 images have no box to be looked at and are left out",
    }


def test_voc_has_masks_too(tmp_path):
    place = voc_folder(tmp_path / "x", a=OBJECT.format("cat", "", 1, 1, 4, 4), b=OBJECT.format("dog", "", 1, 1, 4, 4))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:4, :4], mask[5], mask[9] = 8, 12, 255
    (place / "SegmentationClass").mkdir()
    (place / "SegmentationClass" / "a.png").write_bytes(encode_png(mask))
    source = voc(place)
    cat, dog = source.samples
    expected = np.zeros_like(mask)
    # The dog has no box here: nothing says that it is one.
    expected[:4, :4], expected[5], expected[9] = 1, 255, 255
    assert (cat.mask() == expected).all() and dog.mask is None
    assert source.notes == ("1 images have no mask, others have: leave them out for task.kind = segmentation",)
    (place / "classes.json").write_text('{"8": "cat"}')
    with pytest.raises(InputError, match="a.png: value 12 has no name"):
        voc(place).samples[0].mask()
    (place / "classes.json").write_text("[]")
    with pytest.raises(InputError, match="names no classes"):
        voc(place)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "has a document type, which annotations do not need"),
        ("<annotation><object>", "is no XML that can be read"),
        ("<annotation><object><name>cat</name></object></annotation>", "object 1 cannot be understood .it has no name or no"),
        (f"<annotation>{OBJECT.format('cat', '', 1, 'x', 4, 4)}</annotation>", "object 1 cannot be understood .could not"),
        (f"<annotation>{OBJECT.format(' ', '', 1, 1, 4, 4)}</annotation>", "object 1 cannot be understood .it has no name"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_voc_is_named(tmp_path, text, said):
    with pytest.raises(InputError, match="JPEGImages: no such folder"):
        voc(tmp_path)
    place = voc_folder(tmp_path / "x", a="")
    (place / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(InputError, match=said):
        voc(place)
    (place / "Annotations" / "a.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(InputError, match="is no XML that can be read"):
        voc(place)
    (place / "JPEGImages" / "a.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="a.png: not an image that can be read"):
        voc(place)


def logo_folder(place: Path, *lines: str, there: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    for name in there:
        picture(place / "images" / name)
    (place / "images").mkdir(parents=True, exist_ok=True)
    (place / "training_set_annotation.txt").write_text("".join(f"{line}\n" for line in lines))
    return place


def test_lists_of_logos(tmp_path):
    place = logo_folder(
        tmp_path / "x",
        *("a.png Nike 1 2 2 8 8", "a.png Nike 2 2 2 8 8", "a.png Nike 1 10 2 14.5 8", "", "b.png Puma 3 3 3 6"),
        *("b.png Puma 1 3 3 3 3", "b.png Puma 1 15 3 25 8", "c.png Puma 1 1 1 5 5"),
    )
    source = logos(place)
    assert [(s.key, s.label, s.meta()["boxes"]) for s in source.samples] == [
        ("a/0", "Nike", [[2, 2, 8, 8, 1], [10, 2, 14.5, 8, 1]]),
        ("b/1", "Puma", [[15, 3, 20, 8, 1]]),
    ]
    assert set(source.notes) == {
        "1 images of the list are not there and are left out",
        "1 boxes are listed twice and count once",
        "1 boxes reached beyond their image and are clipped",
        "2 boxes had less than a pixel inside their image and are left out",
    }


def test_what_is_wrong_with_a_list_of_logos_is_named(tmp_path):
    with pytest.raises(InputError, match="--layout logos wants lines file class x1 y1 x2 y2"):
        logos(tmp_path)
    for line in ("a.png Nike 2 2 8", "a.png Nike 1 2 2 8 x", "a.png Nike 1 2 2 8 8 8"):
        with pytest.raises(InputError, match="line 2 is .*, not file class subset x1 y1 x2 y2"):
            logos(logo_folder(tmp_path / "x", "a.png Nike 1 2 2 8 8", line))
    with pytest.raises(InputError, match="none of the 1 images of training_set_annotation.txt is there"):
        logos(logo_folder(tmp_path / "y", "c.png Nike 1 2 2 8 8", there=()))
