"""Segmentation: losses and metrics by hand, the laws on masks with ignored pixels, and what does not fit."""

import math

import pytest
import torch
from gloo import work_here
from laws import assert_every_parameter_is_reached, assert_plans_agree, assert_ranks_agree, assert_slope
from small import small_config

from pipeline import build, checkpoint, evaluate, restore, train
from pipeline.build_task import task
from pipeline.config import dump
from pipeline.data.index import Index
from pipeline.engine import Plan
from pipeline.episode import Batch, Episode
from pipeline.errors import InputError
from pipeline.frozen import frozen_encoder
from pipeline.judging import Judgement, examine, pooled
from pipeline.labels import IGNORED
from pipeline.learners.dense import DensePrototypeLearner, DenseRidgeLearner, area_means
from pipeline.learners.learner import Mode
from pipeline.models.renet import Renet
from pipeline.models.unet import Unet
from pipeline.spool import history
from pipeline.start import started
from pipeline.tasks import pixel_losses
from pipeline.tasks.segmentation import BINS, Segmentation, boundary_f1, foreground_curve

UNET = {"kind": "unet", "width": 4, "depth": 2, "downsample": "stride"}
TINY = {
    "task": {"kind": "segmentation"},
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
    "imaml": {"kind": "gradient", "estimate": {"kind": "implicit", "damping": 20.0, "iterations": 20}, "steps": 2},
    "fresh": {"kind": "gradient", "initial": {"kind": "fresh"}, "steps": 2},
    "prototypes": {"kind": "prototype"},
    "panet": {"kind": "prototype", "align": 0.7},
    "adnet": {"kind": "prototype", "threshold": 0.3},
    "ridge": {"kind": "ridge", "penalty": 0.1},
}
MODELS = {
    "unet": UNET,
    "embedding": {**UNET, "embedding": 6},
    "conv4": {"kind": "decoder", "width": 4, "backbone": {"kind": "conv4", "width": 4, "downsample": "stride"}},
    "resnet12": {"kind": "decoder", "width": 4, "embedding": 5, "backbone": {"kind": "resnet12", "width": 2}},
    "renet": {"kind": "renet", "width": 3, "patch": 4, "layers": 2},
}
LOSSES = [{"kind": kind} for kind in ("cross_entropy", "dice", "cross_entropy_dice", "cross_entropy_areas", "focal")]


def config_for(root, runs, **sections):
    return small_config(root, runs, **{**TINY, **sections})


def noise(number: int, ways: int = 2, side: int = 16) -> Episode:
    """Brighter where a class is; a stripe is not looked at, in one sample nearly all."""
    generator = torch.Generator().manual_seed(number)

    def batch(samples: int) -> Batch:
        targets = torch.randint(0, 1 + ways, (samples, side, side), generator=generator)
        targets[:, :2] = IGNORED
        targets[0, 3:] = IGNORED
        inputs = torch.rand(samples, 1, side, side, generator=generator, dtype=torch.float64)
        return Batch(inputs + 0.3 * (targets % IGNORED)[:, None], targets)

    return Episode(batch(ways), batch(3), ways, torch.tensor(number))


@pytest.fixture(params=LEARNERS)
def learner(request, scenes_root, tmp_path):
    config = config_for(scenes_root, tmp_path, learner=LEARNERS[request.param], meta={"precision": "float64"})
    return build.learner(config, Index.open(scenes_root))


@pytest.fixture(params=MODELS)
def of_model(request, scenes_root, tmp_path):
    config = config_for(scenes_root, tmp_path, model=MODELS[request.param], meta={"precision": "float64"})
    return build.learner(config, Index.open(scenes_root))


def test_chunks_under_vmap_and_side_by_side_give_the_meta_gradient_of_a_loop(learner):
    episodes = [noise(number) for number in range(3)]
    assert_plans_agree(learner, [Plan("vmap", 2), Plan("loop", 1, abreast=2)], episodes)


