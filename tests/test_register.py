"""The best checkpoint as a model in MLflow: complete, not pickled, of its learner's mind, and once however often sent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import pytest
import test_layers
import torch
from small import small_config
from teachable import DETECTION, SEGMENTATION, class_folders
from test_embed import trained
from test_tracking import closed_port

from pipeline import build, cli, register, restore, servable, shipped_model, spool, tracking, train
from pipeline.data.index import Index
from pipeline.errors import InputError
from pipeline.learners.learner import Learner, Mode
from pipeline.schema.run import RunConfig
from pipeline.shipment import SENT_FILE, client_of
from pipeline.tracking import sync

ROOT = Path(__file__).parents[1]
NAME, ALIAS = "small learner", "champion"
# MLflow asks SQLAlchemy 2.1 and pandas 3 for what will go one day, and advises on code that it was given.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow.*"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]


class Known(NamedTuple):
    """A run that registered its model as it ended, and that model in MLflow."""

    config: RunConfig
    folder: Path
    uri: str
    client: Any
    model: Any

    @property
    def files(self) -> Path:
        return Path(unquote(urlparse(self.model.artifact_location).path))

    @property
    def index(self) -> Index:
        return Index.open(self.config.data.root)

    @property
    def learner(self) -> Learner:
        from pipeline import checkpoint

        return restore.restored(restore.subject_of(checkpoint.best(self.folder))).learner


class SendsAtTheEnd(tracking.Sender):
    """In this process, where MLflow is imported anyway."""

    def start(self) -> None:
        pass

    def stop(self, timeout_s: float) -> bool:
        return sync(self.run_dir, uri=self.uri).complete


@pytest.fixture(scope="module")
def known(glyphs_root, tmp_path_factory) -> Known:
    runs = tmp_path_factory.mktemp("a folder") / "runs"
    config = small_config(glyphs_root, runs, tracking={"register_as": NAME, "alias": ALIAS})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "Sender", SendsAtTheEnd)
        done = train.fit(config)
    uri = tracking.default_uri(runs)
    client = client_of(uri)
    (output,) = client.get_run(tracking.run_id_of(done.folder)).outputs.model_outputs
    return Known(config, done.folder, uri, client, client.get_logged_model(output.model_id))


@pytest.fixture
def loaded(known, monkeypatch):
    """The model as MLflow loads it, which puts the model's code before all other."""
    from mlflow import pyfunc

    monkeypatch.setattr(sys, "path", list(sys.path))
    return pyfunc.load_model(str(known.files))


def test_a_run_ends_with_a_ready_model_that_is_registered_under_its_alias(known):
    assert known.model.status == "READY" and known.model.model_type == shipped_model.KIND
    assert known.model.source_run_id == tracking.run_id_of(known.folder)
    version = known.client.get_model_version_by_alias(NAME, ALIAS)
    assert version.run_id == known.model.source_run_id and version.source == known.model.artifact_location
    scores = {metric.key: metric.value for metric in known.client.get_logged_model(known.model.model_id).metrics}
    result = json.loads((known.folder / "result.json").read_text())
    assert scores["test/inductive/accuracy"] == result["test"]["inductive"]["accuracy"]["mean"]


def test_nothing_of_it_is_pickled_and_all_it_needs_is_there(known):
    files = [path for path in known.files.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files if path.name != "MLmodel"}
    assert kinds == {".py", ".jinja", ".json", ".yaml", ".txt", ".safetensors"}
    pickles = [path for path in files if path.read_bytes()[:1] == b"\x80"]
    assert not pickles
    from mlflow.models import Model

    told = Model.load(str(known.files))
    flavor = told.flavors["python_function"]
    assert flavor["loader_module"] == "mlflow.pyfunc.loaders.code_model" and "python_model" not in flavor
    assert set(told.signature.inputs.input_names()) == {"support", "labels", "queries"}
    assert told.signature.outputs.input_names() == ["classes", "labels", "probabilities", "scores"]
    assert set(told.load_input_example(str(known.files))) == {"support", "labels", "queries"}
    needed = (known.files / "requirements.txt").read_text().splitlines()
    assert {line.partition("==")[0] for line in needed} == set(shipped_model.REQUIREMENTS)
    assert all("+" not in line for line in needed)


