"""Data in an S3 store, spoken to as Amazon's is: same episodes, same run to the last bit; misfits are named."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from gloo import work_here
from s3 import SECRET, put
from small import small_config

from pipeline import checkpoint, evaluate, prepare, restore, show
from pipeline.cli import app
from pipeline.config import dump, load
from pipeline.data import remote
from pipeline.data.index import Index
from pipeline.data.root import Url
from pipeline.data.shards import Shards
from pipeline.errors import InputError
from pipeline.train import fit


@pytest.fixture(scope="module")
def bucket(s3_server, glyphs_root) -> str:
    put(s3_server, "/birds")
    for path in (*glyphs_root.glob("*.tar"), *glyphs_root.glob("index/*.*")):
        put(s3_server, f"/birds/packed/{path.relative_to(glyphs_root)}", path.read_bytes())
    return "s3://birds/packed"


def final(run: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.latest(run / "checkpoints").learner)


def test_every_sample_is_the_one_on_disk(s3, bucket, glyphs_root):
    ours, theirs = Shards(Index.open(glyphs_root)), Shards(Index.open(bucket))
    for row in range(0, len(ours.index), 7):
        assert theirs.read(row, "image") == ours.read(row, "image")
    assert prepare.verify(bucket) == []


def test_a_run_is_the_same_to_the_last_bit(s3, bucket, glyphs_root, tmp_path):
    """Meta-gradients, validation and evaluation: what lies where is no part of them."""
    for name, root in (("here", glyphs_root), ("there", bucket)):
        work_here(dump(small_config(root, tmp_path)), str(tmp_path / name))
    here, there = (final(tmp_path / name) for name in ("here", "there"))
    assert here.keys() == there.keys() and all(here[name].equal(there[name]) for name in here)
    found = []
    for name, other in (("here", Url(bucket)), ("there", None), ("there", glyphs_root)):
        subject = restore.subject_of(restore.find(tmp_path / name, tmp_path), data=other)
        found.append(evaluate.evaluate(subject, split="test", episodes=4, workers=1).as_json()["inductive"])
    assert found[0] == found[1] == found[2]
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


def test_supervised_runs_stream_from_it(s3, bucket, glyphs_root, tmp_path):
    sections = {"learner": {"kind": "supervised"}, "meta": {"steps": 3, "batch": 2}}
    for name, root in (("here", glyphs_root), ("there", bucket)):
        work_here(dump(small_config(root, tmp_path, **sections)), str(tmp_path / name))
    here, there = (final(tmp_path / name) for name in ("here", "there"))
    assert all(here[name].equal(there[name]) for name in here)


@pytest.mark.slow
def test_a_run_from_the_command_line(s3, bucket, tmp_path):
    """A whole run, with MLflow, and going on with it: the place is kept as it was given."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(dump(small_config("nowhere", tmp_path / "runs"))))
    config = load(file, [f"data.root={bucket}"])
    finished = fit(config)
    assert f"root: {bucket}" in (finished.folder / "config.yaml").read_text()
    assert fit(config, resume=finished.folder).result["test"] == finished.result["test"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_verbs_take_the_url(s3, bucket, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        app(["verify", bucket])
    assert left.value.code == 0 and "no fault" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        app(["show", bucket, "--out", str(tmp_path / "x.png")])
    assert left.value.code == 0 and (tmp_path / "x.png").stat().st_size
    with pytest.raises(InputError, match=f"{bucket}/x: no index here"):
        show.show(Index.without_shards(bucket).root / "x", tmp_path / "y.png")


def test_an_object_that_changed_is_refused(s3, s3_server, glyphs_root):
    put(s3_server, "/changing")
    for path in (*glyphs_root.glob("*.tar"), *glyphs_root.glob("index/*.*")):
        put(s3_server, f"/changing/{path.relative_to(glyphs_root)}", path.read_bytes())
    shards = Shards(Index.open("s3://changing"))
    tar = next(glyphs_root.glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[-1] ^= 1
    put(s3_server, f"/changing/{tar.name}", bytes(content))
    with pytest.raises(InputError, match=f"s3://changing/{tar.name}: changed since it was opened"):
        shards.read(0, "image")
    put(s3_server, f"/changing/{tar.name}", bytes(content[:-512]))
    with pytest.raises(InputError, match=f"{tar.name}: .* bytes, the index says"):
        Index.open("s3://changing")


def test_a_store_that_does_not_let_us_list_is_asked_one_by_one(s3, bucket, glyphs_root):
    kind = remote.store_of(Index.without_shards(bucket).root)
    s3.setattr(type(kind), "listed", lambda self, folder, timeout_s: {})
    assert len(Index.open(bucket)) == len(Index.open(glyphs_root))


def test_who_has_no_credentials_is_told_where_they_come_from(s3, bucket):
    s3.delenv("AWS_ACCESS_KEY_ID")
    s3.delenv("AWS_SECRET_ACCESS_KEY")
    remote._store.cache_clear()
    with pytest.raises(InputError, match="NoCredentialsError; set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        Index.open(bucket)


def test_a_store_that_is_down_is_named_without_secrets(s3, bucket):
    s3.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    remote._store.cache_clear()
    with pytest.raises(InputError, match=rf"manifest.json: cannot be read, tried {remote.TRIES} times") as caught:
        Index.open(bucket)
    assert SECRET not in str(caught.value)


def test_what_is_missing_to_read_s3_is_named(s3, bucket):
    s3.setitem(sys.modules, "s3fs", None)
    remote._store.cache_clear()
    with pytest.raises(InputError, match=r"s3://: what reads it is not installed; pip install 'metashard\[s3\]'"):
        Index.open(bucket)
