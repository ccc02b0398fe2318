"""What is said of sureness is true of data of which it is known; where nothing can be known, nothing is said."""

import pytest
import torch
from teachable import DETECTION, PROTOTYPE, SEGMENTATION, learner_of, support_of
from torch.nn import functional as F

from pipeline.teaching import calibration
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.calibration import SURE, Calibration, parting, temperature, threshold
from pipeline.teaching.support import Support


def drawn(count: int, ways: int, heat: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, and targets that are drawn with the probabilities that the scores at this temperature give."""
    generator = torch.Generator().manual_seed(0)
    scores = 4 * torch.randn(count, ways, generator=generator, dtype=torch.float64)
    return scores, torch.multinomial((scores / heat).softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("heat", [0.5, 1.0, 3.0])
def test_the_temperature_that_targets_were_drawn_with_is_found(heat):
    assert temperature(*drawn(4000, 5, heat)) == pytest.approx(heat, rel=0.15)


def test_few_samples_move_the_temperature_little():
    scores = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]], dtype=torch.float64)
    right, wrong = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1])
    assert 1 / 3 < temperature(scores, right) <= 1 < temperature(scores, wrong) < 10
    nothing = temperature(torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    assert nothing == pytest.approx(1)


def test_the_best_parting_of_known_and_strangers():
    known, strangers = torch.tensor([0.9, 0.8, 0.7, 0.2]), torch.tensor([0.1, 0.15, 0.75, 0.3, 0.25])
    value, errors = parting(known, strangers)
    assert 0.3 < value <= 0.7 and errors == pytest.approx(1 / 4 + 1 / 5)
    # Of equally good ones the lowest, and none better exists.
    tried = torch.linspace(-1, 2, 301)
    wrong = (known < tried[:, None]).float().mean(1) + (strangers >= tried[:, None]).float().mean(1)
    assert wrong.min().item() == pytest.approx(errors)
    assert parting(torch.tensor([0.9]), torch.tensor([0.1])) == (pytest.approx(0.5), 0)


def clusters(shots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of length one of four classes, 60° apart in their planes or more, and their classes."""
    generator = torch.Generator().manual_seed(1)
    middles = torch.eye(4, dtype=torch.float64) + 0.3
    targets = torch.arange(4).repeat_interleave(shots)
    noise = 0.1 * torch.randn(len(targets), 4, generator=generator, dtype=torch.float64)
    return F.normalize(middles[targets] + noise, dim=1), targets


def test_strangers_are_told_from_what_is_known():
    features, targets = clusters(4)
    value, errors = threshold(features, targets)
    cosines = (features @ features.T).fill_diagonal_(-1)
    assert errors == 0
    assert (cosines.amax(1) >= value).all()
    assert (cosines.masked_fill(targets[:, None] == targets[None], -1).amax(1) < value).all()


def test_parts_of_the_samples_give_what_all_at_once_give(monkeypatch):
    features, targets = clusters(5)
    expected = threshold(features, targets)
    monkeypatch.setattr(calibration, "ROWS", 7)
    assert threshold(features, targets) == (pytest.approx(expected[0]), expected[1])


def test_of_lone_samples_only_strangers_are_known():
    features, targets = clusters(1)
    value, errors = threshold(features, targets)
    nearest = (features @ features.T).fill_diagonal_(-1).amax(1)
    assert errors is None and nearest.min() <= value <= nearest.max()


def test_what_was_left_out_says_how_good_the_model_is(glyphs_root, tmp_path):
    learner = learner_of(glyphs_root, tmp_path, **PROTOTYPE)
    found = Adapted(learner, support_of(learner), origin={}).calibration
    assert found.samples == 9 and not found.copies and found.threshold is not None and found.errors is not None
    hits = 0
    support = support_of(learner)
    for number in range(9):
        # A prototype's answer to one sample does not depend on which others are asked about.
        left = torch.arange(9) % 3 == number % 3
        kept = Adapted(
            learner,
            support._replace(inputs=support.inputs[~left], targets=support.targets[~left], names=support.names[:6]),
            Calibration(),
            origin={},
        )
        hits += int(kept.scores(support.inputs[number : number + 1]).argmax() == support.targets[number])
    assert found.accuracy == pytest.approx(hits / 9)


def test_copies_do_not_make_it_sure(glyphs_root, tmp_path):
    learner = learner_of(glyphs_root, tmp_path, **PROTOTYPE)
    found = Adapted(learner, support_of(learner, shots=1), origin={}).calibration
    assert found.copies and found.temperature == 1 and found.errors is None and found.samples == 12


def squares(learner, *shown: str, boxes: bool) -> Support:
    """Images of noise with a bright square of class "a" at the left, a dark one of "b" at the right, where they are `shown`."""
    height, width, channels = learner.inputs.shape
    generator = torch.Generator().manual_seed(2)
    inputs = 0.4 + 0.2 * torch.rand(len(shown), channels, height, width, generator=generator)
    masks = torch.zeros(len(shown), height, width, dtype=torch.int64)
    corners = torch.zeros(len(shown), 2, 5)
    for number, names in enumerate(shown):
        for way, (name, left) in enumerate((("a", 6), ("b", 28))):
            if name in names:
                inputs[number, :, 14:30, left : left + 14], masks[number, 14:30, left : left + 14] = 1 - way, 1 + way
                box = (left / width, 14 / height, (left + 14) / width, 30 / height, 1 + way)
                corners[number, way] = torch.tensor(box)
    return Support(("a", "b"), inputs, corners if boxes else masks, shown)


def test_images_with_masks_are_left_out_one_by_one(scenes_root, tmp_path):
    learner = learner_of(scenes_root, tmp_path, **SEGMENTATION)
    support = squares(learner, "a", "a", "ab", "a", boxes=False)
    found = Adapted(learner, support, origin={}).calibration
    # The only image of "b" has to stay, so that nothing is said of "b".
    lefts, hits, either = [0, 1, 3], 0, 0
    for number in lefts:
        kept = torch.arange(4) != number
        rest = support._replace(inputs=support.inputs[kept], targets=support.targets[kept], names=support.names[:3])
        told = Adapted(learner, rest, Calibration(), origin={}).maps(support.inputs[number : number + 1])[0] == 1
        true = support.targets[number] == 1
        hits, either = hits + (told & true).sum().item(), either + (told | true).sum().item()
    assert found.accuracy == pytest.approx(hits / either) and 0 < found.accuracy < 1
    assert found.samples == 3 and not found.copies and found.threshold is None and not found.scores


@pytest.mark.parametrize("boxes", [False, True])
def test_of_lone_images_nothing_is_said(scenes_root, tmp_path, boxes):
    learner = learner_of(scenes_root, tmp_path, **(DETECTION if boxes else SEGMENTATION))
    model = Adapted(learner, squares(learner, "a", "b", boxes=boxes), origin={})
    assert model.calibration == Calibration() and model.sure == [SURE, SURE]


def test_few_images_are_left_out_of_many(scenes_root, tmp_path):
    learner = learner_of(scenes_root, tmp_path, **SEGMENTATION)
    assert Adapted(learner, squares(learner, *["ab"] * 13, boxes=False), origin={}).calibration.samples == 5


def test_boxes_left_out_say_from_which_score_on_an_object_is_told(scenes_root, tmp_path):
    learner = learner_of(scenes_root, tmp_path, **DETECTION)
    support = squares(learner, "ab", "ab", "a", "b", boxes=True)
    model = Adapted(learner, support, origin={})
    found = model.calibration
    assert found.samples == 4 and found.accuracy is not None and 0 <= found.accuracy <= 1
    assert found.scores is not None and len(found.scores) == 2 and all(0 < score < 1 for score in found.scores)
    own, every = model.boxes(support.inputs), model.boxes(support.inputs, threshold=0.0)
    least = dict(zip(support.classes, found.scores, strict=True))
    for told, told_of_all in zip(own, every, strict=True):
        assert told == [box for box in told_of_all if box.score >= least[box.label]]


def test_thousands_of_classes(glyphs_root, tmp_path):
    learner = learner_of(glyphs_root, tmp_path, **PROTOTYPE)
    count = 2000
    inputs = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    inputs[1::2] = (inputs[1::2] + 0.05).clamp(max=1)
    support = Support(
        tuple(f"class {n}" for n in range(count)), inputs, torch.arange(count).repeat_interleave(2), ("",) * 2 * count
    )
    model = Adapted(learner, support, origin={})
    # A sample of each class says enough; the other half is not left out as well.
    assert model.scores(inputs[:3]).shape == (3, count) and model.calibration.samples == count