@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize(("shots", "queries"), [(1, 1), (2, 1), (1, 2)])
def test_one_image_has_the_meta_gradient_of_a_loop_too(scenes_root, tmp_path, shots, queries, layout):
    config = config_for(scenes_root, tmp_path, data={"ways": 1, "queries": 1}, meta={"precision": "float64"})
    learner = build.learner(config, Index.open(scenes_root))
    episodes = []
    for number in range(2):
        support, query, *rest = noise(number, ways=1)
        parts = (
            Batch(*(part.repeat(shots, *[1] * (part.ndim - 1)) for part in support)),
            Batch(*(part[1 : 1 + queries] for part in query)),
        )
        episodes.append(Episode(*parts, *rest))
    assert_plans_agree(learner, [Plan("vmap", 2, layout)], episodes)


def test_every_model_has_the_meta_gradient_of_a_loop_under_vmap(of_model):
    assert_plans_agree(of_model, [Plan("vmap", 2)], [noise(number) for number in range(2)])


def test_every_parameter_of_a_model_gets_a_gradient(of_model):
    assert_every_parameter_is_reached(of_model, noise(0))


def test_every_parameter_gets_a_gradient(learner):
    assert_every_parameter_is_reached(learner, noise(0))


def test_the_meta_gradient_is_that_of_its_value(scenes_root, tmp_path):
    config = config_for(scenes_root, tmp_path, meta={"precision": "float64"})
    learner = build.learner(config, Index.open(scenes_root))
    assert_slope(learner, noise(0), learner.model.get_parameter("encoder.first.conv.weight"), apart=1e-5, rel=1e-4)


@pytest.mark.parametrize("name", ["maml", "panet"])
def test_two_workers_and_one_end_with_the_same_losses(scenes_root, tmp_path, name):
    config = config_for(scenes_root, tmp_path, learner=LEARNERS[name], meta={"precision": "float64", "batch": 3})
    assert_ranks_agree(config, tmp_path)


def test_cross_entropy_by_hand():
    """Two pixels with odds of 3 and of 1 for the truth, and one that is not looked at."""
    logits = torch.tensor([[math.log(3), 0, 5], [0, 0, -5]]).reshape(1, 2, 1, 3)
    targets = torch.tensor([0, 1, 255]).reshape(1, 1, 3)
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert pixel_losses.cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-6)
    focused = ((1 / 4) ** 2 * math.log(4 / 3) + (1 / 2) ** 2 * math.log(2)) / 2
    assert pixel_losses.focal(logits, targets, gamma=2).item() == pytest.approx(focused, rel=1e-6)
    overlap, both = 1 / 4 * 0 + 1 / 2, (1 / 4 + 1 / 2) + 1
    assert pixel_losses.dice(logits, targets).item() == pytest.approx(1 - (2 * overlap + 1) / (both + 1), rel=1e-6)
    assert pixel_losses.both(logits, targets).item() == pytest.approx(
        expected + 1 - (2 * overlap + 1) / (both + 1), rel=1e-6
    )


def test_the_loss_of_areas_is_that_of_their_mean_logits():
    """Two images: in the first a class on two pixels and the ground on one, in the second the ground alone."""
    logits = torch.zeros(2, 2, 1, 4)
    logits[0, 1, 0, :2] = torch.tensor([math.log(9), math.log(1 / 9 * 9)])
    logits[1, 0, 0] = math.log(2)
    targets = torch.tensor([[[1, 1, 0, 255]], [[0, 0, 0, 0]]])
    # The class's mean logit is log 3: odds of 3 to 1; the grounds have odds of 1 and of 2.
    areas = (math.log(4 / 3) + math.log(2) + math.log(3 / 2)) / 3
    pixels = pixel_losses.cross_entropy(logits, targets).item()
    assert pixel_losses.with_areas(logits, targets).item() == pytest.approx(pixels + areas, rel=1e-6)


@pytest.mark.parametrize("config", LOSSES, ids=[each["kind"] for each in LOSSES])
def test_losses_can_be_differentiated_twice_and_bear_that_nothing_is_looked_at(config, scenes_root, tmp_path):
    chosen = config_for(scenes_root, tmp_path, task={"kind": "segmentation", "loss": config})
    loss = task(chosen).loss
    targets = torch.randint(0, 3, (2, 3, 3))
    targets[0, 0] = 255
    logits = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda values: loss(values, targets), logits)
    blind = loss(logits, torch.full_like(targets, 255))
    (slope,) = torch.autograd.grad(blind, logits)
    assert blind.isfinite() and slope.isfinite().all()


