"""Images of a sample besides its first: how they are packed, indexed, read and changed, and what is refused."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from tars import LABELS, npy, picture, write_tar

from pipeline import cli, prepare, show
from pipeline.data.augment import Augment
from pipeline.data.images import encode_png, resize
from pipeline.data.importers.glyphs import glyphs
from pipeline.data.index import Index
from pipeline.data.loader import Loader, Reader
from pipeline.data.modalities import named
from pipeline.data.sampler import Sampler
from pipeline.data.shapes import Shape
from pipeline.data.shards import Shards
from pipeline.data.stream import Stream, StreamReader
from pipeline.episode import Batch, Episode
from pipeline.errors import InputError

BOTH = ("image", "depth")
DEEP = np.arange(36, dtype=np.uint16).reshape(6, 6) * 1000


def wrote(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        path.write_bytes(npy(array))
    elif array.dtype == np.uint16:
        Image.fromarray(array).save(path)
    else:
        path.write_bytes(encode_png(array))
    return path


def sensed(place: Path, *, kind: str = "npy", lacking: tuple[str, ...] = ()) -> Path:
    """Three classes of four images, each with its depth."""
    for i, label in enumerate(LABELS):
        for j in range(4):
            number = 100 * i + j
            wrote(place / label / f"{j}.png", picture(number, channels=3))
            if f"{label}/{j}" not in lacking:
                depth = (number + np.arange(36, dtype=np.float32)).reshape(6, 6) / 400
                plane = {"npy": depth, "png": DEEP + np.uint16(number)}[kind]
                wrote(place / label / f"{j}.depth.{kind}", plane)
    return place


def packed(source: Path, dest: Path, **options) -> Index:
    given = {"layout": "folder", "size": None, "rule": "all=1", "modalities": "image,depth", **options}
    return prepare.pack(str(source), dest, **given)


@pytest.mark.parametrize("store", ["raw", "encoded"])
@pytest.mark.parametrize("kind", ["npy", "png"])
def test_what_is_packed_is_what_was_there(tmp_path, store, kind):
    index = packed(sensed(tmp_path / "set", kind=kind), tmp_path / "out", store=store)
    assert (len(index), index.modalities, index.shape(0), index.channels("depth")) == (12, BOTH, (6, 6, 3), 1)
    shards = Shards(index)
    for row in range(12):
        label, place = index.key(row).split("/")
        number = 100 * LABELS.index(label) + int(place)
        depth = shards.plane(row, "depth")
        expected = (number + np.arange(36, dtype=np.float32)).reshape(6, 6, 1) / 400
        expected = expected if kind == "npy" else (DEEP + np.uint16(number))[..., None]
        assert depth.dtype == expected.dtype and (depth == expected).all()
        np.testing.assert_array_equal(shards.plane(row, "image"), picture(number, channels=3))
    assert prepare.verify(tmp_path / "out") == []
    assert len(packed(tmp_path / "set", tmp_path / "out", store=store)) == 12
    with pytest.raises(InputError, match="holds a pack of other images or options"):
        packed(tmp_path / "set", tmp_path / "out", store=store, modalities=None)
    (tmp_path / "set" / "ant" / f"0.depth.{kind}").unlink()
    with pytest.raises(InputError, match="holds a pack of other images or options"):
        packed(tmp_path / "set", tmp_path / "out", store=store)


def test_all_modalities_are_resized(tmp_path):
    index = packed(sensed(tmp_path / "set"), tmp_path / "out", size=3)
    depth = Shards(index).plane(0, "depth")
    np.testing.assert_allclose(depth, resize((np.arange(36, dtype=np.float32) / 400).reshape(6, 6, 1), 3), rtol=1e-6)


def test_zips_have_modalities_too(tmp_path):
    place = sensed(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as target:
        for path in place.rglob("*.*"):
            target.write(path, f"all/{path.relative_to(place)}")
    assert packed(tmp_path / "set.zip", tmp_path / "out").fingerprint == packed(place, tmp_path / "other").fingerprint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("depth", "is no list of 'image' and what there is besides"),
        ("image", "is no list of 'image' and what there is besides"),
        ("image,Depth", "'Depth' is no name for a modality"),
        ("image,mask", "'mask' is no name for a modality"),
        ("image,depth,depth", "'depth' is no name for a modality, or twice there"),
        ("image,", "'' is no name for a modality"),
    ],
)
def test_wrong_names_are_refused(text, said):
    with pytest.raises(InputError, match=said):
        named(text)


def test_what_is_wrong_with_modalities_is_named(tmp_path, capsys):
    place = sensed(tmp_path / "set")
    with pytest.raises(InputError, match="--modalities is for --layout folder, glyphs; leave it out"):
        packed(place, tmp_path / "out", layout="csv")
    with pytest.raises(InputError, match="--modalities image,heat: glyphs are drawn with depth and nothing else"):
        packed(place, tmp_path / "out", layout="glyphs", modalities="image,heat", rule=None)
    with pytest.raises(
        InputError, match="no sample has a member 'heat', as KEY.heat.png; leave it out of --modalities"
    ):
        packed(place, tmp_path / "heat", modalities="image,heat")
    wrote(place / "bee" / "2.depth.npy", np.zeros((6, 5), np.float32))
    with pytest.raises(InputError, match=r"'bee/2': its depth is \(6, 5\) .*, its image \(6, 6\); make them equal"):
        packed(place, tmp_path / "out")
    wrote(place / "bee" / "2.depth.npy", np.full((6, 6), np.nan, np.float32))
    with pytest.raises(InputError, match="its depth has values that are not finite; replace them"):
        packed(place, tmp_path / "out")
    wrote(place / "bee" / "2.depth.npy", np.array([[None]], object))
    with pytest.raises(InputError, match="'bee/2': depth: is no npy array of numbers"):
        packed(place, tmp_path / "out")
    wrote(place / "bee" / "2.depth.npy", np.zeros((6, 6, 2), np.float32))
    with pytest.raises(InputError, match="has a depth of . channels of <f4, others of . of <f4; make them alike"):
        packed(place, tmp_path / "kinds")
    wrote(place / "bee" / "2.depth.png", DEEP)
    with pytest.raises(InputError, match="'bee/2' has two files of depth; remove one"):
        packed(place, tmp_path / "out")
    (place / "bee" / "2.depth.png").unlink()
    (place / "bee" / "2.png").unlink()
    with pytest.raises(InputError, match="'bee/2' has depth and no images, where one has it"):
        packed(place, tmp_path / "out")
    for kind in ("png", "bmp"):
        Image.fromarray(picture(3, channels=3)).save(place / "bee" / f"2.{kind}")
    with pytest.raises(InputError, match="'bee/2' has depth and 2 images, where one has it"):
        packed(place, tmp_path / "out")


def test_kinds_are_compared_between_tars(tmp_path):
    for number, dtype in enumerate((np.float32, np.uint8)):
        members = [(f"s{number}.json", b'{"class": "a"}'), (f"s{number}.png", encode_png(picture(0)))]
        write_tar(tmp_path / f"{number}.tar", [*members, (f"s{number}.depth.npy", npy(np.zeros((6, 6), dtype)))])
    with pytest.raises(InputError, match=r"1.tar: its depth is 1 channels of \|u1, that of 0.tar 1 of <f4"):
        prepare.index([tmp_path], out=None, rule="all=1", modalities="image,depth")


def test_tars_that_someone_else_wrote(tmp_path):
    """KEY.image.png and KEY.depth.npy, as WebDataset's own writer makes them; nothing is read that nobody asked for."""
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(6):
            sample = {"json": {"class": LABELS[number % 3]}, "image.png": encode_png(picture(number))}
            plane = npy(np.full((6, 6, 2), number, np.float32))
            writer.write({"__key__": f"s{number}", **sample, **({"depth.npy": plane} if number else {})})
    index = prepare.index([tmp_path], out=None, rule="all=1", modalities="image,depth")
    assert (index.modalities, index.channels("depth")) == (BOTH, 2)
    assert [index.has(row, "depth") for row in range(6)] == [False, *[True] * 5]
    assert (Shards(index).plane(4, "depth") == 4).all() and prepare.verify(tmp_path) == []
    stream = Stream(index, "all", samples=6, batch=1, seed=0, turns=False, lanes=1, window=None)
    streamed = StreamReader(stream, Reader(Shards(index), False, None)).episode(stream.draw(0, 0)).query.inputs
    expected = torch.stack([torch.from_numpy(picture(number).transpose(2, 0, 1)) / 255 for number in range(6)])
    torch.testing.assert_close(streamed.sum(0), expected.sum(0))
    with pytest.raises(InputError, match="holds depth too; give --modalities image,depth"):
        prepare.index([tmp_path], out=None, rule="all=1")
    with pytest.raises(InputError, match="has no image member, only image.png, json"):
        prepare.index([tmp_path], out=tmp_path / "plain", rule="all=1")


