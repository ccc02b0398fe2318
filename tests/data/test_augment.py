"""Augmentation: a function of the episode and its key, the same for image and mask, and in training alone."""

import pytest
import torch
from gloo import on_ranks, work_here
from small import small_config

from pipeline import build, checkpoint, train
from pipeline.config import dump
from pipeline.data.augment import Augment
from pipeline.data.index import Index
from pipeline.episode import Batch, Episode
from pipeline.errors import InputError
from pipeline.labels import IGNORED

ALL = Augment(flip=True, crop=0.5, colour=0.4, cutout=0.3)


def episode(key: int = 5, samples: int = 12, channels: int = 3, *, masks: bool = True) -> Episode:
    """Masks are bright where the image is."""
    torch.manual_seed(1)
    masks_of = (torch.rand(samples, 6, 6) > 0.6).repeat_interleave(4, 1).repeat_interleave(4, 2).long()
    images = 0.2 + 0.6 * masks_of[:, None].expand(-1, channels, -1, -1).float()
    batch = Batch(images, masks_of if masks else torch.arange(samples))
    return Episode(batch, batch, 1, torch.tensor(key))


def same(one: Episode, other: Episode) -> bool:
    pairs = zip((*one.support, *one.query), (*other.support, *other.query), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_an_episode_is_changed_by_its_key_alone():
    assert same(ALL(episode()), ALL(episode())) and not same(ALL(episode()), ALL(episode(6)))
    changed = ALL(episode())
    assert not torch.equal(changed.support.inputs, changed.query.inputs)
    assert not torch.equal(changed.support.inputs[0], changed.support.inputs[1])


def test_one_option_does_not_change_what_another_draws():
    flipped, both = Augment(flip=True)(episode()), Augment(flip=True, colour=0.3)(episode())
    assert torch.equal(flipped.support.targets, both.support.targets)


def test_nothing_asked_for_changes_nothing():
    assert same(Augment()(episode()), episode())


def test_a_mirrored_image_has_a_mirrored_mask_and_about_half_are():
    found, given = Augment(flip=True)(episode(samples=200)), episode(samples=200)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(found.support.inputs, given.support.inputs, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(found.support.inputs, given.support.inputs, strict=True)]
    assert all(a or b for a, b in zip(mirrored, kept, strict=True)) and 70 < sum(mirrored) < 130
    for image, mask in zip(found.support.inputs, found.support.targets, strict=True):
        assert torch.equal(image[0] > 0.5, mask == 1)


def test_a_mask_is_cut_as_its_image_is():
    found = Augment(crop=0.5)(episode())
    assert not torch.equal(found.support.inputs, episode().support.inputs)
    sure = (found.support.inputs[:, 0] - 0.5).abs() > 0.29
    assert sure.float().mean() > 0.5
    assert torch.equal((found.support.inputs[:, 0] > 0.5)[sure], (found.support.targets == 1)[sure])


def test_boxes_go_with_their_images():
    """A bright rectangle is where its box is, whatever is done to the image; where there is no box, there is none later."""
    torch.manual_seed(2)
    images, boxes = torch.zeros(40, 1, 40, 40), torch.zeros(40, 3, 5)
    for image, own in zip(images, boxes, strict=True):
        left, top = torch.randint(0, 24, (2,)).tolist()
        image[0, top : top + 10, left : left + 16] = 1
        own[0] = torch.tensor([left / 40, top / 40, (left + 16) / 40, (top + 10) / 40, 1])
    batch = Batch(images, boxes)
    found = Augment(flip=True, crop=0.4)(Episode(batch, batch, 1, torch.tensor(9))).query
    assert (
        not torch.equal(found.targets, boxes)
        and (found.targets[:, 1:] == 0).all()
        and (found.targets[:, 0, 4] == 1).all()
    )
    for image, own in zip(found.inputs, found.targets, strict=True):
        rows, columns = (torch.where((image[0] > 0.5).any(axis))[0] for axis in (1, 0))
        seen = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 40
        assert (seen - own[0, :4]).abs().max() < 1.5 / 40


def test_an_image_keeps_the_classes_of_its_mask():
    targets = torch.zeros(60, 24, 24, dtype=torch.int64)
    targets[:, 0, 0], targets[:, 12, 12] = 2, 1
    targets[:, 23, :5] = IGNORED
    batch = Batch(torch.rand(60, 1, 24, 24), targets)
    found = Augment(crop=0.9)(Episode(batch, batch, 2, torch.tensor(3)))
    for masks in (found.support.targets, found.query.targets):
        assert all({1, 2} <= set(mask.unique().tolist()) for mask in masks)


def test_colours_stay_in_range_and_a_mask_as_it_is():
    found = Augment(colour=0.9)(episode())
    assert found.support.inputs.amin() >= 0 and found.support.inputs.amax() <= 1
    assert torch.equal(found.support.targets, episode().support.targets)
    assert not torch.equal(found.support.inputs, episode().support.inputs)
    grey = Augment(colour=0.5)(episode(channels=1, masks=False))
    assert torch.equal(grey.support.targets, torch.arange(12))


def test_what_is_blotted_out_is_not_looked_at():
    found, given = Augment(cutout=0.25)(episode()), episode()
    holes = found.support.targets == IGNORED
    assert (holes.flatten(1).sum(1) == 36).all()
    changed = (found.support.inputs != given.support.inputs).any(1)
    assert (changed <= holes).all() and changed.any()
    labelled = Augment(cutout=0.25)(episode(masks=False)).support
    assert torch.equal(labelled.targets, torch.arange(12)) and not torch.equal(labelled.inputs, given.support.inputs)


def test_an_empty_support_stays_empty():
    batch = episode().query
    empty = Batch(batch.inputs[:0], batch.targets[:0])
    found = ALL(Episode(empty, batch, 2, torch.tensor(3)))
    assert len(found.support.inputs) == 0 and not torch.equal(found.query.inputs, batch.inputs)


def test_training_is_augmented_and_the_same_on_any_number_of_ranks(scenes_root, tmp_path):
    sections = {
        "task": {"kind": "segmentation"},
        "model": {"kind": "unet", "width": 4, "depth": 2, "norm": "group"},
        "learner": {"kind": "gradient", "rule": {"kind": "sgd", "lr": 0.1}, "steps": 1},
        "meta": {"steps": 3, "batch": 3, "precision": "float64"},
    }
    plain, changed = (
        small_config(
            scenes_root, tmp_path, data={"ways": 2, "queries": 2, "augment": {"crop": crop, "colour": crop}}, **sections
        )
        for crop in (0.0, 0.4)
    )
    for name, config in (("plain", plain), ("one", changed)):
        work_here(dump(config), str(tmp_path / name))
    on_ranks(2, work_here, dump(changed), str(tmp_path / "two"))
    unchanged, one, two = (
        checkpoint.latest(tmp_path / run / "checkpoints").learner["model.encoder.first.conv.weight"]
        for run in ("plain", "one", "two")
    )
    assert torch.allclose(one, two, rtol=0, atol=1e-8) and not torch.allclose(one, unchanged, atol=1e-4)


def test_mirrored_characters_are_refused(scenes_root, glyphs_root, tmp_path):
    config = small_config(scenes_root, tmp_path, data={"ways": 2, "augment": {"flip": True}})
    with pytest.raises(InputError, match="scenes are characters, and a mirrored one is another"):
        train.check(config)
    index = Index.open(glyphs_root)
    assert index.name not in build.CHARACTERS
    build.training_place(config, index, torch.device("cpu"))
    index.encoder = "abc"
    with pytest.raises(InputError, match=r"data.augment is for images, and .* holds features"):
        build.training_place(config, index, torch.device("cpu"))