def said(*labels: list[list[int]], outputs: int = 2) -> torch.Tensor:
    """Sure logits of these labels."""
    return torch.nn.functional.one_hot(torch.tensor(labels), outputs).permute(0, 3, 1, 2).double() * 9


def test_metrics_by_hand():
    """Of four pixels of the class two are found, one is taken for it wrongly, one pixel is not looked at."""
    predicted, targets = said([[1, 1, 1, 0], [0, 0, 1, 0]]), torch.tensor([[[1, 1, 0, 1], [1, 0, 255, 0]]])
    task = Segmentation()
    assert task.metrics(predicted, targets)["iou"].item() == pytest.approx(2 / 5)
    found = {name: value.item() for name, value in task.details(predicted, targets).items()}
    assert found["dice"] == pytest.approx(4 / 7) and found["pixel_accuracy"] == pytest.approx(4 / 7)
    assert found["precision"] == pytest.approx(2 / 3) and found["recall"] == pytest.approx(1 / 2)
    assert task.tally(predicted, targets).tolist() == [[2, 4, 3], [2, 3, 4]]


def test_a_class_that_is_neither_there_nor_predicted_has_nothing_wrong():
    metrics = Segmentation().metrics(said([[1, 0]], outputs=3), torch.tensor([[[1, 0]]]))
    assert metrics["iou"].item() == 1


def test_intersections_and_unions_are_summed_by_class_before_they_are_divided():
    """Class 7: 1 of 1 and 0 of 9; class 3: 4 of 5. Ground: all hit."""
    tallies = [[[9, 9, 9], [1, 1, 1]], [[9, 9, 9], [0, 4, 5]], [[9, 9, 9], [4, 5, 4]]]
    judgements = [Judgement({"iou": 0.5}, torch.tensor(tally, dtype=torch.float64)) for tally in tallies]
    found = pooled(Segmentation(), judgements, [(7,), (7,), (3,)])
    assert found["miou"].mean == pytest.approx((1 / 10 + 4 / 5) / 2)
    assert found["fb_iou"].mean == pytest.approx((1 + 5 / (10 + 5)) / 2)
    assert found["miou_of_all_pixels"].mean == pytest.approx(((1 + 5) / (10 + 14) + 4 / 13) / 2)
    assert found["miou"].interval > 0 and found["worst_decile"].interval is None
    again = pooled(Segmentation(), judgements, [(7,), (7,), (3,)])
    assert again == found
    two_ways = torch.tensor([[9.0, 9, 9], [1, 2, 1], [1, 1, 4]], dtype=torch.float64)
    found = pooled(Segmentation(), [Judgement({"iou": 1.0}, two_ways)] * 2, [(1, 2), (2, 1)])
    assert found["miou"].mean == pytest.approx(2 / 6)


def test_iou_of_every_class_has_an_interval_where_episodes_are_several():
    """Class 7: 1 of 1 and 0 of 9; class 3: 4 of 5, in one episode."""
    tallies = [[[9, 9, 9], [1, 1, 1]], [[9, 9, 9], [0, 4, 5]], [[9, 9, 9], [4, 5, 4]]]
    found = Segmentation().by_class(torch.tensor(tallies, dtype=torch.float64), [(7,), (7,), (3,)])
    assert (
        found.keys() == {3, 7} and found[7].mean == pytest.approx(1 / 10) and found[3] == (pytest.approx(4 / 5), None)
    )
    # Resamples have the one episode, the other or both.
    assert found[7].interval == pytest.approx(0.5)


