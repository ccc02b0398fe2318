"""Verification: figures against brute force, losses by hand, who is unknown, and the pair protocol from pack to picture."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from gloo import work_here
from small import episode, gradient, make, relative, small_config

from pipeline import build, checkpoint, cli, evaluate, pair_protocol, prepare, restore, train
from pipeline.build_task import task
from pipeline.config import dump, load
from pipeline.data.index import Index
from pipeline.data.pairs import pairs_of
from pipeline.embed import embed
from pipeline.engine import Engine, Plan, chunks
from pipeline.episode import Batch
from pipeline.errors import InputError
from pipeline.judging import Judgement, pooled
from pipeline.learners.learner import Mode
from pipeline.spool import history
from pipeline.tasks import pair_losses, roc
from pipeline.tasks.roc import Trials
from pipeline.tasks.task import half_width, resamples
from pipeline.tasks.verification import Verification, trials

VERIFICATION = {"task": {"kind": "verification"}, "learner": {"kind": "cosine"}}
APART = {"prototype", "cosine", "wccn", "relation", "supervised"}
FIGURES = {"auc", "eer", "tar_at_far_1e-1", "tar_at_far_1e-2", "tar_at_far_1e-3"}
REAL = Path(__file__).parents[2].parent / "shared" / "data"


def some_trials(seed: int = 0, *, number: int = 400, units: int = 1, steps: int | None = None) -> Trials:
    """Genuine trials that score higher on average; with `steps` scores have so many values and are often equal."""
    generator = torch.Generator().manual_seed(seed)
    genuine = torch.rand(number, generator=generator) < 0.3
    scores = torch.randn(number, generator=generator, dtype=torch.float64) + 1.2 * genuine
    scores = scores if steps is None else (scores * steps).round()
    return Trials(scores, genuine, torch.arange(number) % units)


@pytest.mark.parametrize("steps", [None, 2])
def test_figures_are_those_of_scikit_learn_and_of_trying_every_threshold(steps):
    from sklearn.metrics import roc_auc_score, roc_curve

    some = some_trials(steps=steps)
    found = {name: value.item() for name, value in roc.figures(roc.curve_of(some)).items()}
    assert found.keys() == FIGURES
    assert found["auc"] == pytest.approx(roc_auc_score(some.genuine, some.scores))
    far, tar, _ = roc_curve(some.genuine, some.scores, drop_intermediate=False)
    places = np.linspace(0, 1, 200_001)
    assert found["eer"] == pytest.approx(places[np.abs(1 - np.interp(places, far, tar) - places).argmin()], abs=1e-4)
    for name, most in roc.FARS.items():
        allowed = [0.0]
        for limit in some.scores.unique():
            taken = some.scores >= limit
            if taken[~some.genuine].double().mean() <= most:
                allowed.append(taken[some.genuine].double().mean().item())
        assert found[f"tar_at_far_{name}"] == pytest.approx(max(allowed))


def test_a_curve_by_hand():
    """Genuine 3, 1; impostors 2, 2, 0, 0: at the score 2 half of each kind is wrong."""
    some = Trials(torch.tensor([3.0, 1, 2, 2, 0, 0]).double(), torch.tensor([1, 1, 0, 0, 0, 0]).bool(), torch.zeros(6))
    curve = roc.curve_of(some)
    assert curve.far.tolist() == [0, 0, 0.5, 0.5, 1] and curve.tar.tolist() == [0, 0.5, 0.5, 1, 1]
    assert roc.auc(curve).item() == 0.75 and roc.equal_error(curve).item() == 0.5
    assert roc.tar_at(curve, 0.1).item() == 0.5 and roc.tar_at(curve, 0.5).item() == 1


def test_perfect_reversed_and_unknown_scores():
    some = some_trials()
    perfect = roc.figures(roc.curve_of(some._replace(scores=some.genuine.double())))
    assert [value.item() for value in perfect.values()] == [1, 0, 1, 1, 1]
    reversed_ = roc.figures(roc.curve_of(some._replace(scores=-some.genuine.double())))
    assert [value.item() for value in reversed_.values()] == [0, 1, 0, 0, 0]
    broken = some.scores.clone()
    broken[3] = torch.nan
    assert all(value.isnan() for value in roc.figures(roc.curve_of(some._replace(scores=broken))).values())


@pytest.mark.parametrize("steps", [None, 2])
def test_a_resample_is_the_curve_of_its_units_as_often_as_they_are_drawn(steps):
    some = some_trials(number=3000, units=30, steps=steps)
    weights = torch.randint(0, 3, (2, 30), generator=torch.Generator().manual_seed(1)).double()
    for row, curve in zip(weights, zip(*roc.resampled(some, weights), strict=True), strict=True):
        times = row[some.unit].long()
        again = Trials(*(part.repeat_interleave(times) for part in some))
        expected = roc.figures(roc.curve_of(again))
        for name, value in roc.figures(roc.Curve(*curve)).items():
            assert value.item() == pytest.approx(expected[name].item(), abs=0.004), name


def test_intervals_are_those_of_the_means_where_these_are_known():
    """Every unit has one genuine trial above all impostors or below all of them: the rate at any FAR is a share of units."""
    units, right = 200, 140
    genuine = torch.cat([torch.ones(right), -torch.ones(units - right)])
    scores = torch.cat([genuine, torch.zeros(units)]).double()
    some = Trials(scores, torch.arange(2 * units) < units, torch.arange(2 * units) % units)
    found = roc.pooled(some, resamples(units)[1:])["tar_at_far_1e-2"]
    assert found.mean == 0.7 and found.interval == pytest.approx(1.96 * (0.7 * 0.3 / units) ** 0.5, rel=0.1)


def tallies_of(verification: Verification, *, episodes: int = 12, samples: int = 15, ways: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(episodes):
        targets = torch.arange(ways).repeat(samples // ways)
        scores = torch.randn(samples, ways, generator=generator) + 1.5 * torch.nn.functional.one_hot(targets, ways)
        found.append(verification.tally(scores, targets))
    return torch.stack(found)


def test_every_score_is_a_trial_and_the_order_of_episodes_does_not_matter():
    verification = Verification(is_apart=True)
    tallies = tallies_of(verification)
    some = trials(tallies)
    assert len(some.scores) == 12 * 15 * 5 and some.genuine.sum() == 12 * 15
    assert (some.genuine.reshape(12, 15, 5).int().argmax(-1) == tallies[..., 0]).all()
    judgements = [Judgement({"accuracy": 0.5}, tally) for tally in tallies]
    found, again = (pooled(verification, order, [range(5)] * 12) for order in (judgements, judgements[::-1]))
    assert found.keys() == FIGURES | {"dir_at_far_1e-1", "dir_at_far_1e-2", "worst_decile"}
    assert {name: value.mean for name, value in found.items()} == {name: value.mean for name, value in again.items()}
    assert all(value.interval and value.interval > 0 for name, value in found.items() if name != "worst_decile")
    closed = Verification(is_apart=False)
    assert pooled(closed, judgements, [range(5)] * 12).keys() == FIGURES | {"worst_decile"}


def test_detection_and_identification_by_trying_every_threshold():
    verification = Verification(is_apart=True)
    tallies = tallies_of(verification)
    found = verification.pooled(tallies, [range(5)] * 12)
    known, strangers = [], []
    for target, *scores in tallies.flatten(0, 1).tolist():
        own = scores.pop(int(target))
        known.append(own if own > max(scores) else -np.inf)
        strangers.append(max(scores))
    known, strangers = np.array(known), np.array(strangers)
    for name in ("1e-1", "1e-2"):
        rates = [(known >= t).mean() for t in {*known, *strangers, np.inf} if (strangers >= t).mean() <= float(name)]
        assert found[f"dir_at_far_{name}"].mean == pytest.approx(max(rates))


def without(batch: Batch, way: int) -> Batch:
    """A batch without a class; the others are numbered anew."""
    kept = batch.targets != way
    targets = batch.targets[kept]
    return Batch(batch.inputs[kept], targets - (targets > way).long())


@pytest.mark.parametrize(
    "name", ["prototypes", "cosine", "wccn", "relation", "relation-task-loss", "supervised", "supervised-cosine"]
)
def test_scores_of_these_learners_do_not_depend_on_other_classes(name):
    """So that to leave out a score is to leave out a person."""
    learner, (support, query, ways, _) = make(name), episode(3)
    full, fewer = (
        learner.adapt(part, ways_of, mode=Mode.INDUCTIVE)(query.inputs)
        for part, ways_of in ((support, ways), (without(support, 1), ways - 1))
    )
    assert relative(fewer, full[:, [0, 2]]) < 1e-10


def test_scores_of_a_classifier_do_depend_on_them():
    learner, (support, query, ways, _) = make("ridge"), episode(3)
    full = learner.adapt(support, ways, mode=Mode.INDUCTIVE)(query.inputs)
    fewer = learner.adapt(without(support, 1), ways - 1, mode=Mode.INDUCTIVE)(query.inputs)
    assert relative(fewer, full[:, [0, 2]]) > 1e-3


@pytest.mark.parametrize(
    "kind", ["gradient", "prototype", "cosine", "wccn", "matching", "relation", "ridge", "svm", "leo", "supervised"]
)
def test_who_is_unknown_is_asked_where_scores_stand_for_themselves(glyphs_root, tmp_path, kind):
    made = task(small_config(glyphs_root, tmp_path, **{**VERIFICATION, "learner": {"kind": kind}}))
    assert isinstance(made, Verification) and made.is_apart == (kind in APART)


def test_a_margin_is_added_to_what_the_true_class_has_to_win_by():
    scores, targets = torch.tensor([[2.0, 1, 0]]).double(), torch.tensor([0])
    shifted = torch.tensor([[2.0 - 0.5, 1, 0]]).double()
    expected = torch.nn.functional.cross_entropy(shifted, targets)
    assert pair_losses.margin(scores, targets, margin=0.5).item() == pytest.approx(expected.item())
    assert pair_losses.margin(scores, targets, margin=1e-9).item() == pytest.approx(
        torch.nn.functional.cross_entropy(scores, targets).item()
    )


def test_squares_of_pairs_by_hand():
    """Odds of 3 and of 1 for the genuine pair of each query, of 1/4 and 1 for the impostors."""
    odds, targets = torch.tensor([[3, 1 / 4], [1, 1]]).double(), torch.tensor([0, 1])
    expected = ((1 / 4) ** 2 + (1 / 2) ** 2) / 2 / 2 + ((1 / 5) ** 2 + (1 / 2) ** 2) / 2 / 2
    assert pair_losses.pair_squares(odds.log(), targets).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [{"kind": "margin", "margin": 2.0}, {"kind": "pair_mse"}], ids=["margin", "pair_mse"])
@pytest.mark.parametrize("learner", ["cosine", "gradient", "supervised"])
def test_losses_keep_the_laws(glyphs_root, tmp_path, loss, learner):
    """Differentiable twice; the meta-gradient of a loop is that under vmap and side by side; every parameter has one."""
    sections = {"task": {"kind": "verification", "loss": loss}, "learner": {"kind": learner}}
    config = small_config(glyphs_root, tmp_path, **sections, meta={"precision": "float64"})
    made = build.learner(config, Index.open(glyphs_root))
    scores = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda values: made.task.loss(values, torch.tensor([0, 1, 2, 1])), scores)
    found = []
    for plan in (Plan("loop", 1), Plan("vmap", 2), Plan("loop", 1, abreast=2)):
        engine = Engine(made, plan)
        for part in chunks([episode(n) for n in range(2)], plan):
            engine(part).loss.backward()
        found.append(gradient(made))
        made.zero_grad()
    assert found[0].norm() > 0 and all(relative(other, found[0]) < 1e-10 for other in found[1:])


SQUARES = {"kind": "verification", "loss": {"kind": "pair_mse"}}
MARGIN = {"kind": "verification", "loss": {"kind": "margin"}}
MAPS = {"kind": "conv4", "features": "map"}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"learner": {"kind": "prototype"}, "task": SQUARES},
            "prototype has no score above 0; set learner.kind = cosine",
        ),
        ({"learner": {"kind": "matching"}, "task": SQUARES}, "learner.kind = matching has no score above 0"),
        ({"data": {"ways": 1}}, "data.ways = 1: with one class there is nothing to tell apart"),
        (
            {"learner": {"kind": "relation"}, "model": MAPS, "task": MARGIN},
            "task.loss.kind = margin is not asked where",
        ),
    ],
)
def test_what_does_not_go_together(glyphs_root, tmp_path, sections, said):
    with pytest.raises(InputError, match=said):
        train.check(small_config(glyphs_root, tmp_path, **{**VERIFICATION, **sections}))


@pytest.fixture
def untold(monkeypatch):
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)


@pytest.mark.parametrize("name", ["cosine", "gradient"])
def test_a_run_is_whole(glyphs_root, tmp_path, untold, name):
    learner = {"kind": name, "steps": 1} if name == "gradient" else {"kind": name}
    done = train.fit(small_config(glyphs_root, tmp_path, **{**VERIFICATION, "learner": learner}))
    names = {"episode-best", "episode-median", "episode-worst", "losses", "roc", "scores"}
    drawn = {path.stem for path in (done.folder / "pictures").glob("*.png")}
    assert drawn == names | ({"adaptation"} if name == "gradient" else set())
    for beside, ends in (("roc", ("0.0,0.0", "1.0,1.0")), ("scores", None)):
        rows = (done.folder / "pictures" / f"{beside}.csv").read_text().splitlines()
        assert ends is None or (rows[1], rows[-1]) == ends
        assert beside == "roc" or sum(float(row.split(",")[2]) for row in rows[1:]) == pytest.approx(1)
    found = done.result["test"]["inductive"]
    unknown = {"dir_at_far_1e-1", "dir_at_far_1e-2"} if name == "cosine" else set()
    assert found.keys() == FIGURES | unknown | {"accuracy", "worst_decile"} and "auc " in done.text
    assert found["eer"].keys() == {"mean", "interval", "episodes"}
    assert history(done.folder).series["test/inductive/tar_at_far_1e-2_interval"]
    alone = evaluate.evaluate(
        restore.subject_of(checkpoint.best(done.folder)), split="test", episodes=4, workers=1
    ).as_json()
    assert alone["inductive"] == found


def pair_lines(images: Path, folds: int) -> list[str]:
    """Pairs of the classes of an image folder, which are dealt to folds: as many of one as of two."""
    names = sorted({str(path.parent.relative_to(images)) for path in images.rglob("*.png")})
    lines = ["fold,image_a,image_b,same"]
    for fold in range(folds):
        mine = names[fold::folds]
        for place, name in enumerate(mine):
            other = mine[(place + 1) % len(mine)]
            for a, b in ((0, 1), (2, 3), (4, 5)):
                lines += [f"{fold},{name}/{a:02d}.png,{name}/{b:02d}.png,1"]
                lines += [f"{fold},{name}/{a:02d}.png,{other}/{b:02d}.png,0"]
    return lines


@pytest.fixture(scope="module")
def people(tmp_path_factory, glyphs_root):
    """Drawn characters as persons, with pairs in three folds: (images, file of pairs, data whose fold 0 is held out)."""
    place, images = tmp_path_factory.mktemp("people"), glyphs_root.parent / "images"
    (place / "pairs.csv").write_text("\n".join(pair_lines(images, 3)))
    options = {"layout": "identities", "size": 16, "pairs": place / "pairs.csv"}
    prepare.pack(str(images), place / "held", **options, fold=0, rule="train=0.7,val=0.3")
    prepare.pack(str(images), place / "all", **options, rule="train=0.9,val=0.1")
    return place


@pytest.fixture(scope="module")
def run(people, tmp_path_factory):
    """A short run on the persons of the other folds."""
    place = tmp_path_factory.mktemp("verified")
    config = small_config(
        people / "held",
        place,
        task={"kind": "verification"},
        learner={"kind": "cosine"},
        data={"ways": 10},
        evaluate={"ways": 3, "episodes": 4},
        model={"kind": "conv4", "width": 16, "downsample": "stride", "features": "flatten"},
        meta={"steps": 60, "optimizer": {"kind": "adam", "lr": 0.005}},
        validation={"every": 30, "episodes": 10},
    )
    work_here(dump(config), str(place / "run"))
    return place / "run"


def test_pairs_of_the_held_fold_are_judged_and_what_is_learned_helps(people, run):
    found = pair_protocol.evaluate_pairs(checkpoint.best(run))
    judged, held = found.judged, pairs_of(Index.open(people / "held"))
    assert [fold.fold for fold in judged.folds] == [0] and judged.folds[0].pairs == (held.fold == 0).sum()
    assert judged.figures.keys() == FIGURES | {"accuracy"} and judged.threshold_from == "persons of the split val"
    index = Index.open(people / "held")
    chance = pair_protocol.judge(
        index,
        lambda rows: torch.stack([torch.rand(8, generator=torch.Generator().manual_seed(int(row))) for row in rows]),
        pair_protocol.cosine,
        validation="val",
    )
    assert chance.figures["accuracy"].mean < 0.6 < judged.figures["accuracy"].mean
    assert judged.figures["auc"].mean > 0.7 and found.as_json()["auc"]["interval"] > 0
    again = pair_protocol.evaluate_pairs(checkpoint.best(run))
    assert again.as_json() == found.as_json()


def test_a_threshold_never_sees_who_is_judged(people):
    """Whatever the pairs of a fold are said to be, its threshold stays; it is that of the others."""
    index = Index.open(people / "all")
    given = torch.randn(len(index), 6, generator=torch.Generator().manual_seed(0))

    def thresholds(features: torch.Tensor) -> list[float]:
        found = pair_protocol.judge(index, lambda rows: features[rows], pair_protocol.cosine, validation="")
        assert found.threshold_from == "the pairs of the other folds"
        return [fold.threshold for fold in found.folds]

    pairs, other = pairs_of(index), given.clone()
    own = np.isin(index.class_of, index.class_of[pairs.a[pairs.fold == 1]])
    other[torch.from_numpy(own)] = 7.0
    before, after = thresholds(given), thresholds(other)
    assert before[1] == after[1] and before[0] != after[0] and before[2] != after[2]


def test_the_threshold_is_between_the_scores_that_it_parts_best():
    scores, same = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.1]).double(), torch.tensor([1, 1, 0, 1, 0]).bool()
    assert pair_protocol.threshold(scores, same) == pytest.approx(0.75)
    # Balanced: one impostor above the threshold weighs as much as a third of three genuine pairs.
    assert pair_protocol.threshold(torch.tensor([4.0, 3, 2, 1]), torch.tensor([1, 1, 1, 0]).bool()) == 1.5


def test_intervals_are_wider_where_few_persons_stand_for_all_pairs():
    """Two persons in all pairs, or each pair its own two: as many pairs, but less is known."""
    one = pair_protocol._weights(torch.arange(40), torch.arange(40))
    few = pair_protocol._weights(torch.arange(40) % 2, torch.arange(40) % 2)
    right = (torch.arange(40) % 2).double()
    spread = [half_width(weights @ right / weights.sum(1)) for weights in (one, few)]
    assert spread[0] == pytest.approx(1.96 * 0.5 / 40**0.5, rel=0.15) and spread[1] == pytest.approx(0.5)
    two = pair_protocol._weights(torch.tensor([0, 0]), torch.tensor([0, 1]))
    drawn = resamples(2)[1:]
    assert (two == torch.stack([drawn[:, 0], drawn[:, 0] * drawn[:, 1]], 1)).all()


def test_mirrored_features_are_the_mean_of_both(people, run):
    from pipeline.frozen import frozen_encoder

    path = checkpoint.best(run)
    found = restore.restored(restore.subject_of(path))
    encoder, mirrored = (
        frozen_encoder(found.config, found.index, path, mirror=mirror).encoder for mirror in (False, True)
    )
    reader, rows = build.reader(found.config, found.index), np.array([0, 5, 9])
    both = pair_protocol.embedded(mirrored, reader, rows)
    images = (
        torch.stack([torch.from_numpy(reader.shards.image(row).copy()) for row in rows.tolist()]).permute(0, 3, 1, 2)
        / 255
    )
    assert torch.allclose(both, (encoder(images) + encoder(images.flip(3))) / 2, atol=1e-6)
    plain, mirrored = (pair_protocol.evaluate_pairs(path, mirror=mirror) for mirror in (False, True))
    assert plain.judged.figures != mirrored.judged.figures and mirrored.as_json()["mirror"]


def test_prototypes_compare_by_distance(people, run, tmp_path):
    config = small_config(people / "held", tmp_path, task={"kind": "verification"}, learner={"kind": "prototype"})
    work_here(dump(config), str(tmp_path / "run"))
    found = pair_protocol.evaluate_pairs(checkpoint.best(tmp_path / "run"))
    assert found.score == "-distance²" and all(fold.threshold < 0 for fold in found.judged.folds)


def test_who_was_seen_in_training_is_not_judged(people, run, tmp_path):
    """In other data too, if they have the same names; and a run that starts from one that has seen them has seen them."""
    with pytest.raises(
        InputError, match=r"of fold \d is in the split 'train' of .*held, on which small was trained \(\d+ such"
    ):
        pair_protocol.evaluate_pairs(checkpoint.best(run), data=people / "all")
    wide = {"kind": "conv4", "width": 16, "downsample": "stride", "features": "flatten"}
    other = small_config(people / "all", tmp_path, **VERIFICATION, model=wide, meta={"steps": 0}, start=str(run))
    work_here(dump(other), str(tmp_path / "later"))
    with pytest.raises(InputError, match=r"held, on which small was trained"):
        pair_protocol.evaluate_pairs(checkpoint.best(tmp_path / "later"))


def test_all_folds_are_judged_where_none_is_held_out(people):
    found = pair_protocol.judge(
        Index.open(people / "all"),
        lambda rows: torch.stack([torch.full((3,), float(row)) for row in rows]),
        pair_protocol.nearness,
        validation="val",
    )
    assert [fold.fold for fold in found.folds] == [0, 1, 2]
    assert found.figures["accuracy"].mean > 0.8  # rows of a class are neighbours


def test_pairs_need_statistics_of_norm_layers(people, tmp_path):
    config = small_config(people / "held", tmp_path, task={"kind": "verification"}, meta={"steps": 1, "batch": 1})
    work_here(dump(config), str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"--pairs: running\..* start from a run that keeps norm statistics"):
        pair_protocol.evaluate_pairs(checkpoint.best(tmp_path / "run"))


def packed_with(lines: list[str], images: Path, place: Path, **options) -> Index:
    place.mkdir()
    (place / "pairs.csv").write_text("\n".join(lines))
    options = {"layout": "identities", "size": 16, "pairs": place / "pairs.csv", "rule": "train=1", **options}
    return prepare.pack(str(images), place / "data", **options)


def test_what_pairs_cannot_say_is_told(people, glyphs_root, tmp_path):
    lines, images = (people / "pairs.csv").read_text().splitlines(), glyphs_root.parent / "images"
    same = packed_with([line for line in lines if not line.endswith(",0")], images, tmp_path / "same")
    alone = packed_with([line for line in lines if line[0] in "f0"], images, tmp_path / "alone", fold=0)
    for index, said in ((same, "have none of different persons"), (alone, "beside fold 0 there are no pairs of other")):
        with pytest.raises(InputError, match=said):
            pair_protocol.judge(index, lambda rows: torch.rand(len(rows), 2), pair_protocol.cosine, validation="val")


def test_training_data_that_are_gone_cannot_say_who_is_in_them(people, run, tmp_path):
    path = checkpoint.best(run)
    with pytest.MonkeyPatch.context() as patch:
        known = Index.without_shards

        def gone(root):
            if str(root).endswith("held"):
                raise InputError(f"{root}: no index here")
            return known(root)

        patch.setattr(Index, "without_shards", gone)
        with pytest.raises(
            InputError,
            match="held, on which small was trained, cannot be read, and nobody can say which classes it knows",
        ):
            pair_protocol.evaluate_pairs(path, data=people / "all")


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Calls the command line in this process and in `tmp_path`; what it said, and its code."""

    def call(*args: object) -> tuple[str, int]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["metashard", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return said.out + said.err, int(ended.value.code or 0)

    return call


def test_from_the_command_line(people, run, glyphs_root, tmp_path, here):
    """Packed, verified, judged; kept in the run's folder with a picture and its metrics."""
    images, lines = glyphs_root.parent / "images", people / "pairs.csv"
    said, code = here("pack", images, "data", "--layout", "identities", "--pairs", lines, "--fold", 2, "--size", 16)
    assert code == 0 and "test 17" in said, said
    assert here("verify", "data")[0].startswith("data: no fault")
    said, code = here("evaluate", run, "--pairs", "--mirror")
    assert (
        code == 0 and "pairs by cosine, features of an image and its mirror image; thresholds from persons of" in said
    )
    assert "tar_at_far_1e-2" in said and "fold 0: " in said
    assert (run / "pictures" / "roc-pairs-mirror.png").read_bytes().startswith(b"\x89PNG")
    (kept,) = (run / "evaluations").glob("pairs-mirror-*.json")
    told = json.loads(kept.read_text())
    assert told["accuracy"].keys() == {"mean", "interval"} and told["folds"][0]["fold"] == 0 and told["pairs"] > 50
    step = told["step"]
    assert history(run).series["evaluate/pairs-mirror/accuracy"] == {step: told["accuracy"]["mean"]}
    said, code = here("evaluate", run, "--pairs", "--json")
    assert code == 0 and json.loads(said)["score"] == "cosine"
    for wrong, why in (
        (("--mirror",), "--mirror is for --pairs"),
        (("--pairs", "--ways", 5), "--pairs judges one run"),
        ((run, "--pairs"), "--pairs judges one run"),
        (("--pairs", "--data", glyphs_root), "holds no pairs; pack it with"),
        (("--pairs", "--data", "data"), "is in the split 'train' of"),
    ):
        said, code = here("evaluate", run, *wrong)
        assert code == 2 and why in said


def real(name: str) -> Path:
    place = REAL / name
    if not place.is_dir():
        pytest.skip(f"{name} is not on this machine")
    return place


def some_faces(place: Path) -> tuple[Path, Path]:
    """A zip of what every tenth pair of LFW's names, and these pairs."""
    head, *lines = (real("lfw_gray_crops_dev") / "pairs.csv").read_text().splitlines()
    named = {name for line in lines[::10] for name in line.split(",")[1:3]}
    with (
        zipfile.ZipFile(real("lfw_gray_crops_dev") / "images.zip") as faces,
        zipfile.ZipFile(place / "faces.zip", "w") as few,
    ):
        for name in faces.namelist():
            if name.rpartition("/")[2] in named:
                few.writestr(name, faces.read(name))
    (place / "pairs.csv").write_text("\n".join([head, *lines[::10]]))
    return place / "faces.zip", place / "pairs.csv"


def few_steps(name: str, root: Path, place: Path, **data) -> Path:
    """A run of a config of the repository that stops after three meta-steps."""
    path = Path(__file__).parents[2] / "configs" / "train" / "verification" / f"{name}.yaml"
    tree = yaml.safe_load(path.read_text())
    ways = {"ways": 12} if name == "lfw" else {}
    tree["data"] |= {"root": str(root), **({"size": 32} if name == "lfw" else {}), **ways, **data}
    tree["meta"] |= {"steps": 3}
    tree["evaluate"] |= {"episodes": 2, **ways}
    tree["validation"] |= {"every": 3, "episodes": 2}
    (place / "run.yaml").write_text(yaml.safe_dump(tree))
    config = load(place / "run.yaml", [f"runs={place / 'runs'}", "workers.count=1", "engine.mode=loop"])
    return train.fit(config).folder


def test_lfw_as_the_config_says(tmp_path, untold):
    images, lines = some_faces(tmp_path)
    index = prepare.pack(
        str(images), tmp_path / "data", layout="identities", size=64, pairs=lines, fold=4, rule="train=0.8,val=0.2"
    )
    assert len(pairs_of(index).same) == 280
    found = pair_protocol.evaluate_pairs(checkpoint.best(few_steps("lfw", tmp_path / "data", tmp_path)), mirror=True)
    assert found.judged.folds[0].fold == 4 and 0.3 < found.judged.figures["accuracy"].mean <= 1


def test_orl_as_the_config_says(tmp_path, untold):
    (tmp_path / "splits").mkdir()
    for split, numbers in (("train", range(1, 21)), ("test", range(21, 41))):
        (tmp_path / "splits" / f"{split}.txt").write_text("".join(f"s{number}\n" for number in numbers))
    faces = str(real("orl_faces"))
    index = prepare.pack(faces, tmp_path / "data", layout="identities", size=64, splits=tmp_path / "splits")
    assert (len(index), len(index.class_names)) == (400, 40) and index.counts.tolist() == [10] * 40
    (tmp_path / "encoder").mkdir()
    encoder = checkpoint.best(few_steps("lfw", tmp_path / "data", tmp_path / "encoder", validation="train"))
    embed(encoder, tmp_path / "features", mirror=True)
    run = few_steps("orl", tmp_path / "features", tmp_path)
    with pytest.raises(InputError, match=r"learner.kind = wccn has more than an encoder"):
        pair_protocol.evaluate_pairs(checkpoint.best(run))
    told = json.loads((run / "result.json").read_text())["test"]
    assert (told["ways"], told["shots"]) == (20, 1) and told["inductive"]["accuracy"]["mean"] > 0.5
