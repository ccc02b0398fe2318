"""Detection: maps, losses and detections by hand, the laws on padded boxes with ignored ones, and what does not fit."""

import math

import pytest
import torch
from laws import assert_every_parameter_is_reached, assert_plans_agree, assert_ranks_agree, assert_slope
from small import relative, small_config

from pipeline import build, checkpoint, evaluate, restore, train
from pipeline.data.index import Index
from pipeline.engine import Plan
from pipeline.episode import Batch, Episode
from pipeline.errors import InputError
from pipeline.frozen import frozen_encoder
from pipeline.judging import examine, judge
from pipeline.learners.detector import PrototypeDetector
from pipeline.learners.learner import Mode
from pipeline.models.unet import Unet
from pipeline.spool import history
from pipeline.tasks.box_maps import box_loss, decoded, heat_loss, iou, wanted
from pipeline.tasks.detection import PRIOR, Detection, DetectionHead, detections, surest

UNET = {"kind": "unet", "width": 4, "depth": 3, "downsample": "stride", "stride": 4}
TINY = {
    "task": {"kind": "detection", "boxes": 6},
    "data": {"ways": 2, "queries": 2},
    "model": UNET,
    "learner": {"kind": "gradient", "rule": {"kind": "sgd", "lr": 0.1}, "steps": 2},
    "meta": {"steps": 4, "batch": 2},
}
LEARNERS = {
    "maml": {"kind": "gradient", "rule": {"kind": "sgd", "lr": 0.1}, "steps": 2},
    "fomaml": {"kind": "gradient", "estimate": {"kind": "first_order"}, "steps": 2},
    "anil": {"kind": "gradient", "adapts": r"head\..*", "steps": 2},
    "meta-sgd": {"kind": "gradient", "rule": {"kind": "per_element", "lr": 0.1}, "steps": 2},
    "reptile": {"kind": "gradient", "estimate": {"kind": "reptile"}, "steps": 2},
    "imaml": {"kind": "gradient", "rule": {"kind": "sgd", "lr": 0.01},
              "estimate": {"kind": "implicit", "damping": 100.0, "iterations": 5}, "steps": 2},
    "tfa": {"kind": "gradient", "adapts": r"head\..*", "initial": {"kind": "fresh"}, "steps": 2},
    "prototypes": {"kind": "prototype"},
}  # fmt: skip
BOXES = 6


def config_for(root, runs, **sections):
    return small_config(root, runs, **{**TINY, **sections})


def padded(*boxes: tuple[float, ...], places: int = BOXES) -> torch.Tensor:
    """One image's targets."""
    rows = torch.zeros(places, 5)
    if boxes:
        rows[: len(boxes)] = torch.tensor(boxes)
    return rows


def noise(number: int, ways: int = 2, side: int = 16) -> Episode:
    """Brighter where a class is; from one to five boxes in an image, of which some are not looked at."""
    generator = torch.Generator().manual_seed(number)

    def batch(samples: int) -> Batch:
        targets, inputs = [], torch.rand(samples, 1, side, side, generator=generator, dtype=torch.float64)
        for sample in range(samples):
            boxes = []
            for place in range(1 + (number + sample) % 5):
                low = torch.rand(2, generator=generator) * 0.6
                high = low + 0.1 + torch.rand(2, generator=generator) * 0.3
                code = 1 + (sample + place) % ways
                left, top, right, bottom = (int(value * side) for value in (*low, *high))
                inputs[sample, 0, top:bottom, left:right] += 0.3 * code
                boxes.append((*low.tolist(), *high.tolist(), -code if place % 3 == 2 else code))
            targets.append(padded(*boxes))
        return Batch(inputs, torch.stack(targets))

    return Episode(batch(ways), batch(3), ways, torch.tensor(number))


@pytest.fixture(params=LEARNERS)
def learner(request, scenes_root, tmp_path):
    config = config_for(scenes_root, tmp_path, learner=LEARNERS[request.param], meta={"precision": "float64"})
    return build.learner(config, Index.open(scenes_root))