def test_precision_over_recall_of_the_foreground_by_hand():
    """Chances 0.9 and 0.4 of the class, 0.6 of the ground; one pixel is not looked at."""
    chances = torch.tensor([[[0.9, 0.4, 0.6, 0.99]]], dtype=torch.float64)
    predictions = torch.stack([1 - chances, chances], 1).log()
    counts = Segmentation().counts(predictions, torch.tensor([[[1, 1, 0, 255]]]))
    assert counts.shape == (2, BINS) and counts.sum(1).tolist() == [1, 2]
    recall, precision = foreground_curve(torch.stack([counts, counts]))
    assert precision[: BINS // 20].isnan().all(), "nothing is taken above 0.95"
    for at, expected in ((0.89, (0.5, 1)), (0.59, (0.5, 1 / 2)), (0.39, (1, 2 / 3)), (0.0, (1, 2 / 3))):
        place = min(BINS - 1, round((1 - at) * BINS))
        assert (recall[place].item(), precision[place].item()) == pytest.approx(expected)


def test_a_boundary_is_found_where_the_other_is_near():
    """Of squares that lie a pixel apart all of the boundary is found, three pixels apart only what meets."""
    truth = torch.zeros(1, 12, 12, dtype=torch.int64)
    truth[0, 2:7, 2:7] = 1
    assert boundary_f1(truth, truth, 1).item() == 1
    near, far = truth.roll(1, 2), truth.roll(5, 2)
    assert boundary_f1(near, truth, 1).item() == pytest.approx(1)
    assert 0 < boundary_f1(far, truth, 1).item() < 0.6
    assert boundary_f1(torch.zeros_like(truth), truth, 1).item() == 0
    assert boundary_f1(torch.zeros_like(truth), torch.zeros_like(truth), 1).item() == 1


def test_means_of_areas_by_hand():
    features = torch.arange(8.0).reshape(2, 1, 2, 2)
    weights = torch.zeros(2, 2, 2, 2)
    weights[0, 0, 0] = 1
    weights[1, 0, 1, 1] = 1
    assert area_means(features, weights).flatten().tolist() == pytest.approx([(0 + 1 + 7) / 3, 0])


def test_prototypes_take_pixels_for_what_they_look_like():
    """With pixels as their own features, the likest direction wins, however long it is."""
    colours = torch.tensor([[1.0, 0], [0, 1]])
    truth = torch.tensor([[[0, 1], [1, 0]]])
    image = colours[truth].permute(0, 3, 1, 2)
    learner = DensePrototypeLearner(Plain(), Segmentation())
    predict = learner.adapt(Batch(image, truth), 1, mode=Mode.INDUCTIVE)
    assert predict(3 * image.flip(2)).argmax(1).tolist() == truth.flip(1).tolist()
    logits = predict(image)
    assert logits.amax().item() == pytest.approx(20) and logits.amin().item() == pytest.approx(0, abs=1e-5)


class Plain(torch.nn.Module):
    def forward(self, images, normalise=None):
        return images


def test_ridge_tells_a_class_from_a_ground_of_two_kinds():
    """The ground is left and right of the class: no mean says that, and with the square beside the value a plane does."""
    values = torch.tensor([-1.0, 0, 1])
    image = torch.stack([values, values.square()])[None, :, None]
    truth = torch.tensor([[[0, 1, 0]]])
    learner = DenseRidgeLearner(Plain(), Segmentation(), penalty=1e-4, scale=1.0)
    predict = learner.adapt(Batch(image, truth), 1, mode=Mode.INDUCTIVE)
    assert predict(image.flip(3)).argmax(1).tolist() == truth.tolist()
    assert predict(image)[0, :, 0].T.flatten().tolist() == pytest.approx([1, 0, 0, 1, 1, 0], abs=1e-2)


def test_ridge_does_not_look_at_ignored_pixels_and_weighs_areas_alike():
    """By least squares in float64: rows weighed by one over the pixels of their area."""
    torch.manual_seed(0)
    image, truth = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    truth[0, 0] = IGNORED
    learner = DenseRidgeLearner(Plain(), Segmentation(), penalty=0.3, scale=2.0).double()
    found = learner.adapt(Batch(image.double(), truth), 2, mode=Mode.INDUCTIVE)(image.double())
    rows = torch.cat([image.movedim(1, -1).flatten(0, 2), torch.ones(40, 1)], 1).double()
    labels = truth.flatten()
    seen = labels != IGNORED
    counts = torch.bincount(labels[seen], minlength=3)
    root = counts[labels[seen]].double().rsqrt()[:, None]
    members = torch.nn.functional.one_hot(labels[seen], 3).double()
    ridge = 0.3**0.5 * torch.eye(4, dtype=torch.float64)
    padded = torch.cat([root * members, torch.zeros(4, 3, dtype=torch.float64)])
    weights = torch.linalg.lstsq(torch.cat([root * rows[seen], ridge]), padded).solution
    expected = (2 * rows @ weights).reshape(2, 4, 5, 3).movedim(-1, 1)
    assert torch.allclose(found, expected, atol=1e-9)


def test_recurrent_units_see_the_whole_image():
    model = Renet(channels=1, width=3, patch=4, layers=1).double()
    images = torch.rand(1, 1, 16, 24, dtype=torch.float64, requires_grad=True)
    maps = model(images)
    assert maps.shape == (1, 3, 16, 24)
    # Two patches away from where a convolution would look.
    (slope,) = torch.autograd.grad(maps[0, :, 2, 2].square().sum(), images)
    assert (slope[0, 0, 12:, 20:].abs() > 0).all()


def test_a_decoder_starts_from_a_backbone_that_classified(scenes_root, tmp_path):
    backbone = {"kind": "conv4", "width": 4, "downsample": "stride"}
    classify = small_config(
        scenes_root,
        tmp_path,
        model=backbone,
        data={"ways": 2},
        learner={"kind": "prototype"},
        meta={"steps": 2, "batch": 2},
    )
    work_here(dump(classify), str(tmp_path / "run"))
    config = config_for(scenes_root, tmp_path, model=MODELS["conv4"], start=str(tmp_path / "run"))
    index = Index.open(scenes_root)
    learner = started(config, index, build.learner)
    own, theirs = learner.state_dict(), checkpoint.latest(tmp_path / "run" / "checkpoints").learner
    held = [name for name in theirs if name.startswith("model.encoder.")]
    assert len(held) == 12
    for name in held:
        assert torch.equal(own[name.replace("model.encoder.", "model.encoder.backbone.")], theirs[name])
    fresh = build.learner(config, index).state_dict()
    assert torch.equal(own["model.encoder.up.blocks.0.conv.weight"], fresh["model.encoder.up.blocks.0.conv.weight"])
    other = config_for(scenes_root, tmp_path, model=MODELS["resnet12"], start=str(tmp_path / "run"))
    with pytest.raises(InputError, match="encoder.backbone.blocks.0.convs.0.weight is not in"):
        started(other, index, build.learner)


def test_alignment_adds_how_well_the_support_comes_back(scenes_root, tmp_path):
    config = config_for(scenes_root, tmp_path, learner=LEARNERS["panet"], meta={"precision": "float64"})
    learner = build.learner(config, Index.open(scenes_root))
    losses = []
    for weight in (0.0, 0.5, 1.0):
        learner.align = weight
        losses.append(learner.outcome(noise(1)).loss.item())
    assert losses[1] - losses[0] == pytest.approx(losses[2] - losses[1]) and losses[1] > losses[0]


def test_what_is_like_nothing_is_ground_where_there_is_a_threshold():
    """Directions of ground, class and neither; cosines with the class of 1, 0.6 and 0."""
    features = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.6, 0.8], [0, 0, 1]]).T[None, :, :, None]
    means = torch.tensor([[1.0, 0, 0], [0, 1, 0]])

    def chosen(threshold: float | None) -> list[int]:
        learner = DensePrototypeLearner(torch.nn.Identity(), Segmentation(), threshold=threshold)
        return learner._decide(means)(features).argmax(1).flatten().tolist()

    assert chosen(None)[:3] == [0, 1, 1] and chosen(0.7) == [0, 1, 0, 0] and chosen(0.5) == [0, 1, 1, 0]


