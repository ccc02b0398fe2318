"""A folder per person, and pairs of their images: what is read, what is refused, and that nobody is in training and test."""

import zipfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from s3 import put

from pipeline import prepare
from pipeline.data import pairs
from pipeline.data.importers.identities import identities
from pipeline.data.index import Index
from pipeline.data.shards import Shards
from pipeline.data.source import Pair
from pipeline.errors import InputError

IMAGES = {"ada": 3, "ben": 2, "cem": 2, "dot": 1, "eva": 4, "fay": 1, "gus": 2, "hal": 2}
LINES = ("0,ada_1.png,ada_2.png,1", "0,ada_1.png,ben_1.png,0", "1,eva_1.png,eva_2.png,1", "1,eva_3.png,dot_1.png,0")
HEAD = "fold,image_a,image_b,same\n"


def folder(place, images=IMAGES, *, kind="png"):
    """A picture of its own grey for every image of every person."""
    for number, (name, count) in enumerate(images.items()):
        (place / name).mkdir(parents=True)
        for each in range(1, 1 + count):
            picture = np.full((6, 5), 20 * number + each, np.uint8)
            Image.fromarray(picture).save(place / name / f"{name}_{each}.{kind}")
    return place


@pytest.fixture
def people(tmp_path):
    return folder(tmp_path / "people")


@pytest.fixture
def listed(tmp_path):
    """Writes a file of pairs."""

    def write(*lines: str, head: str = HEAD):
        path = tmp_path / "pairs.csv"
        path.write_text(head + "".join(f"{line}\n" for line in lines))
        return path

    return write


def packed(people, place, **options) -> Index:
    return prepare.pack(str(people), place, **{"layout": "identities", "size": 8, **options})


def test_persons_are_classes_and_pairs_name_their_images(people, listed):
    source = identities(people, pairs=listed(*LINES))
    # dot has one image, which a pair names; fay's is left out.
    assert {sample.label for sample in source.samples} == IMAGES.keys() - {"fay"} and source.unsplit == {"dot", "fay"}
    assert source.pairs[1] == Pair(0, "ada/ada_1", "ben/ben_1", same=False)
    told = "2 persons have one image, so that they are in no split"
    assert source.notes == (f"{told}; 1 of them are kept for the pairs that name them",)
    alone = identities(people)
    assert alone.notes == (f"{told} and are left out",)
    assert not alone.pairs and len(alone.samples) == sum(IMAGES.values()) - 2


def test_a_zip_and_greymaps_read_alike(tmp_path, listed):
    greymaps = folder(tmp_path / "grey", kind="pgm")
    with zipfile.ZipFile(tmp_path / "people.zip", "w") as made:
        for path in sorted(greymaps.rglob("*.pgm")):
            made.write(path, path.relative_to(greymaps))
    lines = listed("0,ada_1.pgm,ada_2.pgm,1", "0,ada/ada_1.pgm,ben/ben_1.pgm,0")
    one, other = (
        packed(place, tmp_path / name, pairs=lines, rule="all=1")
        for place, name in ((greymaps, "a"), (tmp_path / "people.zip", "b"))
    )
    assert len(one) == 15 and one.fingerprint == other.fingerprint
    assert (Shards(one).image(0) == 1).all()


def test_the_persons_of_a_fold_are_the_test_and_nobody_elses(people, listed, tmp_path, capsys):
    index = packed(people, tmp_path / "out", pairs=listed(*LINES), fold=1, rule="train=0.6,val=0.4")
    assert "note: " in capsys.readouterr().err
    splits = {name: {index.class_names[number] for number in ids} for name, ids in index.splits.items()}
    assert splits["test"] == {"eva"} and splits["train"] | splits["val"] == {"ada", "ben", "cem", "gus", "hal"}
    assert splits["train"] and splits["val"] and not splits["train"] & splits["val"]
    assert (index.manifest["origin"]["fold"], pairs.held_fold(index)) == (1, 1)
    found = pairs.pairs_of(index)
    assert found.fold.tolist() == [0, 0, 1, 1] and found.same.tolist() == [True, False, True, False]
    assert [index.key(row) for row in found.a] == ["ada/ada_1", "ada/ada_1", "eva/eva_1", "eva/eva_3"]
    assert index.key(found.b[3]) == "dot/dot_1"
    assert prepare.verify(tmp_path / "out") == []
    # Another fold of the same images makes another index of the same tars.
    other = packed(people, tmp_path / "out", pairs=listed(*LINES), fold=0, rule="train=0.5,val=0.5")
    assert {other.class_names[number] for number in other.splits["test"]} == {"ada", "ben"}


def test_without_pairs_persons_are_split_by_rule(people, tmp_path):
    index = packed(people, tmp_path / "out", rule="train=0.5,test=0.5")
    split = np.concatenate(list(index.splits.values()))
    assert len(set(split)) == len(split) == 6 and prepare.verify(tmp_path / "out") == []
    with pytest.raises(InputError, match="holds no pairs; pack it with --layout identities --pairs"):
        pairs.pairs_of(index)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0,zoe_1.png,ada_1.png,0", r"line 2: image 'zoe_1.png' is not among the images"),
        ("0,ada_1.png,ada_2.png,yes", r"line 2: same = 'yes' is neither 1 \(one person\) nor 0"),
        ("0,ada_1.png,ada_2.png,", r"same = '' is neither"),
        ("0,ada_1.png,ada_2.png,0", r"same = 0, but the images lie in the folders 'ada' and 'ada'"),
        ("0,ada_1.png,ben_1.png,1", r"same = 1, but the images lie in the folders 'ada' and 'ben'"),
        ("0,ada_1.png,ada/ada_1.png,1", r"'ada_1.png' is compared with itself"),
        ("x,ada_1.png,ada_2.png,1", r"fold 'x' is no number"),
        ("-1,ada_1.png,ada_2.png,1", r"fold '-1' is no number"),
        ("0,ada_1.png", r"image '' is not among the images|same = '' is neither"),
    ],
)
def test_a_wrong_pair_is_named(people, listed, line, said):
    with pytest.raises(InputError, match=said):
        identities(people, pairs=listed(line))


