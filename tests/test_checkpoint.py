"""Law 3's memory: what was saved comes back bit for bit, and what is not whole is never read."""

import json
import shutil
import threading

import pytest
import torch
from small import episode, network

from pipeline import checkpoint
from pipeline.checkpoint import FILES, FORMAT, Checkpoint, Writer, all_in, faults, latest, load, prune, restore, save
from pipeline.errors import InputError

LIMIT_S = 20
STATE = {
    "best": {"step": 2, "accuracy": 0.1 + 0.2, "name": None},
    "plan": {"mode": "vmap", "chunk": 4},
    "lists": [1, [2.5e-300, -0.0], {"a": True}],
    "worst": float("inf"),
}
CONFIG = {"name": "x", "meta": {"steps": 6, "optimizer": {"lr": 1e-3}}}


def new(kind=torch.optim.Adam, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        learner = network(downsample="max_pool").float()
    return learner, kind(learner.parameters(), **{"lr": 0.01, **options})


def train(learner, optimizer, steps) -> None:
    for step in steps:
        optimizer.zero_grad()
        batch = episode(step).to("cpu", torch.float32).query
        torch.nn.functional.cross_entropy(learner(batch.inputs), batch.targets).backward()
        optimizer.step()


def of(step, learner, optimizer) -> Checkpoint:
    return Checkpoint(step, learner.state_dict(), optimizer.state_dict(), STATE, CONFIG)


@pytest.fixture(scope="module")
def trained():
    learner, optimizer = new()
    train(learner, optimizer, range(2))
    return of(2, learner, optimizer)


@pytest.fixture
def folder(tmp_path, trained):
    for step in (2, 4, 6):
        save(tmp_path, trained._replace(step=step))
    return tmp_path


def same_bits(one, two) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and one.numpy().tobytes() == two.numpy().tobytes()


@pytest.mark.parametrize(("kind", "options"), [
    (torch.optim.Adam, {"weight_decay": 0.1}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.SGD, {}),
])  # fmt: skip
def test_what_was_saved_comes_back_bit_for_bit(tmp_path, kind, options):
    learner, optimizer = new(kind, **options)
    train(learner, optimizer, range(2))
    found = load(save(tmp_path, of(2, learner, optimizer)))
    assert found.step == 2 and found.state == STATE and found.config == CONFIG
    assert str(found.state["lists"][1]) == "[2.5e-300, -0.0]"
    assert found.learner.keys() == learner.state_dict().keys()
    assert all(same_bits(found.learner[name], value) for name, value in learner.state_dict().items())
    expected = optimizer.state_dict()
    assert found.optimizer["state"].keys() == expected["state"].keys()
    for number, values in expected["state"].items():
        for name, value in values.items():
            other = found.optimizer["state"][number][name]
            assert same_bits(other, value) if isinstance(value, torch.Tensor) else other == value
    as_json = json.loads(json.dumps(expected["param_groups"]))
    assert found.optimizer["param_groups"] == as_json


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_a_restored_run_goes_on_bit_for_bit(tmp_path, kind):
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    learner, optimizer = new(kind, **options)
    train(learner, optimizer, range(2))
    save(tmp_path, of(2, learner, optimizer))
    other, resumed = new(kind, seed=1, **{**options, "lr": 0.5})
    restore(latest(tmp_path), other, resumed)
    for a, b in ((learner, optimizer), (other, resumed)):
        train(a, b, range(2, 6))
    assert all(same_bits(a.detach(), b.detach()) for a, b in zip(learner.parameters(), other.parameters(), strict=True))


def test_restored_optimizer_state_lies_in_memory_as_it_did(trained, tmp_path):
    """Elementwise kernels may round otherwise over other strides."""
    learner, optimizer = new()
    train(learner, optimizer, range(2))
    other, resumed = new()
    restore(load(save(tmp_path, trained)), other, resumed)
    for one, two in zip(learner.parameters(), other.parameters(), strict=True):
        assert one.stride() == two.stride()
        for name in ("exp_avg", "exp_avg_sq"):
            assert optimizer.state[one][name].stride() == resumed.state[two][name].stride()


def test_an_unfinished_optimizer_has_no_state_to_lose(tmp_path):
    learner, optimizer = new()
    assert load(save(tmp_path, of(0, learner, optimizer))).optimizer["state"] == {}


def refused(path, *parts) -> None:
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert path.name in message and all(part in message for part in parts), message
    assert len(message.splitlines()) == 1


def test_without_complete_a_checkpoint_is_not_read(folder):
    path = folder / "step-00000006"
    (path / "COMPLETE").unlink()
    refused(path, "COMPLETE")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_flipped_byte_is_noticed(folder, name, where):
    path = folder / "step-00000006"
    content = bytearray((path / name).read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    (path / name).write_bytes(content)
    refused(path, name, "sha256 differs")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_file_cut_short_is_noticed(folder, name, share):
    path = folder / "step-00000006"
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: int(share * len(content))])
    refused(path, name, "sha256 differs")


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_noticed(folder, name):
    path = folder / "step-00000006"
    (path / name).unlink()
    refused(path, name)