def test_a_u_net_sees_far_and_gives_every_pixel_features():
    model = Unet(channels=3, width=4, depth=3, downsample="max_pool").double()
    images = torch.rand(2, 3, 32, 24, dtype=torch.float64, requires_grad=True)
    maps = model(images)
    assert maps.shape == (2, 4, 32, 24)
    (slope,) = torch.autograd.grad(maps[0, :, 16, 12].square().sum(), images)
    assert (slope[0].abs().sum(0) > 0).float().mean() > 0.5


def test_a_run_is_whole(scenes_root, tmp_path, monkeypatch):
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)
    done = train.fit(config_for(scenes_root, tmp_path))
    names = {"episode-best", "episode-median", "episode-worst", "losses", "adaptation", "precision-recall", "classes"}
    assert {path.stem for path in (done.folder / "pictures").glob("*.png")} == names
    rows = (done.folder / "pictures" / "classes.csv").read_text().splitlines()
    assert rows[0] == "class,IoU,interval,episodes" and len(rows) > 1
    found = done.result["test"]["inductive"]
    assert found["miou"].keys() == {"mean", "interval", "episodes"} and "miou" in done.text and "iou " in done.text
    names = {
        "iou",
        "dice",
        "precision",
        "recall",
        "boundary_f1",
        "pixel_accuracy",
        "miou",
        "miou_of_all_pixels",
        "fb_iou",
    } | {"worst_decile"}
    assert found.keys() == names | {"miou_of_all_pixels"}
    told = history(done.folder).series
    assert told["test/inductive/miou"] and told["test/inductive/miou_interval"]
    alone = evaluate.evaluate(
        restore.subject_of(checkpoint.best(done.folder)), split="test", episodes=4, workers=1
    ).as_json()
    assert alone["inductive"] == found