def test_chunks_under_vmap_and_side_by_side_give_the_meta_gradient_of_a_loop(learner):
    """Although the episodes have other numbers of boxes, some of them not to be looked at."""
    episodes = [noise(number) for number in range(3)]
    assert_plans_agree(learner, [Plan("vmap", 2), Plan("loop", 1, abreast=2)], episodes)


def test_every_parameter_gets_a_gradient(learner):
    assert_every_parameter_is_reached(learner, noise(0))


def test_the_meta_gradient_is_that_of_its_value(scenes_root, tmp_path):
    config = config_for(scenes_root, tmp_path, meta={"precision": "float64"})
    learner = build.learner(config, Index.open(scenes_root))
    assert_slope(learner, noise(0), learner.model.get_parameter("encoder.first.conv.weight"), apart=1e-6, rel=1e-3)


@pytest.mark.parametrize("name", ["maml", "prototypes"])
def test_two_workers_and_one_end_with_the_same_losses(scenes_root, tmp_path, name):
    config = config_for(scenes_root, tmp_path, learner=LEARNERS[name], meta={"precision": "float64", "batch": 3})
    assert_ranks_agree(config, tmp_path)


def test_padding_changes_nothing():
    predictions = torch.randn(1, 3 + 4, 8, 8, dtype=torch.float64).exp()
    boxes = ((0.1, 0.2, 0.5, 0.4, 1), (0.5, 0.5, 0.9, 0.8, 3), (0.6, 0.1, 0.8, 0.3, -2))
    few, many = (padded(*boxes, places=places)[None] for places in (3, 9))
    task = Detection()
    assert task.loss(predictions, few).item() == pytest.approx(task.loss(predictions, many).item(), rel=1e-12)
    assert task.metrics(predictions, few) == task.metrics(predictions, many)


def test_maps_by_hand():
    """On four cells a side: class 1 in the cell (1, 1), class 2 around the corner of four cells, an ignored one bottom left."""
    boxes = ((0.25, 0.25, 0.5, 0.5, 1), (0.5, 0, 1, 0.5, 2), (0, 0.5, 0.5, 1, -1))
    asked = wanted(padded(*boxes)[None].double(), 2, 4, 4)
    assert asked.centres[0].nonzero().tolist() == [[0, 1, 1], [1, 1, 3]]
    assert asked.covered[0, 0].nonzero().tolist() == [[1, 1]]
    assert asked.covered[0, 1].nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert (~asked.seen[0, 0]).nonzero().tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]
    assert asked.heat[0, 0, 1, 1] == 1 and asked.heat[0, 1, 1, 3] == 1
    assert asked.heat[0, 1, 1, 2].item() == pytest.approx(math.exp(-1 / (2 * 0.3**2)))
    assert asked.boxes[0, :, 1, 1].tolist() == [1, 1, 2, 2] and asked.boxes[0, :, 0, 2].tolist() == [2, 0, 4, 2]
    assert (asked.weight[0] > 0).nonzero().tolist() == [[0, 2], [0, 3], [1, 1], [1, 2], [1, 3]]


def test_a_centre_inside_of_what_is_not_looked_at_is_looked_at():
    asked = wanted(padded((0.25, 0.25, 0.5, 0.5, 1), (0, 0, 1, 1, -1))[None], 1, 4, 4)
    assert asked.seen[0, 0].nonzero().tolist() == [[1, 1]]


def test_losses_by_hand():
    """Two cells: the centre has probability 3/4, the other 1/2 where nothing is asked."""
    asked = wanted(torch.tensor([[[0.0, 0, 0.5, 1, 1]]]), 1, 1, 2)
    logits = torch.tensor([[[[math.log(3), 0.0]]]])
    near = asked.heat[0, 0, 0, 1].item()
    expected = (1 / 4) ** 2 * math.log(4 / 3) + (1 - near) ** 4 * (1 / 2) ** 2 * math.log(2)
    assert heat_loss(logits, asked).item() == pytest.approx(expected, rel=1e-6)
    # A box of half the width at the one cell that counts: IoU 1/2, and the smallest frame is the true box.
    distances = torch.tensor([0.25, 0.5, 0.25, 0.5])[None, :, None, None].expand(1, 4, 1, 2)
    assert box_loss(distances, asked).item() == pytest.approx(1 / 2, rel=1e-6)
    nothing = wanted(torch.zeros(1, 3, 5), 1, 1, 2)
    assert box_loss(distances, nothing).item() == 0 and heat_loss(logits, nothing).isfinite()


