"""What a run begins from: values by name and shape, all of the encoder or one clear line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from gloo import work_here
from safetensors.torch import save_file
from small import small_config

from pipeline import build, checkpoint, conclude, evaluate, restore
from pipeline.config import dump, load
from pipeline.data.index import Index
from pipeline.errors import InputError
from pipeline.learners.learner import Learner
from pipeline.spool import history
from pipeline.start import provenance, started
from pipeline.train import check

SUPERVISED = {"learner": {"kind": "supervised", "samples": 8}, "meta": {"steps": 3, "batch": 2}}


@pytest.fixture(scope="module")
def index(glyphs_root) -> Index:
    return Index.open(glyphs_root)


@pytest.fixture
def config(glyphs_root, tmp_path):
    return lambda **sections: small_config(glyphs_root, tmp_path, **sections)


def trained(place: Path, root: Path, **sections) -> Path:
    work_here(dump(small_config(root, place, **sections)), str(place / "run"))
    return place / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory, glyphs_root) -> Path:
    """A supervised run."""
    return trained(tmp_path_factory.mktemp("supervised"), glyphs_root, **SUPERVISED)


@pytest.fixture(scope="module")
def maml(tmp_path_factory, glyphs_root) -> Path:
    """A run that keeps no norm statistics."""
    return trained(tmp_path_factory.mktemp("maml"), glyphs_root, meta={"steps": 1, "batch": 2})


def begun(config, index, start, **sections) -> Learner:
    return started(config(start=str(start), **sections), index, build.learner)


def values_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(checkpoint.best(run)).learner)


def file_of(run: Path) -> Path:
    return checkpoint.best(run) / "learner.safetensors"


def bare(run: Path, path: Path, prefix: str = "", more: dict[str, torch.Tensor] | None = None) -> Path:
    """The encoder of a run as a file of its own."""
    values = {n: v for n, v in values_of(run).items() if n.startswith("model.encoder.")}
    save_file({prefix + n.removeprefix("model.encoder."): v for n, v in values.items()} | (more or {}), path)
    return path


def has(learner: Learner, values: dict[str, torch.Tensor], *prefixes: str) -> bool:
    """Whether the learner has all values whose names begin so."""
    names = [name for name in values if name.startswith(prefixes)]
    return bool(names) and all(torch.equal(learner.state_dict()[name], values[name]) for name in names)


@pytest.mark.parametrize("kind", ["prototype", "supervised", "logistic", "gradient"])
def test_any_learner_starts_from_a_supervised_run(config, index, run, kind):
    learner, values = begun(config, index, run, learner={"kind": kind}), values_of(run)
    assert has(learner, values, "model.encoder.")
    assert kind == "gradient" or has(learner, values, "running.")
    assert (kind == "supervised") == (learner.state_dict().keys() >= {"head.weight"} and has(learner, values, "head."))


def test_a_run_a_checkpoint_and_its_file_are_the_same_start(config, index, run):
    found = [begun(config, index, path).state_dict() for path in (run, checkpoint.best(run), file_of(run))]
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in found[0])


def test_an_earlier_run_of_the_same_learner_gives_its_head_and_rule_too(config, index, tmp_path, glyphs_root):
    asked = {"learner": {"rule": {"kind": "per_element", "lr": 0.1}}}
    earlier = trained(tmp_path / "a", glyphs_root, **asked, meta={"steps": 2, "batch": 2})
    learner, values = begun(config, index, earlier, **asked), values_of(earlier)
    assert has(learner, values, "model.", "rule.")


def test_a_head_of_other_ways_stays_as_it_was(config, index, maml):
    asked = {"data": {"ways": 4}}
    learner, fresh = begun(config, index, maml, **asked), build.learner(config(**asked), index)
    assert has(learner, values_of(maml), "model.encoder.")
    assert has(learner, fresh.state_dict(), "model.head.")


def test_without_a_start_values_are_random(config, index, run):
    plain = started(config(), index, build.learner)
    assert has(plain, build.learner(config(), index).state_dict(), "model.")
    assert not has(plain, values_of(run), "model.encoder.convs")


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_a_bare_backbone_is_taken_by_its_names(config, index, run, tmp_path, prefix):
    """Its old head is left alone."""
    file = bare(run, tmp_path / "b.safetensors", prefix, {"fc.weight": torch.ones(5, 6)})
    assert has(begun(config, index, file, learner={"kind": "prototype"}), values_of(run), "model.encoder.")


def test_an_encoder_may_translate_the_names_of_others(config, index, run, tmp_path, monkeypatch):
    values = {n.removeprefix("model.encoder."): v for n, v in values_of(run).items() if n.startswith("model.encoder.")}
    save_file({f"theirs.{name}": value for name, value in values.items()}, tmp_path / "b.safetensors")
    monkeypatch.setattr(
        "pipeline.models.conv4.Conv4.translated",
        lambda self, state: {name.removeprefix("theirs."): value for name, value in state.items()},
        raising=False,
    )
    learner = begun(config, index, tmp_path / "b.safetensors")
    assert has(learner, values_of(run), "model.encoder.")
    # Our own names need no translation.
    assert has(begun(config, index, run), values_of(run), "model.encoder.")


def test_float64_starts_from_the_same_values(config, index, run):
    learner = begun(config, index, run, meta={"precision": "float64"})
    assert all(p.dtype == torch.float64 for p in learner.parameters())
    assert has(learner, {n: v.double() for n, v in values_of(run).items()}, "model.encoder.")


def refusal(config, index, start, **sections) -> str:
    with pytest.raises(InputError) as caught:
        begun(config, index, start, **sections)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and "start" in message
    return message


def test_another_width_names_the_layers(config, index, run):
    told = refusal(config, index, run, model={"width": 8})
    assert f"encoder.convs.0.weight is (6, 1, 3, 3) in {run}, the model needs (8, 1, 3, 3)" in told
    assert "more; start from weights of this model, or change `model`" in told


def test_another_family_names_what_is_missing_and_what_is_too_much(config, index, run):
    told = refusal(config, index, run, model={"kind": "resnet12", "width": 4})
    assert f"encoder.blocks.0.convs.0.weight is not in {run}" in told


def test_a_layer_too_much_is_named(config, index, run, tmp_path):
    values = {**values_of(run), "model.encoder.convs.4.weight": torch.ones(2)}
    save_file(values, tmp_path / "b.safetensors")
    told = refusal(config, index, tmp_path / "b.safetensors")
    assert f"{tmp_path / 'b.safetensors'} has encoder.convs.4.weight, the model has not" in told


@pytest.mark.parametrize("content", [None, b"", b"no safetensors", b"\x80\x04K\x01."])
def test_what_is_no_safetensors_file_is_named(config, index, tmp_path, content):
    path = tmp_path / "b.safetensors"
    if content is not None:
        path.write_bytes(content)
    told = refusal(config, index, path)
    assert f"start = {path}: no safetensors file that can be read (" in told and "never opened" in told


def test_a_folder_that_is_no_run_is_named(config, index, tmp_path):
    assert f"start = {tmp_path}: neither a run's folder nor a checkpoint's" in refusal(config, index, tmp_path)


def test_a_damaged_checkpoint_is_named(config, index, run, tmp_path):
    shutil.copytree(checkpoint.best(run), tmp_path / "c")
    file = tmp_path / "c" / "learner.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    with pytest.raises(InputError, match=r"learner.safetensors is not what was written \(sha256 differs\)"):
        begun(config, index, tmp_path / "c")


@pytest.mark.parametrize(
    "sections",
    [
        {"learner": {"statistics": "start"}},
        {"learner": {"kind": "leo", "freeze": True}},
        {"learner": {"kind": "prototype"}, "meta": {"steps": 0}},
    ],
)
def test_norm_statistics_that_nobody_brings_are_missed(config, index, maml, run, sections):
    told = refusal(config, index, maml, **sections)
    assert "running.block0_mean is not in" in told and "start from a run that keeps norm statistics" in told
    assert has(begun(config, index, run, **sections), values_of(run), "running.")


def test_statistics_of_a_start_that_is_not_there_are_refused(config, index):
    with pytest.raises(InputError, match="learner.statistics = start: nothing is named.*set start to a supervised run"):
        build.learner(config(learner={"statistics": "start"}), index)


def test_a_file_with_nothing_of_the_learner_is_refused(config, index, tmp_path):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

    save_file({"x": torch.ones(2)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="holds nothing that the learner has"):
        started(config(start=str(tmp_path / "b.safetensors")), index, lambda config, index: Own())  # pyright: ignore


def test_a_misfit_is_found_before_anything_starts(config, run):
    with pytest.raises(InputError, match=r"convs.0.weight is \(6, 1, 3, 3\)"):
        check(config(start=str(run), model={"width": 8}))


def test_where_a_run_began_is_told(config, index, run, tmp_path):
    asked = config(start=str(run), teacher={"start": str(checkpoint.best(run))})
    sha256 = json.loads((checkpoint.best(run) / "manifest.json").read_text())["sha256"]["learner.safetensors"]
    told = provenance(asked)
    assert told == {f"{key}.{part}": v for key in ("start", "teacher")
                    for part, v in (("file", str(file_of(run))), ("sha256", sha256))}  # fmt: skip
    assert provenance(config()) == {}
    conclude.tell_start(tmp_path, asked, index, told)
    assert history(tmp_path).tags.items() >= told.items()
    assert provenance(config(start=str(file_of(run)))) == {k: v for k, v in told.items() if k.startswith("start")}


def test_paths_are_fixed_when_a_config_is_loaded(config, tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text(json.dumps(dump(config(start="a/b", teacher={"start": "c"}))))
    monkeypatch.chdir(tmp_path)
    found = load(tmp_path / "run.yaml")
    assert found.start == tmp_path / "a" / "b" and found.teacher and found.teacher.start == tmp_path / "c"


def test_a_run_goes_on_and_is_evaluated_without_what_it_started_from(tmp_path, glyphs_root, run):
    """Its values are in its checkpoints; only the figures of the untrained learner need the start."""
    shutil.copytree(run, tmp_path / "gone")
    config = small_config(glyphs_root, tmp_path, start=str(tmp_path / "gone"), meta={"steps": 2})
    work_here(dump(config), str(tmp_path / "run"))
    shutil.rmtree(tmp_path / "gone")
    assert check(config, is_new=False)
    for path in checkpoint.all_in(tmp_path / "run" / "checkpoints")[1:]:
        shutil.rmtree(path)
    work_here(dump(config), str(tmp_path / "run"))
    subject = restore.subject_of(checkpoint.best(tmp_path / "run"))
    assert evaluate.evaluate(subject, split="test", episodes=2, workers=1).step == 2
    with pytest.raises(InputError, match="gone: no safetensors file"):
        restore.restored(subject._replace(checkpoint=""))