def test_what_is_wrong_with_the_file_is_named(people, listed, tmp_path):
    with pytest.raises(
        InputError, match="has no column 'same'; its first line is to name fold, image_a, image_b, same"
    ):
        identities(people, pairs=listed("0,ada_1.png,ada_2.png", head="fold,image_a,image_b\n"))
    with pytest.raises(InputError, match="holds no pair"):
        identities(people, pairs=listed())
    with pytest.raises(InputError, match="none.csv: cannot be read"):
        identities(people, pairs=tmp_path / "none.csv")
    folder(people / "more", {"ada": 2})
    with pytest.raises(
        InputError, match="image 'ada_1.png' is in 2 folders; name it with its own, as PERSON/ada_1.png"
    ):
        identities(people, pairs=listed("0,ada_1.png,ben_1.png,0"))


@pytest.mark.parametrize("name", ["dot", "fay"])
def test_a_person_with_one_image_is_refused_where_it_is_asked_for(people, listed, tmp_path, name):
    """Whether or not a pair keeps the image."""
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text(f"ada\n{name}\n")
    with pytest.raises(
        InputError, match=f"split 'train' lists '{name}', of whom there is one image, and an episode needs"
    ):
        packed(people, tmp_path / "out", splits=tmp_path / "splits", pairs=listed(*LINES))


def test_nobody_with_two_images(tmp_path):
    with pytest.raises(InputError, match="no person has 2 images, as 'ada' with one"):
        identities(folder(tmp_path / "people", {"ada": 1, "ben": 1}))


def test_options_that_do_not_go_together(people, listed, tmp_path):
    some = listed(*LINES)
    with pytest.raises(InputError, match="is for --layout identities"):
        packed(people, tmp_path / "out", layout="folder", pairs=some, rule="all=1")
    with pytest.raises(InputError, match="--fold 1: there are no pairs"):
        packed(people, tmp_path / "out", fold=1)
    with pytest.raises(InputError, match="--fold 7: the pairs have no such fold; they have 0, 1"):
        packed(people, tmp_path / "out", pairs=some, fold=7)
    with pytest.raises(InputError, match="the fold is the split 'test'; name the others alone"):
        packed(people, tmp_path / "out", pairs=some, fold=1, rule="train=0.5,test=0.5")
    with pytest.raises(InputError, match="with --fold 1, which says what is held out"):
        packed(people, tmp_path / "out", pairs=some, fold=1, splits=tmp_path)
    with pytest.raises(InputError, match="no splits: give --splits"):
        packed(people, tmp_path / "out", pairs=some)


def rewrite(root, change) -> None:
    """Another table of pairs, whose hash the manifest has."""
    import hashlib
    import json

    path, manifest = root / "index" / "pairs.arrow", root / "index" / "manifest.json"
    table = change(pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all())
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    told = json.loads(manifest.read_text())
    told["files"]["pairs"] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(told))


def changed(column: str, value: int):
    """A change of the first pair."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        place = table.column_names.index(column)
        return table.set_column(place, table.field(column), pa.array([value, *values[1:]], table[column].type))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("a", 99), "1 pairs name samples that are not in the index"),
        (changed("same", 0), "1 pairs say of their samples' classes what the samples do not"),
        # ada, who is in training, in the fold that was held out.
        (
            changed("fold", 1),
            "class 'ada' of split 'train' is in the pairs of fold 1, which was to be held out (1 such classes)",
        ),
    ],
)
def test_verify_finds_what_is_wrong_with_pairs(people, listed, tmp_path, change, said):
    packed(people, tmp_path / "out", pairs=listed(*LINES), fold=1, rule="train=1", shard_mib=1)
    rewrite(tmp_path / "out", change)
    (fault,) = prepare.verify(tmp_path / "out")
    assert said in fault


def test_verify_finds_damaged_pairs(people, listed, tmp_path):
    packed(people, tmp_path / "out", pairs=listed(*LINES), fold=1, rule="train=1")
    path = tmp_path / "out" / "index" / "pairs.arrow"
    path.write_bytes(path.read_bytes()[:-8] + b"damaged!")
    faults = prepare.verify(tmp_path / "out")
    assert "bytes changed since it was written" in faults[0] and "is damaged" in faults[1]


def test_an_index_of_the_tars_alone_would_lose_the_pairs(people, listed, tmp_path):
    packed(people, tmp_path / "out", pairs=listed(*LINES), fold=1, rule="train=1")
    with pytest.raises(InputError, match="holds pairs, of which tars say nothing; run metashard pack again"):
        prepare.index([tmp_path / "out"], out=None, rule="all=1")


def test_pairs_come_with_data_of_a_store(people, listed, tmp_path, s3_server, s3):
    root = tmp_path / "out"
    packed(people, root, pairs=listed(*LINES), fold=1, rule="train=1")
    put(s3_server, "/people")
    for path in (path for path in root.rglob("*") if path.is_file()):
        put(s3_server, f"/people/packed/{path.relative_to(root)}", path.read_bytes())
    assert pairs.pairs_of(Index.open("s3://people/packed")).fold.tolist() == [0, 0, 1, 1]
    assert prepare.verify("s3://people/packed") == []