def test_the_loss_can_be_differentiated_twice():
    targets = padded((0.1, 0.2, 0.7, 0.6, 1), (0.4, 0.5, 0.9, 0.9, 2), (0.6, 0.1, 0.8, 0.3, -2))[None]
    raw = torch.randn(1, 6, 4, 4, dtype=torch.float64, requires_grad=True)

    def loss(values):
        return Detection().loss(torch.cat([values[:, :2], values[:, 2:].exp()], 1), targets)

    assert torch.autograd.gradgradcheck(loss, raw)


def sure(boxes: list[tuple[float, ...]], ways: int = 1, side: int = 8) -> torch.Tensor:
    """Predictions that say these boxes (left, top, right, bottom in cells, way, logit)."""
    said = torch.full((1, ways + 4, side, side), -9.0, dtype=torch.float64)
    said[:, ways:] = 1
    for left, top, right, bottom, way, logit in boxes:
        x, y = int((left + right) / 2), int((top + bottom) / 2)
        said[0, way, y, x] = logit
        said[0, ways:, y, x] = torch.tensor([x + 0.5 - left, y + 0.5 - top, right - x - 0.5, bottom - y - 0.5])
    return said


def test_boxes_come_back_from_their_maps():
    said = [(1.0, 1.0, 4.0, 3.0, 0, 4.0), (5.0, 4.5, 7.5, 8.0, 1, 5.0)]
    found = detections(sure(said, ways=2))
    assert found.shape == (1, 100, 6) and (found[0, 2:, 4] < 0.01).all()
    assert found[0, 0].tolist() == pytest.approx([5 / 8, 4.5 / 8, 7.5 / 8, 1, 1 / (1 + math.exp(-5)), 1])
    assert found[0, 1].tolist() == pytest.approx([1 / 8, 1 / 8, 4 / 8, 3 / 8, 1 / (1 + math.exp(-4)), 0])
    middle = decoded(torch.ones(1, 4, 2, 2))
    assert middle[0, :, 1, 0].tolist() == [-0.5, 0.5, 1.5, 2.5]


def test_of_boxes_that_are_nearly_alike_the_surest_counts_and_neighbours_of_a_peak_do_not():
    said = sure([(1.0, 1.0, 6.0, 6.0, 0, 5.0)])
    said[0, 0, 5, 3], said[0, 1:, 5, 3] = 4.0, torch.tensor([2.5, 4.5, 2.5, 0.9])
    found = detections(said)[0]
    assert (found[:, 4] > 0.5).sum() == 1 and found[0, 4].item() == pytest.approx(1 / (1 + math.exp(-5)))
    assert iou(found[0, :4], torch.tensor([1 / 8, 1 / 8, 6 / 8, 6 / 8])).item() == pytest.approx(1)


def test_an_episode_without_fault_is_whole_and_an_empty_one_nothing():
    truth = padded((1 / 8, 1 / 8, 4 / 8, 3 / 8, 1), (5 / 8, 4.5 / 8, 7.5 / 8, 1, 1))[None]
    right = sure([(1.0, 1.0, 4.0, 3.0, 0, 4.0), (5.0, 4.5, 7.5, 8.0, 0, 5.0)])
    task = Detection()
    found = {name: value.item() for name, value in (task.metrics(right, truth) | task.details(right, truth)).items()}
    assert found == pytest.approx(dict.fromkeys(("pointing", "centre_iou", "ap50", "ap", "ap75", "recall"), 1.0))
    assert task.verdict(right, truth).item() == pytest.approx(1)
    wrong = task.details(sure([(1.0, 5.0, 3.0, 7.0, 0, 4.0)]), truth)
    assert all(value.item() == 0 for value in wrong.values())


