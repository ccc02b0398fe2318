"""Training on several data sets: which episode comes from where, what is measured on each, and what cannot be mixed."""

import json
import shutil

import numpy as np
import pytest
import torch
from gloo import work_here
from small import small_config

from pipeline import build, checkpoint, evaluate, prepare, restore, train
from pipeline.build_mixture import fingerprints, indexes, names
from pipeline.config import dump, load
from pipeline.data.images import encode_png
from pipeline.data.index import Index
from pipeline.data.mixture import InTurns, Mixture
from pipeline.data.sampler import Sampler
from pipeline.data.shapes import Shape, Shaping, Varied
from pipeline.errors import InputError
from pipeline.report import print_scores


def noise_set(root, name: str, *, size: int = 16, channels: int = 1, prefix: str = "n") -> Index:
    """24 classes of 8 noisy images, split in three."""
    generator = np.random.default_rng(0)
    for label in range(24):
        folder = root / name / f"{prefix}{label:02d}"
        folder.mkdir(parents=True)
        for number in range(8):
            image = (generator.integers(0, 100, (size, size, channels)) + 6 * label).astype(np.uint8)
            (folder / f"{number}.png").write_bytes(encode_png(image))
    lists = root / f"{name}-splits"
    lists.mkdir()
    for split, part in (("train", range(12)), ("val", range(12, 18)), ("test", range(18, 24))):
        (lists / f"{split}.txt").write_text("".join(f"{prefix}{label:02d}\n" for label in part))
    return prepare.pack(
        str(root / name), root / f"{name}-packed", layout="folder", size=size, channels=channels, splits=lists
    )


SHAPE = Shape(3, 1, 2)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> Index:
    return noise_set(tmp_path_factory.mktemp("noisy"), "noisy")


def mixed(glyphs_root, place, *others: Index, weights=(1.0,), **sections):
    parts = [{"root": str(other.root), "weight": weight} for other, weight in zip(others, weights, strict=True)]
    data = {"mixture": parts, **sections.pop("data", {})}
    return small_config(glyphs_root, place, **{"learner": {"kind": "prototype"}, "data": data, **sections})


def samplers(*found: Index, shape: Shaping = SHAPE) -> list[Sampler]:
    return [Sampler(index, "train", shape, seed=5, turns=False) for index in found]


def test_which_data_set_an_episode_comes_from_is_a_pure_function_in_proportion_to_weights(glyphs_root, noisy):
    glyphs = Index.open(glyphs_root)
    first = Mixture(samplers(glyphs, noisy), [3.0, 1.0], seed=5)
    again = Mixture(samplers(glyphs, noisy), [6.0, 2.0], seed=5)
    keys = [(step, number) for step in range(200) for number in range(4)]
    parts = [first.part(*key) for key in keys]
    assert parts == [again.part(*key) for key in reversed(keys)][::-1]
    # 800 · ¼ = 200, standard deviation 12: six of them.
    assert abs(sum(parts) - 200) < 74
    assert parts != [Mixture(samplers(glyphs, noisy), [3.0, 1.0], seed=6).part(*key) for key in keys]
    assert parts[:12] == GOLDEN_PARTS


def test_a_mixture_draws_the_episodes_of_its_data_sets(glyphs_root, noisy):
    own = samplers(Index.open(glyphs_root), noisy)
    mixture = Mixture(own, [1.0, 1.0], seed=5)
    for number in range(8):
        part, draw = mixture.draw(2, number)
        expected = own[part].draw(2, number)
        assert draw.classes == expected.classes and np.array_equal(draw.rows, expected.rows)
    assert mixture.costs(2, 8) == [9] * 8
    varied = Mixture(samplers(Index.open(glyphs_root), noisy, shape=Varied(6, 5, 2, 2, 20)), [1.0, 1.0], seed=5)
    assert varied.costs(1, 6) == [len(varied.draw(1, number).draw.rows) for number in range(6)]


def test_validation_takes_the_data_sets_in_turns(glyphs_root, noisy):
    own = samplers(Index.open(glyphs_root), noisy)
    turns = InTurns(own)
    assert [turns.draw(0, number).part for number in range(4)] == [0, 1, 0, 1]
    assert np.array_equal(turns.draw(0, 3).draw.rows, own[1].draw(0, 1).rows)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_ranks_reads_the_same_mixed_meta_batch(glyphs_root, noisy, tmp_path, world):
    config, index = mixed(glyphs_root, tmp_path, noisy, meta={"batch": 5}), Index.open(glyphs_root)
    found = {}
    for rank in range(world):
        with build.loader(config, index, rank=rank, world=world) as loading:
            share = loading.share(1, last=2)
            found |= dict(zip(share.numbers, share.episodes, strict=True))
    with build.loader(config, index, rank=0, world=1) as loading:
        for number, episode in enumerate(loading.share(1, last=2).episodes):
            assert (
                torch.equal(found[number].support.inputs, episode.support.inputs) and found[number].key == episode.key
            )
    assert sorted(found) == list(range(5))


def test_a_run_tells_what_it_does_on_each_data_set(glyphs_root, noisy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train.tracking.Sender, "start", lambda self: None)
    monkeypatch.setattr(train.tracking.Sender, "stop", lambda self, limit: True)
    config = mixed(glyphs_root, tmp_path / "runs", noisy)
    done = train.fit(config)
    own = Index.open(glyphs_root).name
    assert list(done.result["data"]) == [own, "noisy"]
    assert done.result["data"][own] == done.result["test"]
    assert f"on {own}: accuracy " in done.text and "on noisy: accuracy " in done.text
    told = (done.folder / "spool.jsonl").read_text()
    assert "test/noisy/inductive/accuracy_interval" in told and noisy.fingerprint in told
    found = evaluate.by_data(restore.subject_of(checkpoint.best(done.folder)), split="test", episodes=4, workers=1)
    assert {name: one.as_json() for name, one in found.items()} == done.result["data"]
    kept = evaluate.keep(found["noisy"], checkpoint.best(done.folder), "noisy")
    assert kept is not None and kept.name.startswith("noisy-test-")
    print_scores({name: one.as_json() for name, one in found.items()})
    assert "noisy" in capsys.readouterr().out