def test_any_flipped_byte_of_the_manifest_is_noticed(folder):
    path = folder / "step-00000006"
    whole = (path / "manifest.json").read_bytes()
    for at in range(0, len(whole), 7):
        content = bytearray(whole)
        content[at] ^= 1
        (path / "manifest.json").write_bytes(content)
        refused(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"null", b"{}", b"\xff", b'{"format": 1}', b"[" * 5000,
                                     b'{"format": 1, "sha256": 3}'])  # fmt: skip
def test_a_manifest_that_is_none_is_named(folder, content):
    path = folder / "step-00000006"
    (path / "manifest.json").write_bytes(content)
    refused(path, "manifest.json")


def test_a_manifest_without_one_of_the_files_is_named(folder):
    path = folder / "step-00000006"
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]["state.json"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    refused(path, "manifest.json")


def test_another_format_is_named_with_its_number(folder):
    path = folder / "step-00000006"
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": FORMAT + 1}))
    refused(path, f"format {FORMAT + 1}", f"reads {FORMAT}")


def test_the_newest_is_read_and_nothing_is_told_when_all_is_well(folder):
    assert latest(folder).step == 6 and faults(folder) == []


def test_the_newest_whole_one_is_read_and_what_was_passed_over_is_told(folder):
    (folder / "step-00000006" / "state.json").write_text("{}")
    (folder / "step-00000004" / "COMPLETE").unlink()
    assert latest(folder).step == 2
    told = faults(folder)
    assert len(told) == 2 and "step-00000006: state.json" in told[0] and "step-00000004" in told[1]


def test_faults_of_older_checkpoints_are_of_no_interest(folder):
    (folder / "step-00000002" / "state.json").write_text("{}")
    assert latest(folder).step == 6 and faults(folder) == []


def test_without_a_whole_one_all_faults_are_told(folder):
    for path in all_in(folder):
        (path / "COMPLETE").unlink()
    with pytest.raises(InputError, match="no whole checkpoint.*step-00000006.*step-00000004.*step-00000002"):
        latest(folder)
    assert len(faults(folder)) == 3


def test_an_empty_or_absent_folder_holds_none(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="holds no whole checkpoint"):
            latest(folder)
        assert faults(folder) == []


@pytest.mark.parametrize("survives", range(6))
@pytest.mark.drill("killed between two files of a checkpoint")
def test_a_save_killed_in_the_middle_is_not_read(folder, trained, monkeypatch, survives):
    """Whatever number of its five files were written, with COMPLETE missing, the one before is the latest."""
    calls = []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) > survives:
            raise KeyboardInterrupt
        return write(*arguments)

    write = checkpoint.Path.write_bytes
    if survives < 5:
        monkeypatch.setattr(checkpoint.Path, "write_bytes", dies)
    else:
        monkeypatch.setattr(checkpoint.Path, "touch", dies)
        calls.extend([None] * survives)
    with pytest.raises(KeyboardInterrupt):
        save(folder, trained._replace(step=8))
    monkeypatch.undo()
    assert list(folder.glob(".*.partial")), "the test did not kill the save"
    assert latest(folder).step == 6 and faults(folder) == []
    save(folder, trained._replace(step=8))
    assert latest(folder).step == 8 and not list(folder.glob(".*.partial"))


