"""A teacher out of another run: it speaks of the same things or one clear line says of what it does not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from gloo import work_here
from small import small_config
from tars import picture, write_tar

from pipeline import build, checkpoint, evaluate, prepare, restore
from pipeline.config import dump
from pipeline.data.images import encode_png
from pipeline.data.index import Index
from pipeline.errors import InputError
from pipeline.learners.distil import DistilledLearner
from pipeline.spool import history
from pipeline.teacher import taught
from pipeline.train import check

SUPERVISED = {"learner": {"kind": "supervised", "samples": 8}, "meta": {"steps": 2, "batch": 2}}


@pytest.fixture(scope="module")
def index(glyphs_root) -> Index:
    return Index.open(glyphs_root)


def run_of(place: Path, root: Path, **sections) -> Path:
    work_here(dump(small_config(root, place, **sections)), str(place / "run"))
    return place / "run"


@pytest.fixture(scope="module")
def supervised(tmp_path_factory, glyphs_root) -> Path:
    return run_of(tmp_path_factory.mktemp("supervised"), glyphs_root, **SUPERVISED)


@pytest.fixture(scope="module")
def maml(tmp_path_factory, glyphs_root) -> Path:
    return run_of(tmp_path_factory.mktemp("maml"), glyphs_root, meta={"steps": 1, "batch": 2}, model={"width": 8})


@pytest.fixture
def config(glyphs_root, tmp_path):
    def make(teacher: Path, **sections):
        return small_config(glyphs_root, tmp_path, **{"teacher": {"start": str(teacher)}, **sections})

    return make


def under(config, index) -> DistilledLearner:
    made = taught(config, index, build.learner(config, index))
    assert isinstance(made, DistilledLearner)
    return made


def test_the_teacher_is_what_its_checkpoint_says(config, index, supervised, maml):
    """Another backbone, another learner, another precision."""
    made = under(config(maml, meta={"precision": "float64"}), index)
    saved = checkpoint.load(checkpoint.best(maml)).learner
    assert all(torch.equal(value, saved[name].double()) for name, value in made.teacher.state_dict().items())
    assert all(not p.requires_grad for p in made.teacher.parameters())
    task = made.task
    assert (task.weight, task.temperature) == (0.5, 4.0)
    # A supervised learner finds centroids in any episode, and may teach any other learner.
    under(config(supervised, data={"ways": 4}, learner={"kind": "prototype"}), index)
    under(config(supervised, **SUPERVISED, model={"width": 8}), index)


def test_without_a_teacher_a_learner_stays_itself(glyphs_root, tmp_path, index):
    config = small_config(glyphs_root, tmp_path)
    learner = build.learner(config, index)
    assert taught(config, index, learner) is learner


def other_images(root: Path, size: int, channels: int, names: str = "abcdefghi") -> Path:
    """A data set of three splits of three classes each."""
    members = []
    for label in names:
        for number in range(4):
            members.append((f"{label}{number}.json", json.dumps({"class": label}).encode()))
            members.append((f"{label}{number}.png", encode_png(picture(number, size, channels))))
    write_tar(root / "x.tar", members)
    (root / "splits").mkdir()
    for at, split in enumerate(("train", "val", "test")):
        (root / "splits" / f"{split}.txt").write_text("".join(f"{label}\n" for label in names[3 * at : 3 * at + 3]))
    prepare.index([root], out=None, splits=root / "splits")
    return root


@pytest.mark.parametrize(
    ("size", "channels", "told"),
    [
        (20, 1, "its images: 20 × 20 pixels of 1 channels, the student's: 16 × 16 pixels of 1 channels"),
        (16, 3, "its images: 16 × 16 pixels of 3 channels, the student's: 16 × 16 pixels of 1 channels"),
    ],
)
def test_a_teacher_of_other_images_is_refused(config, index, tmp_path, size, channels, told):
    run = run_of(tmp_path / "t", other_images(tmp_path / "data", size, channels), meta={"steps": 1, "batch": 1})
    with pytest.raises(InputError) as caught:
        under(config(run), index)
    assert told in str(caught.value) and "name a teacher of the same, or change the config" in str(caught.value)
    under(config(run, data={"root": str(tmp_path / "data")}), Index.open(tmp_path / "data"))


def test_a_teacher_that_saw_inverted_images_is_refused(config, index, maml):
    with pytest.raises(InputError, match="its images: 16 × 16 pixels of 1 channels, the student's: .*, inverted"):
        under(config(maml, data={"invert": True}), index)


def test_a_teacher_with_a_head_for_other_ways_is_refused(config, index, maml):
    with pytest.raises(InputError, match="its episodes: 3-way, the student's: 4-way"):
        under(config(maml, data={"ways": 4}), index)


def test_a_teacher_of_another_task_is_refused(config, index, maml, tmp_path):
    shutil.copytree(checkpoint.best(maml), tmp_path / "c")
    asked = config(tmp_path / "c")
    other = asked.model_copy(update={"task": asked.task.model_copy(update={"kind": "other"})})
    with pytest.raises(InputError, match="its task: classification, the student's: other"):
        under(other, index)


def test_a_supervised_teacher_of_other_classes_is_refused(config, index, supervised, tmp_path):
    with pytest.raises(InputError, match="its data.rotations: False, the student's: True"):
        under(config(supervised, **SUPERVISED, data={"rotations": True}), index)
    other = run_of(tmp_path / "t", other_images(tmp_path / "data", 16, 1), **SUPERVISED)
    with pytest.raises(InputError, match="its base classes are not the student's: only one of them has 'a'"):
        under(config(other, **SUPERVISED), index)


def test_a_supervised_student_needs_a_supervised_teacher(config, index, maml):
    with pytest.raises(
        InputError, match="which only a supervised teacher knows; name a run with learner.kind = superv"
    ):
        under(config(maml, **SUPERVISED), index)


def test_a_damaged_teacher_is_named_before_anything_starts(config, maml, tmp_path):
    shutil.copytree(checkpoint.best(maml), tmp_path / "c")
    (tmp_path / "c" / "COMPLETE").unlink()
    with pytest.raises(InputError, match="is not a complete checkpoint"):
        check(config(tmp_path / "c"))
    (tmp_path / "c" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"teacher.start = .*: neither a run's folder nor a checkpoint's"):
        check(config(tmp_path / "c"))


def test_a_teacher_whose_data_are_gone_and_cannot_be_built_is_named(config, index, tmp_path, glyphs_root):
    root = other_images(tmp_path / "data", 16, 1)
    run = run_of(tmp_path / "t", root, **SUPERVISED)
    shutil.rmtree(root)
    with pytest.raises(InputError, match=f"holds no weights of its own learner: .*; bring back {root}"):
        under(config(run), index)


def test_nothing_is_taught_in_no_steps(config, index, maml):
    with pytest.raises(InputError, match="with meta.steps = 0 nothing is taught; leave the teacher out or train"):
        under(config(maml, meta={"steps": 0}), index)


@pytest.mark.parametrize("asked", [{}, SUPERVISED], ids=["maml", "supervised"])
def test_a_student_is_trained_saved_and_evaluated_without_its_teacher(config, tmp_path, supervised, maml, asked):
    """The checkpoint holds the student alone; the weight of the teacher shows in the loss; a resume is exact."""
    shutil.copytree(supervised if asked else maml, tmp_path / "teacher")
    made = config(
        tmp_path / "teacher", **{"meta": {"steps": 2, "batch": 2}, **asked}, checkpoint={"every": 1, "keep": 9}
    )
    work_here(dump(made), str(tmp_path / "run"))
    steps = checkpoint.all_in(tmp_path / "run" / "checkpoints")
    last = dict(checkpoint.load(steps[-1]).learner)
    assert last.keys() == build.learner(made, Index.open(made.data.root)).state_dict().keys()
    alone = made.model_copy(update={"teacher": None})
    work_here(dump(alone), str(tmp_path / "alone"))
    losses = [history(tmp_path / name).series["train/loss"][1] for name in ("run", "alone")]
    assert losses[0] != losses[1]
    shutil.rmtree(steps[-1])
    work_here(dump(made), str(tmp_path / "run"))
    again = checkpoint.load(steps[-1]).learner
    assert all(torch.equal(again[name], value) for name, value in last.items())
    shutil.rmtree(tmp_path / "teacher")
    subject = restore.subject_of(checkpoint.best(tmp_path / "run"))
    assert evaluate.evaluate(subject, split="test", episodes=2, workers=1).scores