def test_what_is_not_looked_at_is_neither_missed_nor_wrong():
    truth = padded((1 / 8, 1 / 8, 4 / 8, 3 / 8, 1), (5 / 8, 4.5 / 8, 7.5 / 8, 1, -1))[None]
    one, two = (1.0, 1.0, 4.0, 3.0, 0, 4.0), (5.0, 4.5, 7.5, 8.0, 0, 5.0)
    for said in ([one], [one, two]):
        assert Detection().verdict(sure(said), truth).item() == pytest.approx(1)


def test_an_object_is_told_from_the_score_of_the_largest_f1_on():
    truth = padded((1 / 8, 1 / 8, 4 / 8, 3 / 8, 1), (5 / 8, 4.5 / 8, 7.5 / 8, 1, 1))[None]
    right, also, wrong = (1.0, 1.0, 4.0, 3.0, 0), (5.0, 4.5, 7.5, 8.0, 0), (1.0, 5.0, 3.0, 7.0, 0)

    def told(*logits: float, **options: float) -> float:
        said = sure([(*box, logit) for box, logit in zip((right, also, wrong), logits, strict=True)], ways=2)
        one, two = surest(said, truth, otherwise=0.99, **options)
        # Of the second way nothing is there to be found.
        assert two == 0.99
        return math.log(one / (1 - one))

    assert 1 < told(3, 2, 1) < 2
    # F1 of two right ones and a wrong one, 4/5, is more than that of one alone, 2/3. No less sure one follows.
    assert told(3, 1, 2) == pytest.approx(1)
    usual = math.log(0.99 / 0.01)
    # With the usual score one is told, F1 is 2/3, and 1 with both.
    assert told(5, 2, 1) < usual and told(5, 2, 1, margin=0.4) == pytest.approx(usual)
    assert surest(sure([(*wrong, 2.0)]), truth, otherwise=0.5) == [0.5]


def test_prototypes_find_what_looks_alike():
    """With colours as features, the score is highest where a query has the colour of the support's object."""
    images = torch.zeros(2, 3, 8, 8)
    images[:, 2] = 1
    images[0, :, 2:5, 2:5] = torch.tensor([1.0, 0, 0])[:, None, None]
    images[1, :, 4:7, 1:4] = torch.tensor([1.0, 0, 0])[:, None, None]
    images[1, :, 1:4, 5:8] = torch.tensor([0, 1.0, 0])[:, None, None]
    learner = PrototypeDetector(Plain(), Detection(), features=3)
    with torch.no_grad():
        learner.embedding.weight.copy_(torch.eye(3)[:, :, None, None])
        learner.objects[2].weight.zero_()
    support = Batch(images[:1], padded((0.25, 0.25, 5 / 8, 5 / 8, 1))[None])
    said = learner.adapt(support, 1, mode=Mode.INDUCTIVE)(images[1:])
    assert said.shape == (1, 5, 8, 8)
    alike = said[0, 0] > said[0, 0].amax() - 1
    assert alike.nonzero().tolist() == [[row, column] for row in (4, 5, 6) for column in (1, 2, 3)]


class Plain(torch.nn.Module):
    def forward(self, images, normalise=None):
        return images


