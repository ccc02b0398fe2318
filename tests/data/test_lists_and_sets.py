"""CSV files, Ravi's mini-ImageNet, FSS-1000, CIFAR-FS, Lake's Omniglot and tiny-ImageNet: what is read and what is refused."""

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import prepare
from pipeline.data.images import encode_png
from pipeline.data.importers.cifar_fs import cifar_fs
from pipeline.data.importers.csv_files import csv_files
from pipeline.data.importers.folder import folder
from pipeline.data.importers.fss import fss
from pipeline.data.importers.omniglot import omniglot
from pipeline.data.index import Index
from pipeline.data.pack import check
from pipeline.data.shards import Shards
from pipeline.errors import InputError

DATA = Path(__file__).parents[3] / "shared" / "data"


def picture(path: Path, number: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    if path.suffix == ".jpg":
        Image.fromarray(pixels).save(path)
    else:
        path.write_bytes(encode_png(pixels))
    return path


def listed(place: Path, *lines: str, head: str = "file,label", name: str = "list.csv") -> Path:
    for number, image in enumerate(("a.png", "sub/b.jpg", "c.png", "d.png")):
        picture(place / image, number)
    (place / name).write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return place / name


def test_a_csv_file_says_what_is_what(tmp_path):
    path = listed(tmp_path, 'a.png,"cat, black"', "./sub/b.jpg, dog", "c.png,dog")
    source = csv_files(path)
    check(source)
    assert [(s.key, s.label, s.extension) for s in source.samples] == [
        ("a", "cat, black", "png"),
        ("sub/b", "dog", "jpg"),
        ("c", "dog", "png"),
    ]
    assert (source.name, source.splits, source.notes) == ("list", {}, ())
    assert source.samples[0].image() == (tmp_path / "a.png").read_bytes()


def test_splits_of_a_csv_file_and_columns_that_nobody_reads(tmp_path):
    lines = ("7,train,cat,a.png", "8,test,dog,sub/b.jpg", "9,train,cat,c.png")
    path = listed(tmp_path / "set", *lines, head="\ufeffid,split,label,file")
    source = csv_files(path)
    assert source.splits == {"train": ["cat"], "test": ["dog"]}
    assert source.notes == ("columns of list.csv that are not looked at: id",)
    index = prepare.pack(str(path), tmp_path / "out", layout="csv", size=8)
    assert index.class_names == ["cat", "dog"] and prepare.verify(tmp_path / "out", samples_per_class=1) == []


def test_a_file_with_two_labels_is_one_picture(tmp_path):
    source = csv_files(listed(tmp_path, "a.png,cat", "a.png,mat", "c.png,cat"))
    assert [(s.key, s.label, dict(s.meta())) for s in source.samples] == [
        ("a/0", "cat", {"picture": "a"}),
        ("a/1", "mat", {"picture": "a"}),
        ("c", "cat", {}),
    ]


@pytest.mark.parametrize(
    ("head", "lines", "said"),
    [
        ("image,label", ["a.png,cat"], "has no column 'file'; its first line is to name file,label"),
        ("file,class", ["a.png,cat"], "has no column 'label'"),
        ("file,label", [], "lists no file"),
        ("file,label", ["a.png,cat", "a.png,cat"], r"line 3: 'a.png' is 'cat' already \(.*line 2\); take a line out"),
        ("file,label", ["a.png,cat", "./a.png,cat"], "'a.png' is 'cat' already"),
        ("file,label", ["a.png,"], "line 2: label is empty"),
        ("file,label", ["a.png"], "line 2: label is empty"),
        ("file,label", [",cat"], "line 2: file is empty"),
        ("file,label,split", ["a.png,cat,train", "c.png,dog,"], "line 3: split is empty"),
        ("file,label", ["a.png,cat", "x.png,cat", "y.png,cat"], "line 3: 2 files are not in .*, first 'x.png'; bring them"),
        ("file,label", ["../a.png,cat"], "file name '../a.png' leaves the folder"),
        ("file,label", ["/etc/a.png,cat"], "file name '/etc/a.png' leaves the folder"),
        ("file,label", ["a.tiff,cat"], "line 2: 'a.tiff' is of a kind that is not read"),
        ("file,label", ["a,cat"], "line 2: 'a' is of a kind that is not read"),
        ("file,label", ["a.png,cat, black"], "line 2: has more than 2 fields; quote what has a comma in it"),
        ("file,label", ['a.png,"cat'], "cannot be read .*takes a CSV file in UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_csv_file_is_named(tmp_path, head, lines, said):
    with pytest.raises(InputError, match=said):
        csv_files(listed(tmp_path, *lines, head=head))


def test_a_csv_file_that_is_none_is_named(tmp_path):
    with pytest.raises(InputError, match="none.csv: cannot be read"):
        csv_files(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes("file,label\na.png,Käfer".encode("latin-1"))
    with pytest.raises(InputError, match="cannot be read .*in UTF-8"):
        csv_files(tmp_path / "x.csv")


def test_no_class_of_a_csv_file_is_in_two_splits(tmp_path):
    path = listed(tmp_path / "set", "a.png,cat,train", "c.png,cat,test", "d.png,dog,test", head="file,label,split")
    with pytest.raises(InputError, match="class 'cat' is in splits 'train' and 'test'"):
        prepare.pack(str(path), tmp_path / "out", layout="csv", size=8)


def ravi(place: Path, **splits: list[str]) -> Path:
    for split, names in splits.items():
        lines = [f"{name}{number}.jpg,{name}" for name in names for number in range(2)]
        (place / f"{split}.csv").parent.mkdir(parents=True, exist_ok=True)
        (place / f"{split}.csv").write_text("\n".join(["filename,label", *lines]))
        for line in lines:
            picture(place / "images" / line.split(",")[0])
    return place


def test_ravis_mini_imagenet(tmp_path):
    """As it is published: three lists beside a folder of images."""
    place = ravi(tmp_path / "set", train=["n01", "n02"], val=["n03"], test=["n04"])
    index = prepare.pack(str(place), tmp_path / "out", layout="csv", size=8)
    told = {split: [index.class_names[one] for one in found] for split, found in index.splits.items()}
    assert told == {"train": ["n01", "n02"], "val": ["n03"], "test": ["n04"]} and len(index) == 8
    (place / "images" / "n040.jpg").unlink()
    with pytest.raises(InputError, match=r"test.csv, line 2: 1 files are not in .*images, first 'n040.jpg'"):
        csv_files(place)
    with pytest.raises(InputError, match="no train.csv, val.csv or test.csv here"):
        csv_files(place / "images")


def foreground(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(mask))


WHITE = np.zeros((8, 8, 3), np.uint8)
WHITE[:2], WHITE[2] = 255, 130


def fss_folder(place: Path) -> Path:
    for name in ("ab_wheel/1", "ab_wheel/2", "abacus/1"):
        picture(place / f"{name}.jpg")
        foreground(place / f"{name}.png", WHITE)
    return place


def test_fss_1000(tmp_path, capsys):
    place = fss_folder(tmp_path / "set")
    foreground(place / "abacus" / "2.png", np.zeros((8, 8), np.uint8))
    picture(place / "abacus" / "2.jpg")
    source = fss(place)
    assert [(s.key, s.label) for s in source.samples] == [
        ("ab_wheel/1", "ab_wheel"),
        ("ab_wheel/2", "ab_wheel"),
        ("abacus/1", "abacus"),
    ]
    assert source.notes == ("1 images have an empty mask, or one below --min-area, and are left out",)
    assert not fss(place, min_area=0.5).samples and len(fss(place, min_area=0.3).samples) == 3
    prepare.pack(str(place), tmp_path / "out", layout="fss", size=16, rule="all=1")
    assert "1 images have an empty mask" in capsys.readouterr().err and prepare.verify(tmp_path / "out") != []
    mask, classes = Shards(Index.open(tmp_path / "out")).mask(0, "ab_wheel")
    assert classes == ["ab_wheel"] and (mask[:6] == 1).all() and not mask[6:].any()


def test_fss_1000_comes_as_a_zip_too(tmp_path):
    place = fss_folder(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "fss.zip", "w") as target:
        for path in place.rglob("*.*"):
            target.write(path, f"fewshot_data/{path.relative_to(place)}")
    assert [sample.key for sample in fss(tmp_path / "fss.zip").samples] == [sample.key for sample in fss(place).samples]


def test_what_is_wrong_with_fss_1000_is_named(tmp_path):
    place = fss_folder(tmp_path / "set")
    with pytest.raises(InputError, match="--min-area 1 is no share"):
        fss(place, min_area=1)
    foreground(place / "abacus" / "1.png", WHITE[:4])
    with pytest.raises(InputError, match=r"'abacus/1': its mask is \(4, 8\) .*, its image \(8, 8\); make them equal"):
        prepare.pack(str(place), tmp_path / "out", layout="fss", size=8, rule="all=1")
    (place / "abacus" / "1.png").unlink()
    with pytest.raises(InputError, match="1 images have no mask, as 'abacus/1.jpg'; bring the masks or remove them"):
        fss(place)
    (place / "abacus" / "1.jpg").unlink()
    foreground(place / "abacus" / "7.png", WHITE)
    with pytest.raises(InputError, match="1 masks have no image, as 'abacus/7.png'"):
        fss(place)
    picture(place / "ab_wheel" / "1.bmp")
    with pytest.raises(InputError, match="ab_wheel/1.bmp and ab_wheel/1.jpg have one mask"):
        fss(place)


def zipped(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as target:
        for number, name in enumerate(names):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            target.writestr(name, encode_png(pixels))
    return path


def test_cifar_fs_in_zips(tmp_path):
    place = tmp_path / "set"
    zipped(place / "meta_train.zip", "apple/1.png", "apple/2.png", "bee/1.png", "bee/2.png")
    zipped(place / "meta_test.zip", "cup/1.png", "cup/2.png")
    (place / "split_train.json").write_text('[["fruit", "apple"], ["insects", "bee"]]')
    index = prepare.pack(str(place), tmp_path / "out", layout="cifar_fs", size=None)
    assert (index.name, len(index), {split: len(ids) for split, ids in index.splits.items()}) == (
        "cifar_fs",
        6,
        {"train": 2, "test": 1},
    )
    assert prepare.verify(tmp_path / "out") == []


def test_cifar_fs_as_it_was_published(tmp_path):
    place = tmp_path / "cifar100"
    for name in ("apple", "bee", "cup"):
        picture(place / "data" / name / f"{name}_1.png")
    (place / "splits" / "bertinetto").mkdir(parents=True)
    for split, name in (("train", "apple"), ("val", "bee"), ("test", "cup"), ("trainval", "apple\nbee")):
        (place / "splits" / "bertinetto" / f"{split}.txt").write_text(f"{name}\n")
    source = cifar_fs(place)
    assert source.splits == {"train": ["apple"], "val": ["bee"], "test": ["cup"]} and len(source.samples) == 3
    (place / "splits" / "bertinetto" / "test.txt").write_text("cupp\n")
    with pytest.raises(InputError, match="lists class 'cupp', which the data has not; did you mean 'cup'"):
        prepare.pack(str(place), tmp_path / "out", layout="cifar_fs", size=None)


def test_what_is_wrong_with_cifar_fs_is_named(tmp_path):
    with pytest.raises(InputError, match="--layout cifar_fs reads meta_train.zip"):
        cifar_fs(tmp_path)
    zipped(tmp_path / "meta_train.zip", "apple/1.png", "bee/1.png")
    zipped(tmp_path / "meta_val.zip", "bee/2.png")
    with pytest.raises(InputError, match="meta_val.zip: class 'bee' is in meta_train.zip too"):
        cifar_fs(tmp_path)
    (tmp_path / "meta_val.zip").unlink()
    (tmp_path / "split_train.json").write_text('[["fruit", "apple"], ["fruit", "pear"], ["insects", "bee"]]')
    with pytest.raises(
        InputError, match="1 classes are not in both .*first 'pear', which is in split_train.json alone"
    ):
        cifar_fs(tmp_path)
    (tmp_path / "split_train.json").write_text('["apple"]')
    with pytest.raises(InputError, match=r"split_train.json: is no list of \[superclass, class\]"):
        cifar_fs(tmp_path)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "meta_train.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="no readable zip"):
        cifar_fs(tmp_path / "cut")


def test_a_last_folder_that_all_classes_have_is_no_part_of_their_names(tmp_path):
    for name in ("n01/images/a.png", "n02/images/b.png"):
        picture(tmp_path / "one" / name)
        picture(tmp_path / "two" / "train" / name)
    assert sorted(sample.label for sample in folder(tmp_path / "one").samples) == ["n01", "n02"]
    assert folder(tmp_path / "two").splits == {"train": ["n01", "n02"]}
    picture(tmp_path / "one" / "n03" / "scans" / "c.png")
    assert "n01/images" in {sample.label for sample in folder(tmp_path / "one").samples}


def real(name: str) -> Path:
    if not (place := DATA / name).exists():
        pytest.skip(f"{name} is not at {place}; the product never downloads it")
    return place


def test_the_real_cifar_fs():
    source = cifar_fs(real("cifar_fs_trainval"))
    check(source)
    assert {split: len(names) for split, names in source.splits.items()} == {"train": 64, "val": 16}
    counts = Counter(sample.label for sample in source.samples)
    assert {counts[name] for name in source.splits["train"]} == {200} and len(source.samples) == 14_400


def test_the_real_tiny_imagenet():
    place = real("tiny_imagenet_200x50")
    source = folder(place / "train.zip")
    check(source)
    counts = Counter(sample.label for sample in source.samples)
    assert set(counts) == set((place / "wnids.txt").read_text().split()) and set(counts.values()) == {50}


def test_lakes_split_of_omniglot_is_of_alphabets():
    source = omniglot(real("omniglot"), is_lakes=True)
    assert {split: len(names) for split, names in source.splits.items()} == {"train": 964, "test": 659}
    alphabets = {split: {name.split("/")[0] for name in names} for split, names in source.splits.items()}
    assert [len(alphabets[split]) for split in ("train", "test")] == [30, 20]
    assert not alphabets["train"] & alphabets["test"]