def test_the_learner_comes_back_by_its_alias(known, tmp_path, monkeypatch):
    from pipeline import adapt
    from pipeline.teaching.adapted import load

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs, target = known.folder.parent, f"models:/{NAME}@{ALIAS}"
    made = adapt.adapt(target, class_folders(tmp_path / "images"), tmp_path / "model", runs=runs)
    for other in (f"models:/{NAME}/1", f"models:/{NAME}/latest", f"models:/{known.model.model_id}"):
        assert adapt.source_of(other, runs).told["sha256"] == made.model.origin["sha256"]
    own = adapt.adapt(str(known.folder), tmp_path / "images", tmp_path / "own", runs=tmp_path)
    assert made.model.origin["from"] == target and made.model.origin["sha256"] == own.model.origin["sha256"]
    inputs = made.model.support.inputs
    assert load(tmp_path / "model").scores(inputs).equal(own.model.scores(inputs))


def test_its_requirements_are_what_its_code_imports():
    waiting, seen, foreign = ["pipeline.servable"], set(), set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in test_layers.MODULES:
            continue
        seen.add(name)
        imported = test_layers.at_module_level(test_layers.MODULES[name])
        foreign |= test_layers.foreign(imported)
        waiting += [other for other in imported if other.startswith("pipeline.")]
    packages = {{"PIL": "pillow", "yaml": "pyyaml", "pydantic_core": "pydantic"}.get(own, own) for own in foreign}
    assert {*packages, "mlflow", "pandas"} == set(shipped_model.REQUIREMENTS)


@pytest.mark.parametrize("mode", Mode)
def test_it_says_what_the_learner_says(known, loaded, mode):
    sampler = build.sampler(known.config, known.index, "test")
    reader = build.reader(known.config, known.index)
    for number in range(3):
        episode = reader.episode(sampler.draw(0, number))
        asked = register.example(known.config, known.index, number=number, queries=2)
        found = loaded.predict(asked, params={"mode": mode.value}).iloc[0]
        with torch.no_grad():
            own = known.learner.adapt(episode.support, episode.ways, mode=mode)(episode.query.inputs)
        torch.testing.assert_close(torch.tensor(list(found["scores"])), own, check_dtype=False)
        assert found["labels"] == [found["classes"][way] for way in own.argmax(-1)]
        torch.testing.assert_close(torch.tensor(found["probabilities"]), own.softmax(-1).amax(-1), check_dtype=False)


def test_an_episode_a_row_and_a_wrong_mode_is_told(known, loaded):
    import pandas as pd
    from mlflow.exceptions import MlflowException

    rows = [register.example(known.config, known.index, number=number) for number in range(2)]
    both = loaded.predict(pd.DataFrame(rows))
    assert [list(found) for found in both["scores"]] == [list(loaded.predict(row).iloc[0]["scores"]) for row in rows]
    with pytest.raises(MlflowException, match="mode = 'both'"):
        loaded.predict(rows[0], params={"mode": "both"})
    with pytest.raises(MlflowException, match=r"queries\[0\]: is no base64"):
        loaded.predict({**rows[0], "queries": ["?"]})


def test_sent_again_it_is_there_once_and_an_alias_that_moved_stays_there(known):
    client, (experiment,) = known.client, {known.model.experiment_id}
    first = client.get_model_version_by_alias(NAME, ALIAS).version
    other = client.create_model_version(NAME, known.model.artifact_location, known.model.source_run_id).version
    client.set_registered_model_alias(NAME, ALIAS, other)
    for _ in range(2):
        # As after a crash at any point: all is sent again.
        (known.folder / SENT_FILE).unlink()
        done = sync(known.folder, uri=known.uri)
        assert done.complete and not done.refused
    assert [model.model_id for model in client.search_logged_models([experiment])] == [known.model.model_id]
    assert len(client.get_run(known.model.source_run_id).outputs.model_outputs) == 1
    assert len(client.get_run(known.model.source_run_id).inputs.dataset_inputs) == 3
    assert client.get_model_version_by_alias(NAME, ALIAS).version == other
    client.delete_model_version(NAME, other)

    # Whoever asks for it anew means it.
    again = register.register(known.folder, name=NAME, alias=ALIAS)
    assert again.sent.complete
    assert client.get_model_version_by_alias(NAME, ALIAS).version == first
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1