def test_an_episode_is_judged_in_both_modes(scenes_root, tmp_path):
    config = config_for(scenes_root, tmp_path, meta={"precision": "float64"})
    learner = build.learner(config, Index.open(scenes_root))
    for mode in Mode:
        assert 0 <= examine(learner, noise(0), mode=mode).metrics["iou"] <= 1


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"kind": "conv4"}}, "needs features of every pixel, and model.kind = conv4 gives none"),
        ({"learner": {"kind": "svm"}}, "set learner.kind = gradient, prototype or ridge"),
        ({"learner": {"kind": "ridge", "backward": 1}}, "learner.backward counts images"),
        ({"model": {"kind": "decoder"}, "data": {"ways": 2, "queries": 2, "size": 50}}, "do not divide by 16"),
        (
            {"model": {"kind": "decoder", "backbone": {"kind": "conv4", "features": "map"}}},
            "model.backbone.features = map is for learners of whole images",
        ),
        ({"model": {"kind": "renet", "patch": 7}}, "do not divide by 7, as model.kind = renet needs"),
        ({"task": {"kind": "classification"}, "model": MODELS["renet"]}, "model.kind = renet gives features of pixels"),
        ({"learner": {"kind": "gradient", "initial": {"kind": "prototypes"}}}, "linear head that starts learned or fresh"),
        ({"learner": {"kind": "gradient", "head": {"kind": "cosine"}}}, "set learner.head.kind = linear"),
        ({"learner": {"kind": "prototype", "backward": 1}}, "learner.backward counts images"),
        ({"data": {"ways": 2, "queries": 2, "rotations": True}}, "data.rotations is for task.kind = classification"),
        ({"teacher": {"start": "x"}}, "teacher is for task.kind = classification"),
        ({"model": {**UNET, "depth": 6}, "data": {"ways": 2, "queries": 2, "size": 50}}, "set data.size = 64"),
        ({"task": {"kind": "classification"}}, "model.kind = unet gives features of pixels"),
        (
            {"task": {"kind": "classification"}, "data": {"ways": 1, "queries": 2}, "model": {"kind": "conv4"}},
            "data.ways = 1: with one class there is nothing to tell apart",
        ),
        (
            {
                "task": {"kind": "classification"},
                "model": {"kind": "conv4"},
                "learner": {"kind": "prototype", "align": 1.0},
            },
            "learner.align = 1 is for task.kind = segmentation",
        ),
        (
            {
                "task": {"kind": "classification"},
                "model": {"kind": "conv4"},
                "learner": {"kind": "prototype", "threshold": 0.5},
            },
            "learner.threshold = 0.5 is for task.kind = segmentation",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together(scenes_root, tmp_path, sections, said):
    with pytest.raises(InputError, match=said):
        train.check(config_for(scenes_root, tmp_path, **sections))


def test_features_of_pixels_are_not_embedded(scenes_root, tmp_path):
    with pytest.raises(InputError, match="task.kind = segmentation has features of pixels, not of images"):
        frozen_encoder(config_for(scenes_root, tmp_path), Index.open(scenes_root), tmp_path)


def test_data_without_masks_are_refused(glyphs_root, tmp_path):
    config = config_for(glyphs_root, tmp_path, data={"ways": 2, "queries": 2})
    with pytest.raises(InputError, match="samples have no masks, which task.kind = segmentation needs"):
        build.reader(config, Index.open(glyphs_root))
