"""A whole run against a server on PostgreSQL that hands artifacts on itself, as several machines share one."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import postgres
import psutil
import pytest
from small import small_config
from test_tracking import assert_complete, closed_port

from pipeline import register, report, tracking, train
from pipeline.data.index import Index
from pipeline.shipment import SENT_FILE, client_of
from pipeline.tracking import sync


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.skipif(bool(postgres.lack()), reason=postgres.lack())
@pytest.mark.filterwarnings("ignore::FutureWarning:mlflow.*")
@pytest.mark.filterwarnings("ignore::UserWarning:mlflow.*")
def test_a_run_goes_to_a_server_on_postgresql_through_its_proxy(glyphs_root, tmp_path, monkeypatch):
    before = set(psutil.Process().children(recursive=True))
    asked = {"flush_s": 120, "register_as": "small", "alias": "champion"}
    # Where pytest keeps its folders nobody but their owner may go.
    with tempfile.TemporaryDirectory(prefix="metashard-postgres-") as place:
        Path(place).chmod(0o755)
        with (
            postgres.serving(Path(place, "server")) as store,
            report.serving(store, closed_port(), tmp_path / "server.log") as (uri, _),
        ):
            config = small_config(glyphs_root, tmp_path / "runs", tracking={"uri": uri, **asked})
            folder = train.fit(config).folder
            assert (folder / tracking.LOG_FILE).read_text() == ""
            client, own = client_of(uri), tracking.run_id_of(folder)
            found = client.get_run(own)
            assert found.info.status == "FINISHED" and found.data.params["meta.steps"] == "6"
            assert_complete(uri, folder, range(1, 7))
            assert found.info.artifact_uri.startswith("mlflow-artifacts:")
            kept = client.download_artifacts(own, "result.json", str(tmp_path))
            assert Path(kept).read_bytes() == (folder / "result.json").read_bytes()
            uses = {each.tags[0].value: each.dataset for each in found.inputs.dataset_inputs}
            assert set(uses) == {"training", "validation", "test"}
            index = Index.open(glyphs_root)
            assert json.loads(uses["training"].profile)["fingerprint"] == index.fingerprint

            version = client.get_model_version_by_alias("small", "champion")
            assert version.source.startswith("mlflow-artifacts:") and version.run_id == own
            from mlflow import artifacts, pyfunc

            monkeypatch.setattr(sys, "path", list(sys.path))
            fetched = artifacts.download_artifacts(version.source, dst_path=str(tmp_path / "model"), tracking_uri=uri)
            (said,) = pyfunc.load_model(fetched).predict(register.example(config, index))["labels"]
            assert len(said) == 3

            (folder / SENT_FILE).unlink()
            assert sync(folder, uri=uri).complete
            assert len(client.search_model_versions("name = 'small'")) == 1
            assert len(client.get_run(own).outputs.model_outputs) == 1
            assert_complete(uri, folder, range(1, 7))
    assert not set(psutil.Process().children(recursive=True)) - before
