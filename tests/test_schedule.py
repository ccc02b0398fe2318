"""`data.schedule` in a run: training alone follows it, a resume is exact, features stand in for images, misfits are refused."""

import json

import pytest
import torch
from gloo import on_ranks, work_here
from small import small_config
from test_resume import cut_off_after, final, same_bits

from pipeline import build, build_schedule, checkpoint, compare
from pipeline.build_mixture import fingerprints
from pipeline.config import dump, load, parse
from pipeline.data.index import Index
from pipeline.data.sampler import UNIFORM
from pipeline.embed import embed
from pipeline.errors import InputError

PROTOTYPES = {"kind": "prototype"}


def config(root, place, schedule, **sections):
    data = {"schedule": schedule, **sections.pop("data", {})}
    return small_config(root, place, data=data, learner=PROTOTYPES, checkpoint={"every": 2, "keep": 9}, **sections)


def drawn(config, root, split="train") -> list[tuple[int, ...]]:
    sampler = build.sampler(config, Index.open(root), split)
    return [sampler.draw(step, number).classes for step in range(3) for number in range(3)]


@pytest.fixture(scope="module")
def features(tmp_path_factory, glyphs_root) -> Index:
    place = tmp_path_factory.mktemp("embedded")
    made = small_config(glyphs_root, place, learner=PROTOTYPES, meta={"steps": 2, "batch": 2})
    work_here(dump(made), str(place / "run"))
    return embed(checkpoint.best(place / "run"), place / "out")


@pytest.mark.parametrize("kind", ["difficulty", "diversity"])
def test_training_follows_the_schedule_and_what_is_measured_does_not(glyphs_root, tmp_path, kind):
    plain = config(glyphs_root, tmp_path, {"kind": "uniform"})
    scheduled = config(glyphs_root, tmp_path, {"kind": kind, "share": 1.0})
    assert build.sampler(scheduled, Index.open(glyphs_root), "train").schedule.told()["kind"] == kind
    assert drawn(scheduled, glyphs_root) != drawn(plain, glyphs_root)
    for split in ("val", "test"):
        assert build.sampler(scheduled, Index.open(glyphs_root), split).schedule is UNIFORM
        assert drawn(scheduled, glyphs_root, split) == drawn(plain, glyphs_root, split)
    assert drawn(plain, glyphs_root) == drawn(small_config(glyphs_root, tmp_path), glyphs_root)


@pytest.mark.parametrize("kind", ["difficulty", "diversity"])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(glyphs_root, tmp_path, kind):
    made = config(glyphs_root, tmp_path, {"kind": kind})
    work_here(dump(made), str(tmp_path / "unbroken"))
    cut_off_after(tmp_path / "unbroken", 2, tmp_path / "broken")
    # Nothing that was worked out before is at hand any more.
    build_schedule._table.cache_clear()
    work_here(dump(made), str(tmp_path / "broken"))
    assert same_bits(final(tmp_path / "unbroken"), final(tmp_path / "broken"))


def classes_on_rank(tree, root) -> list[tuple[int, ...]]:
    # Another number of threads adds in another order.
    torch.set_num_threads(1 + torch.distributed.get_rank())
    return drawn(parse(tree, "test"), root)


def test_all_ranks_draw_the_same_classes(glyphs_root, tmp_path):
    tree = dump(config(glyphs_root, tmp_path, {"kind": "difficulty", "share": 1.0}, data={"rotations": True}))
    one, two = on_ranks(2, classes_on_rank, tree, str(glyphs_root))
    assert one == two == drawn(parse(tree, "test"), glyphs_root)


def test_classes_are_compared_by_features_of_the_same_samples(glyphs_root, features, tmp_path):
    own = {"kind": "difficulty", "share": 1.0, "reach": 0.0}
    by_pixels, by_features = (
        config(glyphs_root, tmp_path, schedule) for schedule in (own, {**own, "by": str(features.root)})
    )
    assert drawn(by_pixels, glyphs_root) != drawn(by_features, glyphs_root)
    # The same neighbours as where the features themselves are trained on.
    on = small_config(features.root, tmp_path, model={"kind": "features"}, data={"schedule": own})
    assert drawn(on, features.root) == drawn(by_features, glyphs_root)
    index = Index.open(glyphs_root)
    assert fingerprints(by_features, index)["data.schedule.fingerprint"] == features.fingerprint
    assert "data.schedule.fingerprint" not in fingerprints(by_pixels, index)


def test_features_of_other_images_are_refused(glyphs_root, features, tmp_path):
    def refused(words, schedule, **sections):
        with pytest.raises(InputError, match=words):
            build.drawn(config(glyphs_root, tmp_path, schedule, **sections), Index.open(glyphs_root))

    by = {"kind": "diversity", "by": str(features.root)}
    refused("holds no features of .*; make them with metashard embed", {**by, "by": str(glyphs_root)})
    refused("and data.rotations has more; leave one of them out", by, data={"rotations": True})
    refused("no index here", {**by, "by": str(tmp_path / "nothing")})
    supervised = small_config(
        glyphs_root, tmp_path, learner={"kind": "supervised"}, data={"schedule": {"kind": "difficulty"}}
    )
    with pytest.raises(InputError, match="data.schedule.kind = difficulty is about classes of episodes"):
        build.drawn(supervised, Index.open(glyphs_root))


def test_a_relative_path_is_fixed_when_the_file_is_loaded(tmp_path, glyphs_root, monkeypatch):
    made = dump(config(glyphs_root, tmp_path, {"kind": "difficulty", "by": "features"}))
    (tmp_path / "run.yaml").write_text(json.dumps(made))
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path / "run.yaml").data.schedule.by == tmp_path / "features"


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"kind": "uniform", "share": 0.5}, "data.schedule.share: no such key where kind is uniform"),
        ({"kind": "difficulty", "share": 0}, "data.schedule.share = 0"),
        ({"kind": "diversity", "reach": 1.5}, "data.schedule.reach = 1.5"),
        ({"kind": "easy"}, "data.schedule.kind = 'easy': input should be one of"),
    ],
)
def test_what_no_schedule_has_is_named(glyphs_root, tmp_path, schedule, words):
    with pytest.raises(InputError, match=words):
        config(glyphs_root, tmp_path, schedule)


def test_training_episodes_of_another_schedule_are_not_compared(glyphs_root, tmp_path):
    names = {"plain": {"kind": "uniform"}, "hard": {"kind": "difficulty"}}
    for name, schedule in names.items():
        work_here(dump(config(glyphs_root, tmp_path, schedule, meta={"steps": 2})), str(tmp_path / name))
    rivals = compare.contenders([tmp_path / name for name in names], tmp_path, {})
    asked = {"episodes": 2, "modes": compare.modes_of("inductive"), "workers": 1}
    compare.compare(rivals, split="test", **asked)
    with pytest.raises(InputError, match="data.schedule.kind: None -> difficulty"):
        compare.compare(rivals, split="train", **asked)