def test_a_mixed_run_goes_on_bit_for_bit(glyphs_root, noisy, tmp_path):
    config = mixed(glyphs_root, tmp_path, noisy, checkpoint={"every": 2, "keep": 9})
    work_here(dump(config), str(tmp_path / "unbroken"))
    shutil.copytree(tmp_path / "unbroken", tmp_path / "broken")
    for path in checkpoint.all_in(tmp_path / "broken" / "checkpoints")[2:]:
        shutil.rmtree(path)
    work_here(dump(config), str(tmp_path / "broken"))
    ends = [checkpoint.all_in(tmp_path / name / "checkpoints")[-1] for name in ("unbroken", "broken")]
    assert [end.name for end in ends] == ["step-00000006"] * 2
    first, again = (checkpoint.load(end).learner for end in ends)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_relative_folders_are_fixed_and_weights_checked(glyphs_root, noisy, tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    tree = json.loads(json.dumps(dump(mixed(glyphs_root, tmp_path, noisy))))
    tree["data"]["mixture"][0]["root"] = "there/noisy"
    path.write_text(json.dumps(tree))
    assert load(path).data.mixture[0].root.is_absolute()
    with pytest.raises(InputError, match=r"data.mixture.0.weight = 0: "):
        load(path, ["data.mixture=[{root: x, weight: 0}]"])
    with pytest.raises(InputError, match=r"data.mixture.0.wieght: no such key"):
        load(path, ["data.mixture=[{root: x, wieght: 1}]"])


def test_data_sets_of_other_images_are_refused_by_name(glyphs_root, tmp_path):
    index = Index.open(glyphs_root)
    for number, (size, channels, way_out) in enumerate([(20, 1, "or set data.size"), (16, 3, "--channels")]):
        other = noise_set(tmp_path, f"other{number}", size=size, channels=channels)
        with pytest.raises(InputError, match=rf"{glyphs_root} and {other.root} hold \(16, 16, 1\) and .*{way_out}"):
            build.drawn(mixed(glyphs_root, tmp_path, other), index)
        sized = mixed(glyphs_root, tmp_path, other, data={"size": 16})
        if channels == 1:
            assert isinstance(build.drawn(sized, index), Mixture)


def test_one_data_sets_test_classes_are_not_trained_on_in_another(noisy, tmp_path):
    place = tmp_path / "again"
    lists = place / "splits"
    lists.mkdir(parents=True)
    for split, part in (("train", range(12, 24)), ("val", range(6)), ("test", range(6, 12))):
        (lists / f"{split}.txt").write_text("".join(f"n{label:02d}\n" for label in part))
    source = noisy.root.parent / "noisy"
    other = prepare.pack(str(source), place / "packed", layout="folder", size=16, splits=lists)
    config = mixed(noisy.root, tmp_path, other)
    with pytest.raises(
        InputError, match=r"are the same data set, and class 'n06' of the split 'test' .*; split both alike"
    ):
        build.drawn(config, noisy)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"data": {"lanes": 2}, "meta": {"batch": 4}},
            "data.lanes = 2: lanes are shares of the shards of one data set",
        ),
        ({"learner": {"kind": "supervised"}}, "learner.kind = supervised learns from a stream of one data set"),
        ({"validation": {"aside": True}}, "validation.aside = true measures one data set"),
    ],
)
def test_what_a_mixture_has_not_is_refused(glyphs_root, noisy, tmp_path, sections, said):
    with pytest.raises(InputError, match=said):
        build.drawn(mixed(glyphs_root, tmp_path, noisy, **sections), Index.open(glyphs_root))


def test_flipped_characters_are_refused_wherever_they_are(glyphs_root, noisy, tmp_path, monkeypatch):
    characters = Index.open(glyphs_root)
    config = mixed(noisy.root, tmp_path, characters, data={"augment": {"flip": True}})
    assert build.training_place(config, noisy, torch.device("cpu"))
    monkeypatch.setattr(build, "CHARACTERS", (characters.name,))
    with pytest.raises(InputError, match=f"data.augment.flip = true: {characters.name} are characters"):
        build.training_place(config, noisy, torch.device("cpu"))


def test_data_sets_are_called_by_their_names_and_where_two_are_alike_by_their_folders(glyphs_root, noisy):
    one, two = Index.open(glyphs_root), Index.open(noisy.root)
    one.name = "my birds/2"
    assert names([one, two]) == ["my_birds_2", "noisy"]
    one.name = two.name
    assert names([one, two]) == ["noisy.data", "noisy.noisy-packed"]


def test_the_hash_of_every_data_set_is_told(glyphs_root, noisy, tmp_path):
    index = Index.open(glyphs_root)
    config = mixed(glyphs_root, tmp_path, noisy)
    found = fingerprints(config, index)
    assert found == {"data.fingerprint": index.fingerprint, "data.mixture.0.fingerprint": noisy.fingerprint}
    assert [part.root for part in indexes(config, index)] == [index.root, noisy.root]
    with pytest.raises(InputError, match="two data sets are called"):
        indexes(mixed(glyphs_root, tmp_path, index), index)


GOLDEN_PARTS = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1]
