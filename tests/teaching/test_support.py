"""Classes come and go: what is left is as if it had always been so."""

import pytest
import torch

from pipeline.errors import InputError
from pipeline.teaching.support import Support, chosen, joined, without

IMAGES = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)
LABELS = torch.tensor([0, 0, 1, 2])
MASKS = torch.tensor([[[0, 1], [255, 1]], [[1, 2], [0, 0]], [[2, 2], [3, 0]], [[3, 3], [0, 3]]])
BOXES = torch.tensor(
    [
        [[0.0, 0.0, 0.5, 0.5, 1], [0, 0, 0, 0, 0]],
        [[0.0, 0.0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1, -2]],
        [[0.0, 0.0, 0.5, 0.5, 2], [0.2, 0.2, 1, 1, 3]],
        [[0.0, 0.0, 0.5, 0.5, 3], [0, 0, 0, 0, 0]],
    ]
)


def support(targets: torch.Tensor, classes=("a", "b", "c")) -> Support:
    return Support(classes, IMAGES, targets, ("one", "two", "three", "four"))


@pytest.mark.parametrize(
    ("targets", "shown"),
    [
        (LABELS, [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        (MASKS, [[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]]),
        (BOXES, [[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]]),
    ],
    ids=["labels", "masks", "boxes"],
)
def test_which_samples_show_which_class(targets, shown):
    assert support(targets).members().int().tolist() == shown


@pytest.mark.parametrize("targets", [LABELS, MASKS, BOXES], ids=["labels", "masks", "boxes"])
@pytest.mark.parametrize("way", [0, 1, 2])
def test_a_class_that_goes_leaves_nothing(targets, way):
    whole = support(targets)
    left = without(whole, way)
    assert left.classes == tuple(name for name in whole.classes if name != whole.classes[way])
    others = [n for n in range(3) if n != way]
    kept = whole.members()[:, others].any(1)
    assert left.names == tuple(name for name, is_kept in zip(whole.names, kept.tolist(), strict=True) if is_kept)
    assert torch.equal(left.members(), whole.members()[kept][:, others])
    assert torch.equal(left.inputs, whole.inputs[kept])
    if targets is MASKS:
        assert torch.equal(left.targets == 255, whole.targets[kept] == 255)
    if targets is BOXES:
        assert (left.targets[left.targets[..., 4] == 0] == 0).all()


@pytest.mark.parametrize("targets", [LABELS, MASKS, BOXES], ids=["labels", "masks", "boxes"])
def test_a_class_that_comes_again_is_the_same(targets):
    whole = support(targets)
    part = [chosen(whole, torch.tensor(own)) for own in ([True, True, False, False], [False, False, True, True])]
    again = joined(*part)
    assert again.classes == whole.classes and again.names == whole.names
    assert torch.equal(again.inputs, whole.inputs) and torch.equal(again.targets, whole.targets)


def test_classes_of_one_name_are_one():
    other = support(LABELS, ("c", "d", "a"))
    both = joined(support(LABELS), other)
    assert both.classes == ("a", "b", "c", "d")
    assert both.targets.tolist() == [0, 0, 1, 2, 2, 2, 3, 0]


def test_boxes_come_in_different_numbers():
    both = joined(support(BOXES), support(BOXES[:, :1]))
    assert both.targets.shape == (8, 2, 5) and torch.equal(both.targets[:4], BOXES)
    assert torch.equal(both.targets[4:, 0], BOXES[:, 0]) and not both.targets[4:, 1].any()


def test_other_forms_do_not_go_together():
    with pytest.raises(InputError, match=r"\(1, 3, 3\).* do not go with"):
        joined(support(LABELS), support(LABELS)._replace(inputs=torch.zeros(4, 1, 3, 3)))