def test_saving_again_replaces_what_was_there(folder, trained):
    (folder / "step-00000006" / "state.json").write_text("{}")
    save(folder, trained._replace(step=6, state={"again": 1}))
    assert latest(folder).step == 6 and latest(folder).state == {"again": 1}


@pytest.mark.parametrize(("keep", "needed", "left"), [
    (1, (), [6]), (2, (), [4, 6]), (1, (2,), [2, 6]), (2, (6,), [4, 6]), (9, (0,), [2, 4, 6]), (1, (2, 4), [2, 4, 6]),
])  # fmt: skip
def test_pruning_keeps_the_newest_and_what_is_needed(folder, keep, needed, left):
    shutil.copytree(folder / "step-00000002", folder / ".step-00000008.partial")
    prune(folder, keep=keep, needed=needed)
    assert [path.name for path in sorted(folder.iterdir())] == [f"step-{step:08d}" for step in left]
    assert latest(folder).step == 6


@pytest.mark.drill("disk full during a checkpoint")
def test_a_full_disk_is_one_line_and_gives_its_room_back(folder, trained, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_flush", full)
    with pytest.raises(OSError, match="step-00000008 cannot be written: .*No space left on device; make room"):
        save(folder, trained._replace(step=8))
    assert not list(folder.glob(".*.partial")) and latest(folder).step == 6


@pytest.fixture
def slow(tmp_path):
    """What a writer does, waiting for an event, and the event."""
    go = threading.Event()

    def write(made, needed):
        assert go.wait(LIMIT_S)
        save(tmp_path, made)

    yield write, go
    go.set()


def test_training_goes_on_while_the_values_of_then_are_written(tmp_path, slow):
    learner, optimizer = new()
    train(learner, optimizer, range(2))
    write, go = slow
    with Writer(write) as writer:
        writer.write(of(2, learner, optimizer), needed=())
        train(learner, optimizer, range(2, 4))
        assert not all_in(tmp_path)
        go.set()
        writer.write(of(4, learner, optimizer), needed=())
    assert [path.name for path in all_in(tmp_path)] == ["step-00000002", "step-00000004"]
    other, its_optimizer = new()
    train(other, its_optimizer, range(2))
    written = load(tmp_path / "step-00000002")
    assert all(same_bits(value, written.learner[name]) for name, value in other.state_dict().items())
    assert same_bits(its_optimizer.state_dict()["state"][0]["exp_avg"], written.optimizer["state"][0]["exp_avg"])


def test_what_could_not_be_written_is_raised_at_the_next_one_or_at_the_end(trained):
    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), Writer(full) as writer:
        writer.write(trained, needed=())
        writer.write(trained, needed=())
        pytest.fail("the second must not be taken")
    with pytest.raises(OSError, match="No space"), Writer(full) as writer:
        writer.write(trained, needed=())
    with pytest.raises(ZeroDivisionError), Writer(full) as writer:
        writer.write(trained, needed=())
        raise ZeroDivisionError


def test_a_worker_that_fails_leaves_the_checkpoint_that_was_being_written(tmp_path, trained, slow):
    write, go = slow
    with pytest.raises(ZeroDivisionError), Writer(write) as writer:
        writer.write(trained, needed=())
        go.set()
        raise ZeroDivisionError
    assert latest(tmp_path).step == 2