def test_a_model_that_was_left_half_way_is_finished(known, monkeypatch):
    """MLflow goes away while the files are sent; nothing is made twice when it is back."""
    client = known.client
    client.delete_logged_model(known.model.model_id)
    (known.folder / SENT_FILE).unlink()
    with monkeypatch.context() as broken:
        broken.setattr(type(client), "log_model_artifacts", lambda *_: (_ for _ in ()).throw(OSError("no store")))
        assert not sync(known.folder, uri=known.uri).complete
        (half,) = client.search_logged_models([known.model.experiment_id])
        assert half.status == "PENDING"
    assert sync(known.folder, uri=known.uri).complete
    (whole,) = client.search_logged_models([known.model.experiment_id])
    assert whole.model_id == half.model_id and whole.status == "READY"


def test_a_damaged_model_folder_is_named_and_holds_nothing_back(glyphs_root, tmp_path):
    runs = tmp_path / "runs"
    run = runs / "x"
    (run / "models" / "y").mkdir(parents=True)
    told = spool.Spool(run)
    told.model(run / "models" / "y")
    told.metrics(0, {"train/loss": 1.0})
    told.close()
    done = sync(run, uri=tracking.default_uri(runs))
    assert done.complete and len(done.refused) == 1 and "models/y" in done.refused[0]


def test_the_verb_registers_a_finished_run(known, capsys, monkeypatch):
    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["metashard", "register", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0)

    assert run(str(known.folder), "another", "--alias", "best") == 0
    assert "models:/another@best" in capsys.readouterr().out
    version = known.client.get_model_version_by_alias("another", "best")
    assert version.run_id == tracking.run_id_of(known.folder)
    for words, fault in (
        ([str(known.folder), "a/b"], "register_as"),
        ([str(known.folder), "a", "--alias", "latest"], "latest"),
        ([str(known.folder), "--alias", "best"], "of which model"),
        (["nowhere"], "no run"),
    ):
        assert run(*words) == 2
        assert fault in capsys.readouterr().err


@pytest.mark.parametrize("sections", [SEGMENTATION, DETECTION], ids=["masks", "boxes"])
def test_models_of_pixels_too(scenes_root, tmp_path, monkeypatch, sections):
    import pandas as pd
    from mlflow import pyfunc

    best = trained(tmp_path, scenes_root, **sections)
    config, index = small_config(scenes_root, tmp_path, **sections), Index.open(scenes_root)
    folder = register.lay_out(tmp_path / "laid", config, best)
    shipped_model.package(folder, tmp_path / "model", model_id="m-1", run_id="r-1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    asked = register.example(config, index, number=1)
    found = pyfunc.load_model(str(tmp_path / "model")).predict(pd.DataFrame([asked])).to_dict("records")[0]
    own = servable.opened(folder / shipped_model.ABOUT, folder / shipped_model.WEIGHTS).answer(asked)._asdict()
    assert {name: list(value) for name, value in found.items()} == own


def test_what_cannot_be_served_is_refused_before_training(glyphs_root, tmp_path):
    def mine(config: RunConfig, index: Index) -> Learner:
        return build.learner(config, index)

    with pytest.raises(InputError, match="make_learner = .*mine"):
        train.check(small_config(glyphs_root, tmp_path, tracking={"model": True}), mine)


@pytest.mark.slow
@pytest.mark.smoke
def test_mlflow_serves_it(known, tmp_path):
    """A real server answers a real request, by the code that lies in the model."""
    port, log = closed_port(), tmp_path / "serve.log"
    command = ["-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@{ALIAS}", "--env-manager", "local"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": known.uri,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, *command, "--port", str(port)],
            env=environment,
            cwd=tmp_path,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        asked = register.example(known.config, known.index, number=3)
        found = answered(f"http://127.0.0.1:{port}/invocations", {"inputs": asked}, server, log)
        episode = build.reader(known.config, known.index).episode(
            build.sampler(known.config, known.index, "test").draw(0, 3)
        )
        with torch.no_grad():
            own = known.learner.adapt(episode.support, episode.ways, mode=Mode.INDUCTIVE)(episode.query.inputs[::2])
        (row,) = found["predictions"]
        torch.testing.assert_close(torch.tensor(row["scores"]), own, check_dtype=False)
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"http://127.0.0.1:{port}/invocations", {"inputs": {**asked, "labels": asked["labels"][:1]}})
        assert refused.value.code == 400 and "one class for each image" in refused.value.read().decode()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def answered(url: str, body: dict[str, Any], server: subprocess.Popen[bytes], log: Path) -> Any:
    """The answer to a request, once the server is up."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return post(url, body)
        except urllib.error.HTTPError as error:
            pytest.fail(error.read().decode())
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())