def test_sizes_are_compared_in_tars_too(tmp_path):
    members = [
        ("s.json", b'{"class": "a"}'),
        ("s.png", encode_png(picture(0))),
        ("s.depth.png", encode_png(picture(0, 5))),
    ]
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=r"'s' has a depth of \(5, 5\) .* for an image of \(6, 6\); make them equal"):
        prepare.index([tmp_path], out=None, rule="all=1", modalities="image,depth")


def reader(index: Index, **options) -> Reader:
    return Reader(Shards(index), **{"invert": False, "size": None, "modalities": BOTH, **options})


def test_channels_of_an_episode_come_one_modality_after_another(tmp_path):
    index = packed(sensed(tmp_path / "set", kind="png"), tmp_path / "out")
    draw = Sampler(index, "all", Shape(2, 1, 1), seed=0, turns=True).draw(0, 3)
    assert any(draw.turns)
    support, query = reader(index).episode(draw)[:2]
    assert support.inputs.shape == query.inputs.shape == (2, 4, 6, 6)
    row = int(draw.support[0][0])
    turned = [np.rot90(Shards(index).plane(row, name), draw.turns[0]) for name in BOTH]
    expected = np.concatenate([turned[0] / np.float32(255), turned[1] / np.float32(65535)], 2).transpose(2, 0, 1)
    np.testing.assert_allclose(support.inputs[0].numpy(), expected, rtol=1e-6)
    inverted = reader(index, invert=True).episode(draw).support.inputs
    assert torch.equal(inverted[:, :3], 1 - support.inputs[:, :3]) and torch.equal(inverted[:, 3], support.inputs[:, 3])
    alone = reader(index, modalities=("depth",)).episode(draw).support.inputs
    assert torch.equal(alone, support.inputs[:, 3:])
    grey = reader(index, channels=1, size=4).episode(draw).support.inputs
    assert grey.shape == (2, 2, 4, 4)


