"""What a run tells of where it comes from and where it runs: data sets, earlier runs, jobs."""

from __future__ import annotations

import json

import pytest
from small import small_config
from test_embed import trained

from pipeline import checkpoint, lineage, spool
from pipeline.conclude import tell_start
from pipeline.data.index import Index
from pipeline.embed import embed
from pipeline.shipment import SENT_FILE
from pipeline.spool import Spool, history


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for variable in (*lineage.JOBS.values(), lineage.RAY_ENV):
        monkeypatch.delenv(variable, raising=False)


def run_of(place, root, **sections):
    """The folder of a short run that MLflow has got."""
    path = trained(place, root, **sections)
    Spool(place / "run").close()
    (place / "run" / SENT_FILE).write_text(json.dumps({"run_id": place.name}))
    return path, history(place / "run").id


def test_a_run_names_the_runs_that_went_into_it(glyphs_root, tmp_path):
    (tmp_path / "first").mkdir()
    best, own = run_of(tmp_path / "first", glyphs_root, learner={"kind": "prototype"})
    run, index = tmp_path / "first" / "run", Index.open(glyphs_root)
    weights = best / checkpoint.FILES[0]
    for start in (run, best):
        asked = small_config(glyphs_root, tmp_path, start=str(start), teacher={"start": str(run)})
        told = lineage.origins(asked, index)
        for key in ("start", "teacher"):
            assert told[f"{key}.run"] == "first" and told[f"{key}.spool"] == own
            assert told[f"{key}.file"] == str(weights)
    # Of a file nobody knows the run.
    alone = lineage.origins(small_config(glyphs_root, tmp_path, start=str(weights)), index)
    assert set(alone) == {"start.file", "start.sha256"}
    assert lineage.origins(small_config(glyphs_root, tmp_path), index) == {}

    features = embed(run, tmp_path / "features")
    config = small_config(features.root, tmp_path, model={"kind": "features"})
    told = lineage.origins(config, features)
    assert told["encoder.sha256"] == features.encoder
    assert told["encoder.run"] == "first" and told["encoder.spool"] == own
    run.rename(tmp_path / "elsewhere")
    assert "encoder.run" not in lineage.origins(config, features)


def test_jobs_of_a_cluster_are_told_one_after_another(monkeypatch):
    assert lineage.jobs({}) == {}
    for variable, value in {"METASHARD_RUN": "x", "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv(lineage.RAY_ENV, json.dumps({"metadata": {"job_submission_id": "x-2"}}))
    told = lineage.jobs({"job.ray.submission": "x", "job.slurm": "17"})
    assert told == {
        "job.run": "x",
        "job.slurm": "17",
        "job.slurm.nodes": "n[1-2]",
        "job.ray.submission": "x x-2",
    }
    assert lineage.jobs(told) == told
    monkeypatch.setenv(lineage.RAY_ENV, "no JSON")
    assert "job.ray.submission" not in lineage.jobs({})


def test_every_split_that_is_read_is_told(glyphs_root, tmp_path):
    index = Index.open(glyphs_root)
    told = dict(lineage.data_sets(small_config(glyphs_root, tmp_path), index))
    assert {name: values["context"] for name, values in told.items()} == {
        "images:train": "training",
        "images:val": "validation",
        "images:test": "test",
    }
    assert told["images:train"]["profile"] | {"shards": 1} == {
        "split": "train",
        "classes": 36,
        "samples": 432,
        "shards": 1,
        "fingerprint": index.fingerprint,
    }
    assert told["images:test"]["images"] == {"dtype": "|u1", "shape": [16, 16, 1]}
    # Where nothing is trained, and where one split serves twice.
    alike = small_config(glyphs_root, tmp_path, data={"test": "val"}, meta={"steps": 0})
    (only,) = lineage.data_sets(alike, index)
    assert only[0] == "images:val" and only[1]["context"] == "validation, test"


def test_a_run_tells_it_as_it_begins(glyphs_root, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("")
    for job in ("17", "18"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        tell_start(tmp_path, small_config(glyphs_root, tmp_path), Index.open(glyphs_root), {})
    assert history(tmp_path).tags["job.slurm"] == "17 18"
    kinds = [record["kind"] for _, record in spool.records(tmp_path)]
    assert kinds.count("data") == 3