def test_a_fresh_head_starts_classes_at_the_prior_and_keeps_the_box_regressor(scenes_root, tmp_path):
    config = config_for(scenes_root, tmp_path, learner=LEARNERS["tfa"], evaluate={"ways": 3, "episodes": 4})
    learner = build.learner(config, Index.open(scenes_root))
    assert learner.initial.replaced == {"head.classes.weight", "head.classes.bias"}
    assert {"head.sides.weight", "head.sides.bias"} < learner.initial.names
    before, *_ = learner.predictors(noise(0, ways=3).to("cpu", torch.float32).support, 3, mode=Mode.INDUCTIVE)
    said = before(torch.rand(2, 1, 16, 16))
    assert said.shape == (2, 7, 4, 4) and said[:, :3].unique().tolist() == pytest.approx([PRIOR])
    assert (said[:, 3:] > 0).all()
    assert isinstance(learner.model.head, DetectionHead)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_a_u_net_stops_on_its_way_up(stride):
    torch.manual_seed(3)
    model = Unet(channels=1, width=4, depth=3, downsample="max_pool", stride=stride)
    assert model(torch.rand(2, 1, 32, 16)).shape == (2, model.features, 32 // stride, 16 // stride)
    assert model.features == 4 * stride


def test_a_run_is_whole(scenes_root, tmp_path, monkeypatch):
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)
    done = train.fit(config_for(scenes_root, tmp_path))
    names = {"episode-best", "episode-median", "episode-worst", "losses", "adaptation", "precision-recall", "classes"}
    assert {path.stem for path in (done.folder / "pictures").glob("*.png")} == names
    rows = (done.folder / "pictures" / "precision-recall.csv").read_text().splitlines()
    assert rows[0] == "recall,precision_at_iou_0.5,precision_at_iou_0.75" and len(rows) == 102
    found = done.result["test"]["inductive"]
    of_episodes = {"ap50", "ap", "ap75", "recall", "pointing", "centre_iou"}
    together = {"coco_map", "coco_ap50", "coco_ap75", "coco_recall"}
    assert found.keys() == of_episodes | together | {"worst_decile"}
    assert found["coco_map"].keys() == {"mean", "interval", "episodes"} and "ap50 " in done.text
    assert history(done.folder).series["test/inductive/coco_ap50"]
    alone = evaluate.evaluate(
        restore.subject_of(checkpoint.best(done.folder)), split="test", episodes=4, workers=1
    ).as_json()
    assert alone["inductive"] == found


def test_an_episode_is_judged_in_both_modes(learner):
    for mode in Mode:
        found = examine(learner, noise(0), mode=mode).metrics
        assert all(0 <= value <= 1 for value in found.values())
        assert judge(learner, noise(0), mode=mode)["ap50"] == pytest.approx(found["ap50"])


def test_an_inductive_detection_depends_on_its_own_image_alone(learner):
    """Law 8."""
    episode = noise(1)
    predict = learner.adapt(episode.support, episode.ways, mode=Mode.INDUCTIVE)
    together, alone = predict(episode.query.inputs), predict(episode.query.inputs[:1])
    assert relative(together[:1], alone) < 1e-10


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"kind": "conv4"}}, "task.kind = detection needs features of every pixel, and model.kind = conv4 gives none"),
        ({"learner": {"kind": "ridge"}}, "learner.kind = ridge does not learn task.kind = detection"),
        ({"learner": {"kind": "gradient", "initial": {"kind": "prototypes"}}}, "task.kind = detection has a linear head"),
        ({"learner": {"kind": "gradient", "head": {"kind": "cosine"}}}, "set learner.head.kind = linear"),
        ({"learner": {"kind": "prototype", "backward": 1}}, "learner.backward counts images"),
        ({"learner": {"kind": "prototype", "align": 1.0}}, "learner.align = 1 is for task.kind = segmentation"),
        ({"data": {"ways": 2, "queries": 2, "rotations": True}}, "data.rotations is for task.kind = classification"),
        ({"teacher": {"start": "x"}}, "teacher is for task.kind = classification"),
        ({"model": {**UNET, "depth": 1}}, "model.stride = 4 is more than model.depth = 1 halvings make"),
        ({"task": {"kind": "segmentation"}}, "model.stride = 4 is for task.kind = detection"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(scenes_root, tmp_path, sections, said):
    with pytest.raises(InputError, match=said):
        train.check(config_for(scenes_root, tmp_path, **sections))


def test_features_of_a_detector_are_not_embedded(scenes_root, tmp_path):
    with pytest.raises(InputError, match="task.kind = detection has features of pixels, not of images"):
        frozen_encoder(config_for(scenes_root, tmp_path), Index.open(scenes_root), tmp_path)


def test_data_without_boxes_are_refused(glyphs_root, tmp_path):
    config = config_for(glyphs_root, tmp_path)
    with pytest.raises(InputError, match="has no boxes, which task.kind = detection needs"):
        build.reader(config, Index.open(glyphs_root))