def test_an_episode_of_modalities_depends_on_its_numbers_alone(depth_root):
    """Law 1: whatever the batch, the ranks, the threads and the order."""
    index = Index.open(depth_root)

    def drawn(step: int, *, batch: int = 4, rank: int = 0, world: int = 1, threads: int = 1) -> dict[int, Episode]:
        sampler = Sampler(index, "train", Shape(3, 1, 2), seed=0, turns=False)
        with Loader(sampler, reader(index), batch=batch, rank=rank, world=world, threads=threads) as loader:
            return dict(zip(*loader.share(step, last=step + 1), strict=True))

    whole = drawn(2)
    parts = drawn(2, rank=0, world=2, threads=2) | drawn(2, rank=1, world=2) | {}
    assert whole.keys() == parts.keys() == {0, 1, 2, 3}
    for number, episode in whole.items():
        assert torch.equal(episode.support.inputs, parts[number].support.inputs)
        assert torch.equal(episode.query.inputs, parts[number].query.inputs) and episode.key == parts[number].key


def test_the_relief_is_that_of_the_ink(depth_root):
    shards = Shards(Index.open(depth_root))
    image, depth = shards.image(0), shards.plane(0, "depth")
    assert depth.dtype == np.uint8 and (depth[image > 200] == 255).all() and depth.min() < 100
    drawn = {sample.key: sample for sample in glyphs(size=16, modalities=["depth"]).samples}
    np.testing.assert_array_equal(drawn[shards.index.key(0)].planes["depth"](), depth)


