"""Taught classes outlive a restart; a state that is damaged, old, another's or in use is told by its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rooms import TASKS, images, learner_of, lesson, model_of, picture, room_of

from pipeline.errors import InputError
from pipeline.serving import store
from pipeline.serving.lessons import lesson as lesson_of
from pipeline.serving.limits import Limits
from pipeline.serving.opening import opened, state_of
from pipeline.serving.room import Room
from pipeline.serving.store import Store
from pipeline.serving.uploads import File, Form


def teach(room: Room, task: str, name: str, numbers) -> None:
    sent = lesson(task, name, numbers)
    files: dict[str, list[File]] = {}
    for field, (called, data) in sent["files"]:
        files.setdefault(field, []).append(File(called, data))
    room.teach(name, lesson_of(name, Form(sent["data"], files), room.learner))


@pytest.mark.parametrize("task", TASKS)
def test_a_restart_loses_nothing(task, glyphs_root, scenes_root, tmp_path):
    root = scenes_root if task in ("segmentation", "detection") else glyphs_root
    learner = learner_of(task, root, tmp_path / "runs")
    room = room_of(learner, tmp_path / "state")
    for name, numbers in (("a", (0, 1)), ("b", (2, 3)), ("c", (4,)), ("a", (5,))):
        teach(room, task, name, numbers)
    room.forget("b")
    room.close()
    again = room_of(learner, tmp_path / "state")
    before, after = room.snapshot, again.snapshot
    assert after.support is not None and before.support is not None
    assert (after.version, after.counts, after.ids) == (before.version, before.counts, before.ids)
    assert dict(after.counts) == {"a": 3, "c": 1} and after.version == 5
    assert after.support.classes == before.support.classes and after.support.names == before.support.names
    assert torch.equal(after.support.inputs, before.support.inputs)
    assert torch.equal(after.support.targets, before.support.targets)
    inputs = learner.inputs.tensor([learner.inputs.sample([picture(9)], "x")])
    assert torch.equal(after.answering.scores(inputs), before.answering.scores(inputs))
    again.close()


@pytest.fixture
def learner(glyphs_root, tmp_path):
    return learner_of("classification", glyphs_root, tmp_path / "runs")


@pytest.fixture
def state(learner, tmp_path) -> Path:
    """Of two classes."""
    room = room_of(learner, tmp_path / "state")
    teach(room, "classification", "a", (0, 1))
    teach(room, "classification", "b", (2, 3))
    room.close()
    return tmp_path / "state"


@pytest.mark.parametrize("writes", [0, 1])
def test_a_crash_leaves_the_state_before(learner, state, monkeypatch, writes):
    """Whether it comes before the samples are written or between them and the file that counts."""
    room, own, count = room_of(learner, state), store._write, 0

    def dying(path: Path, content: bytes) -> None:
        nonlocal count
        count += 1
        if count > writes:
            path.with_name(f".{path.name}.part").write_bytes(content[:10])
            raise OSError(28, "No space left on device")
        own(path, content)

    monkeypatch.setattr(store, "_write", dying)
    with pytest.raises(InputError, match="No space left"):
        teach(room, "classification", "c", (4, 5))
    assert dict(room.snapshot.counts) == {"a": 2, "b": 2}
    room.close()
    monkeypatch.setattr(store, "_write", own)
    again = room_of(learner, state)
    assert dict(again.snapshot.counts) == {"a": 2, "b": 2}
    teach(again, "classification", "c", (4, 5))
    assert sorted(path.suffix for path in state.iterdir() if not path.name.startswith(".")) == [
        "",
        ".json",
        *[".safetensors"] * 3,
    ]
    again.close()


def manifest_with(state: Path, **values) -> str:
    said = json.loads((state / store.FILE).read_text())
    (state / store.FILE).write_text(json.dumps({**said, **values}))
    return store.FILE


def flipped(state: Path) -> str:
    path = next(state.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path.name


def missing(state: Path) -> str:
    path = next(state.glob("*.safetensors"))
    path.unlink()
    return path.name


def nonsense(state: Path) -> str:
    (state / store.FILE).write_text("[]")
    return store.FILE


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (flipped, "sha256 differs"),
        (missing, "holds no taught samples"),
        (nonsense, "says nothing of taught classes"),
        (lambda state: manifest_with(state, version=77), "sha256 differs"),
        (lambda state: manifest_with(state, groups=["../../etc/passwd"]), "sha256 differs"),
        (lambda state: manifest_with(state, format=99), "format 99, this version reads 1"),
    ],
)
def test_what_was_altered_is_named(learner, state, spoil, told):
    name = spoil(state)
    with pytest.raises(InputError) as error:
        room_of(learner, state)
    assert told in str(error.value) and name in str(error.value) and "--state" in str(error.value)


def test_a_state_is_of_one_model_and_one_server(learner, state, glyphs_root, tmp_path):
    room = room_of(learner, state)
    with pytest.raises(InputError, match="another metashard serve has it"):
        Store(state, "origin")
    room.close()
    other = Store(state, "another")
    with pytest.raises(InputError, match="taught to another model"):
        other.read()
    other.close()
    file = model_of(glyphs_root, tmp_path / "m")
    with pytest.raises(InputError, match="taught to another model"):
        opened(str(file), runs=tmp_path, state=state, limits=Limits())
    own = state_of(str(file), tmp_path)
    assert own.parent == file.parent
    first = opened(str(file), runs=tmp_path, state=own, limits=Limits())
    first.forget("a")
    first.close()
    again = opened(str(file), runs=tmp_path, state=own, limits=Limits())
    assert list(again.snapshot.counts) == ["b"]
    again.close()


def test_a_state_that_cannot_be_written_is_told(learner, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--state .*cannot be written"):
        room_of(learner, tmp_path / "file")


def test_an_upload_is_of_few_enough_pixels_together(learner, monkeypatch):
    monkeypatch.setattr("pipeline.serving.lessons.TOGETHER", 3 * 20 * 20)
    files = {"images": [File(name, data) for _, (name, data) in images(0, 1, 2, 3)]}
    with pytest.raises(Exception, match="pixels together"):
        lesson_of("a", Form({}, files), learner)
