"""The embedded scenes, and masks as episodes have them: which class every pixel belongs to."""

import hashlib
import io
import json

import numpy as np
import pytest
from tars import write_tar

from pipeline import prepare
from pipeline.data.glyphs import characters
from pipeline.data.images import encode_png
from pipeline.data.importers.scenes import scenes
from pipeline.data.index import Index
from pipeline.data.loader import Reader
from pipeline.data.sampler import Draw, Sampler
from pipeline.data.scenes import Box, scene
from pipeline.data.shapes import Shape
from pipeline.data.shards import Shards
from pipeline.errors import InputError


def some():
    return [(character, number) for character in characters()[::60] for number in range(4)]


def test_a_scene_is_a_function_of_its_numbers():
    one, *_, other = (scene(characters()[5], seed=0, number=n, size=64) for n in range(9))
    scene.cache_clear()
    again = scene(characters()[5], seed=0, number=0, size=64)
    assert again.boxes == one.boxes and (again.image == one.image).all() and (again.mask == one.mask).all()
    assert (other.image != one.image).any()
    golden = hashlib.sha256(
        b"".join(scene(c, seed=0, number=n, size=64).image.tobytes() for c, n in some())
    ).hexdigest()
    assert golden.startswith("227c9543633ca70e")


def test_objects_are_where_the_mask_and_the_boxes_say():
    for character, number in some():
        made = scene(character, seed=1, number=number, size=64)
        assert made.classes[0] == character.name and len(set(made.classes)) == len(made.classes)
        assert {box.value for box in made.boxes} == set(range(1, 1 + len(made.classes)))
        inside = np.zeros_like(made.mask)
        for left, top, right, bottom, value in made.boxes:
            assert (made.mask[top:bottom, left:right] == value).any()
            inside[top:bottom, left:right] = value
        assert (inside[made.mask > 0] == made.mask[made.mask > 0]).all()
        assert not made.mask[inside == 0].any()


def test_what_lies_beside_a_class_is_of_its_split():
    homes = {character.name: character.split for character in characters()}
    for character, number in some():
        names = scene(character, seed=0, number=number, size=48).classes
        assert {homes[name] for name in names} == {character.split}


def test_a_source_knows_classes_and_boxes_of_its_scenes():
    source = scenes(size=48, samples_per_class=1)
    sample, made = source.samples[7], scene(characters()[7], seed=0, number=0, size=48)
    assert sample.meta() == {"classes": list(made.classes), "boxes": [list(box) for box in made.boxes]}
    assert (sample.mask() == made.mask).all() and Box(*sample.meta()["boxes"][0]).value == 1
    with pytest.raises(InputError, match="size = 20 does not suit scenes"):
        scenes(size=20)


def packed(place, masks: dict[str, np.ndarray], **meta) -> Index:
    """Data of one split with classes a and b of two samples each, of 4 pixels."""
    members = []
    for key, mask in masks.items():
        png = encode_png(np.full((*mask.shape, 1), 100, np.uint8))
        said = {"class": key[0], **meta.get(key, {})}
        members += [
            (f"{key}.png", png),
            (f"{key}.json", json.dumps(said).encode()),
            (f"{key}.mask.png", encode_png(mask)),
        ]
    place.mkdir()
    write_tar(place / "x.tar", members)
    (place / "splits").mkdir()
    (place / "splits" / "train.txt").write_text("".join(f"{name}\n" for name in sorted({key[0] for key in masks})))
    return prepare.index([place / "x.tar"], out=None, splits=place / "splits")


def drawn(index: Index, size: int | None = None):
    """a1 and b1 as support, a2 and b2 as queries."""
    rows = {index.key(row): row for row in range(4)}
    ids = {name: number for number, name in enumerate(index.class_names)}
    support, query = (np.array([[rows[f"a{n}"]], [rows[f"b{n}"]]]) for n in (1, 2))
    draw = Draw((ids["b"], ids["a"]), (0, 0), tuple(support[::-1]), tuple(query[::-1]))
    return Reader(Shards(index), invert=False, size=size, masks=True).episode(draw)


def test_pixels_have_the_numbers_of_their_classes_in_the_episode(tmp_path):
    """b is the first class of the episode; what belongs to none of its classes is ground; 255 stays."""
    one = np.array([[1, 2], [3, 255]], np.uint8)
    plain = np.array([[0, 1], [0, 1]], np.uint8)
    names = {"a1": {"classes": ["a", "b", "stranger"]}}
    episode = drawn(packed(tmp_path / "x", {"a1": one, "a2": plain, "b1": plain, "b2": plain}, **names))
    assert episode.support.targets.tolist() == [[[0, 1], [0, 1]], [[2, 1], [0, 255]]]
    assert episode.query.targets.tolist() == [[[0, 1], [0, 1]], [[0, 2], [0, 2]]]


def test_masks_are_resized_as_names_are(tmp_path):
    mask = np.array([[0, 1], [255, 1]], np.uint8)
    episode = drawn(packed(tmp_path / "x", dict.fromkeys(("a1", "a2", "b1", "b2"), mask)), size=4)
    assert episode.support.inputs.shape == (2, 1, 4, 4)
    assert episode.support.targets[0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [255, 255, 1, 1], [255, 255, 1, 1]]


def test_masks_that_mean_nothing_are_named(tmp_path):
    good, empty, over = (np.full((2, 2), value, np.uint8) for value in (1, 0, 7))
    others = dict.fromkeys(("a2", "b1", "b2"), good)
    with pytest.raises(InputError, match="sample 'a1' has no pixel of its class 'a'"):
        drawn(packed(tmp_path / "empty", {"a1": empty, **others}))
    with pytest.raises(InputError, match="mask of sample 'a1': value 7 means nothing, it names 1 classes"):
        drawn(packed(tmp_path / "over", {"a1": over, **others}))
    with pytest.raises(InputError, match="classes must be a list of at most 254 names"):
        drawn(packed(tmp_path / "odd", {"a1": good, **others}, a1={"classes": "a"}))


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path):
    png = io.BytesIO(encode_png(np.zeros((4, 4, 1), np.uint8))).getvalue()
    said, mask = json.dumps({"class": "a"}).encode(), encode_png(np.ones((2, 2), np.uint8))
    write_tar(tmp_path / "x.tar", [("a1.png", png), ("a1.json", said), ("a1.mask.png", mask)])
    with pytest.raises(InputError, match=r"has a mask of \(2, 2\) .* for an image of \(4, 4\)"):
        prepare.index([tmp_path / "x.tar"], out=None, rule="train=1.0")


def test_support_and_query_of_scenes_share_no_sample(scenes_root):
    index = Index.open(scenes_root)
    sampler = Sampler(index, "train", Shape(2, 2, 3), seed=0, turns=False)
    for number in range(20):
        draw = sampler.draw(0, number)
        assert len(set(draw.rows)) == len(draw.rows)