def test_a_sample_without_a_modality(tmp_path, capsys):
    index = packed(sensed(tmp_path / "set", lacking=("ant/1", "cat/3")), tmp_path / "out")
    assert "2 images have no depth" in capsys.readouterr().err
    assert prepare.verify(tmp_path / "out") == []
    whole, row = reader(index), index.postings(0)[1]
    with pytest.raises(InputError, match="sample 'ant/1' has no depth; take it out, or set data.missing = mask"):
        whole.stored(int(row))
    masked = reader(index, told=True)
    inputs = masked.inputs(range(12), [masked.stored(number) for number in range(12)], [0] * 12)
    assert inputs.shape == (12, 5, 6, 6)
    there = torch.ones(12)
    there[[1, 11]] = 0
    assert torch.equal(inputs[:, 4], there[:, None, None].expand(12, 6, 6)) and not inputs[1, 3].any()
    with pytest.raises(InputError, match="'ant/1' has no depth; take it out$"):
        reader(index, told=True, modalities=("depth",)).stored(int(row))


def test_places_change_in_all_modalities_alike_and_colours_in_the_image_alone():
    torch.manual_seed(0)
    image = torch.rand(20, 3, 8, 8)
    inputs = torch.cat([image, image.mean(1, keepdim=True), torch.ones(20, 1, 8, 8)], 1)
    episode = Episode(Batch(inputs, torch.arange(20)), Batch(inputs, torch.arange(20)), 20, torch.tensor(4))
    groups = {"channels": (3, 1, 1), "image": 0}
    moved = Augment(flip=True, crop=0.4, **groups)(episode).support.inputs
    torch.testing.assert_close(moved[:, 3], moved[:, :3].mean(1))
    assert not torch.equal(moved[:, 3], inputs[:, 3]) and (moved[:, 4].amax((1, 2)) > 0.99).all()
    coloured = Augment(colour=0.4, **groups)(episode).support.inputs
    assert torch.equal(coloured[:, 3:], inputs[:, 3:]) and not torch.equal(coloured[:, :3], inputs[:, :3])
    plain = Augment(colour=0.4)(episode._replace(support=Batch(image, torch.arange(20)))).support.inputs
    assert torch.equal(coloured[:, :3], plain)
    assert torch.equal(Augment(colour=0.4, channels=(3, 1, 1), image=None)(episode).support.inputs, inputs)
    cut = Augment(cutout=0.5, **groups)(episode).support.inputs
    hole = cut[0, 3] != inputs[0, 3]
    assert 0 < hole.sum() <= 16 and torch.equal(cut[:, 4], inputs[:, 4])
    torch.testing.assert_close(cut[0, 3][hole], inputs[0, 3].mean().expand(int(hole.sum())))


def test_modalities_are_shown_side_by_side(depth_root, tmp_path, monkeypatch, capsys):
    (made,) = show.show(depth_root, tmp_path / "x.png")
    with Image.open(made) as drawn:
        assert drawn.size[0] > 500
    monkeypatch.setattr("sys.argv", ["metashard", "pack", str(sensed(tmp_path / "set")), str(tmp_path / "out"), "--rule", "all=1",
                                     "--modalities", "image,depth"])  # fmt: skip
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0 and "12 samples (6 × 6 × 3 and depth 1, raw)" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "index" / "manifest.json").read_text())
    assert manifest["modalities"] == {"depth": {"channels": 1, "dtype": "<f4"}}
