"""Data behind a web server are those on disk, whatever goes wrong on the way, or an error names what is wrong."""

import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tars import class_folders
from web import web

from pipeline import prepare
from pipeline.data import cache, remote
from pipeline.data.index import Index
from pipeline.data.loader import Reader
from pipeline.data.root import Url
from pipeline.data.sampler import Sampler
from pipeline.data.shapes import Shape
from pipeline.data.shards import Shards
from pipeline.data.stream import Stream, StreamReader
from pipeline.errors import InputError

CHUNK = 4096


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("packed")
    labels = [f"c{number}" for number in range(6)]
    source = class_folders(place / "in", labels=labels, per_class=24, size=24)
    prepare.pack(str(source), place / "out", layout="folder", size=None, rule="train=0.5,test=0.5")
    return place / "out"


@pytest.fixture
def data(packed, tmp_path) -> Path:
    """A copy that a test may damage."""
    (tmp_path / "data" / "index").mkdir(parents=True)
    for file in (*packed.glob("*.tar"), *packed.glob("index/*.*")):
        (tmp_path / "data" / file.relative_to(packed)).write_bytes(file.read_bytes())
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def node(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own, small chunks, and waits that are over at once."""
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "CHUNK", CHUNK)
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    return tmp_path / "cache"


@pytest.fixture
def served(data):
    with web(data) as served:
        yield served


def kept(node: Path) -> list[Path]:
    return sorted(path for path in (node / "data").rglob("0*") if path.is_file())


def test_what_a_server_has_is_what_the_disk_has(served, data):
    here, there = Index.open(data), Index.open(f"{served.url}/")
    assert there.fingerprint == here.fingerprint and there.root == Url(served.url)
    assert [there.key(row) for row in range(len(here))] == [here.key(row) for row in range(len(here))]
    ours, theirs = Shards(here), Shards(there)
    for row in range(len(here)):
        assert theirs.read(row, "image") == ours.read(row, "image")
        assert theirs.read(row, "json") == ours.read(row, "json")


def test_episodes_are_the_same(served, data):
    draws, episodes = [], []
    for root in (data, served.url):
        index = Index.open(root)
        sampler = Sampler(index, "train", Shape(2, 1, 3), seed=3, turns=True)
        draws.append([sampler.draw(1, number) for number in range(6)])
        episodes.append([Reader(Shards(index), True, None).episode(draw) for draw in draws[-1]])
    for one, two in zip(*draws, strict=True):
        assert one.classes == two.classes and np.array_equal(one.rows, two.rows)
    for one, two in zip(*episodes, strict=True):
        assert one.support.inputs.equal(two.support.inputs) and one.query.inputs.equal(two.query.inputs)


def test_a_plain_stream_is_the_same_and_fetches_ahead(served, data):
    batches = []
    for root in (data, served.url):
        index = Index.open(root)
        stream = Stream(index, "train", samples=12, batch=2, seed=0, turns=False, window=20)
        reader = StreamReader(stream, Reader(Shards(index), False, None))
        batches.append([reader.episode(stream.draw(step, number)) for step in range(3) for number in range(2)])
    assert all(one.query.inputs.equal(two.query.inputs) for one, two in zip(*batches, strict=True))
    size = next(data.glob("*.tar")).stat().st_size
    assert len(served.ranges) <= -(-size // (remote.TOGETHER * CHUNK)) + 1


def test_verify_reads_all_of_it(served, data):
    assert prepare.verify(served.url) == []
    spoil(data, 7)
    faults = prepare.verify(served.url)
    assert any("changed since it was indexed" in fault for fault in faults) and any(
        Index.open(data).key(7) in fault for fault in faults
    )
    assert prepare.verify(f"{served.url}/nowhere")[0].startswith(f"{served.url}/nowhere: no index here")


def spoil(data: Path, row: int) -> None:
    """Change the last byte of an image on disk."""
    index = Index.open(data)
    location = index.locate(row, "image")
    content = bytearray(index.path(location.shard).read_bytes())
    content[location.offset + location.size - 1] ^= 1
    index.path(location.shard).write_bytes(content)


@pytest.mark.parametrize(
    "script",
    [["500"], ["503", "429", "500"], ["short"], ["other"], ["whole"], ["slow"], ["reset", "reset"]],
    ids=" ".join,
)
@pytest.mark.drill("store answers wrongly, then well")
def test_what_passes_is_tried_again(served, data, monkeypatch, script):
    monkeypatch.setattr(remote, "REQUEST_S", 0.3)
    shards = Shards(Index.open(served.url))
    served.script = list(script)
    assert shards.read(5, "image") == Shards(Index.open(data)).read(5, "image")
    assert len(served.ranges) == len(script) + 1 and len({asked for asked in served.ranges}) == 1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("503", "HTTP 503"), ("short", r"ClientPayloadError|ended after"), ("other", "instead of bytes"),
     ("whole", "the whole object instead of a range"), ("reset", r"ServerDisconnected|reset|ClientOSError")],
)  # fmt: skip
def test_what_does_not_pass_is_named_in_the_end(served, fault, reason):
    shards = Shards(Index.open(served.url))
    served.always = fault
    with pytest.raises(InputError, match=rf"shard-000000.tar: cannot be read, tried {remote.TRIES} times .*({reason})"):
        shards.read(5, "image")
    # aiohttp asks once more by itself where the connection breaks before an answer.
    assert len(served.ranges) == remote.TRIES * (2 if fault == "reset" else 1)


def test_tries_end_with_the_time_there_is(served, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 60.0)
    monkeypatch.setattr(remote, "DEADLINE_S", 1.0)
    shards = Shards(Index.open(served.url))
    served.always = "503"
    with pytest.raises(InputError, match="tried 1 times"):
        shards.read(5, "image")


@pytest.mark.parametrize(("code", "match"), [("403", "access is refused"), ("401", "credentials"), ("404", "is not there"),
                                             ("400", "HTTP 400")])  # fmt: skip
def test_what_will_not_pass_is_told_at_once(served, code, match):
    shards = Shards(Index.open(served.url))
    served.script = [code]
    with pytest.raises(InputError, match=rf"{served.url}/shard-000000.tar: .*{match}"):
        shards.read(5, "image")
    assert len(served.ranges) == 1


@pytest.mark.parametrize("ignores", [False, True], ids=["if-match", "compared after"])
@pytest.mark.drill("object changed in the store: refused")
def test_an_object_that_changed_is_refused(served, data, ignores):
    served.ignores_if_match = ignores
    shards = Shards(Index.open(served.url))
    spoil(data, 0)
    with pytest.raises(InputError, match="shard-000000.tar: changed since it was opened"):
        shards.read(5, "image")
    fresh = Shards(Index.open(served.url))
    assert fresh.read(5, "image")
    before = len(served.ranges)
    with pytest.raises(InputError, match="of sample 'c0/0': bytes changed since they were indexed"):
        fresh.read(0, "image")
    assert len(served.ranges) == before + 2, "fetched once more, to be sure that it was not our copy"


def test_sizes_are_checked_when_it_is_opened(served, data):
    tar = next(data.glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(InputError, match=r"shard-000000.tar: \d+ bytes, the index says"):
        Index.open(served.url)
    tar.unlink()
    with pytest.raises(InputError, match="shard-000000.tar: is not there"):
        Index.open(served.url)
    Index.without_shards(served.url)


def test_index_files_are_checked(served, data):
    table = data / "index" / "samples.arrow"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    with pytest.raises(InputError, match=r"samples.arrow: is not what the manifest says \(sha256\)"):
        Index.open(served.url)
    table.write_bytes(content[:-8])
    with pytest.raises(InputError, match=r"samples.arrow has \d+ bytes, not"):
        Index.open(served.url)


def test_no_name_leads_out_of_the_folder(served, data):
    manifest = json.loads((data / "index" / "manifest.json").read_text())
    for name in ("../other.tar", "/etc/passwd", "http://elsewhere/x.tar", "a/../../x.tar"):
        manifest["shards"][0]["name"] = name
        (data / "index" / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError, match="does not lie in this folder"):
            Index.open(served.url)


def test_no_signature_of_a_redirect_is_told(served):
    shards = Shards(Index.open(served.url))
    served.script = ["away"]
    with pytest.raises(InputError, match="is not there") as caught:
        shards.read(5, "image")
    assert "SECRET" not in str(caught.value)


@pytest.mark.drill("cached bytes damaged on disk")
def test_a_damaged_chunk_is_fetched_once_more(served, data, node):
    shards = Shards(Index.open(served.url))
    expected = shards.read(5, "image")
    before = len(served.ranges)
    location = shards.index.locate(5, "image")
    for path in kept(node):
        content = bytearray(path.read_bytes())
        for at in range(0, len(content), 16):
            content[at] ^= 1
        path.write_bytes(content)
    assert shards.read(5, "image") == expected
    assert len(served.ranges) == before + 1 and location.size < CHUNK
    with shards.index.path(0).open("rb") as file:
        assert file.read() == next(data.glob("*.tar")).read_bytes()
    for path in kept(node):
        path.write_bytes(path.read_bytes()[:-9])
    assert shards.read(5, "image") == expected


def test_threads_fetch_a_chunk_once(served):
    shards, found = Shards(Index.open(served.url)), []
    threads = [threading.Thread(target=lambda: found.append(shards.read(5, "image"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1 and len(served.ranges) == 1


READ_ALL = """
import pickle, sys
from pipeline.data import remote
from pipeline.data.shards import Shards
remote.CHUNK = int(sys.argv[1])
shards = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(b"".join(shards.read(row, "image") for row in range(len(shards.index))))
"""


@pytest.mark.drill("two processes want the same bytes at once")
def test_processes_share_what_one_fetched(served, data):
    """Index and reader travel as their place alone; no byte comes twice to a node."""
    shards = Shards(Index.open(served.url))
    command = [sys.executable, "-W", "error", "-c", READ_ALL, str(CHUNK)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": dict(os.environ)}
    processes = [subprocess.Popen(command, **options) for _ in range(2)]
    for process in processes:
        process.stdin.write(pickle.dumps(shards))
        process.stdin.close()
    expected = b"".join(Shards(Index.open(data)).read(row, "image") for row in range(len(shards.index)))
    for process in processes:
        with process:
            assert process.stdout.read() == expected
    asked = [number for _, start, stop in served.ranges for number in range(start // CHUNK, -(-stop // CHUNK))]
    assert len(asked) == len(set(asked))
    assert b"".join(shards.read(row, "image") for row in range(len(shards.index))) == expected
    assert len(asked) == len({*asked}) == sum(stop - start > 0 for _, start, stop in served.ranges)


@pytest.mark.drill("disk of the cache full")
def test_a_full_disk_stops_nothing(served, data, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    index = Index.open(served.url)
    ours, theirs = Shards(Index.open(data)), Shards(index)
    theirs.bring(range(20))
    for row in range(20):
        assert theirs.read(row, "image") == ours.read(row, "image")
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and "No space left on device" in told and cache.FOLDER_VARIABLE in told
    assert np.array_equal(index.counts, ours.index.counts)


def test_what_an_episode_needs_comes_side_by_side(served, data):
    index = Index.open(served.url)
    shards = Shards(index)
    shards.bring(range(len(index)))
    fetched = len(served.ranges)
    for row in range(len(index)):
        shards.read(row, "image")
    assert len(served.ranges) == fetched


def test_any_other_store_of_fsspec(data):
    """In memory, where versions are told apart by their time of writing."""
    import fsspec

    files = fsspec.filesystem("memory")
    try:
        for path in data.rglob("*.*"):
            if path.is_file():
                files.pipe_file(f"/birds/{path.relative_to(data)}", path.read_bytes())
        ours, theirs = Shards(Index.open(data)), Shards(Index.open("memory://birds"))
        for row in range(0, len(ours.index), 9):
            assert theirs.read(row, "image") == ours.read(row, "image")
        tar = next(data.glob("*.tar"))
        files.pipe_file(f"/birds/{tar.name}", tar.read_bytes())
        with pytest.raises(InputError, match="changed since it was opened"):
            [theirs.read(row, "image") for row in range(len(ours.index))]
        with pytest.raises(InputError, match="no index here"):
            Index.open("memory://nothing")
    finally:
        files.rm("/birds", recursive=True)


def test_an_unknown_store_is_named():
    with pytest.raises(InputError, match="nowhere://: no such kind of store"):
        Index.open("nowhere://x/y")
