"""The cache keeps within its limit, forgets what was not used for longest, and never says what it has not got."""

import os
import time

import pytest

from pipeline.data import cache as module
from pipeline.data.cache import FOLDER_VARIABLE, LIMIT_VARIABLE, Cache, node_cache
from pipeline.errors import InputError


def put(cache: Cache, name: str, size: int = 100):
    return cache.put(f"x/{name}", size, [name.encode() * size][:1] if len(name) == 1 else [bytes(size)])


def taken(cache: Cache) -> int:
    return sum(path.stat().st_size for path in (cache.folder / "data").rglob("*") if path.is_file())


def age(cache: Cache, name: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(cache.folder / "data" / "x" / name, (then, then))


def test_what_is_put_is_read(tmp_path):
    cache = Cache(tmp_path / "c", 1000)
    assert cache.read("x/a", 100, 0, 10) is None
    path = put(cache, "a")
    assert cache.path("x/a", 100) == path and cache.read("x/a", 100, 95, 5) == b"aaaaa"
    assert cache.read("x/a", 101, 0, 5) is None, "of another length it is not what was put"
    cache.drop("x/a")
    assert cache.path("x/a", 100) is None


def test_the_least_recently_used_go_first_and_the_limit_is_kept(tmp_path):
    cache = Cache(tmp_path / "c", 1000)
    for number, name in enumerate("abcdefghij"):
        put(cache, name)
        age(cache, name, 1000 - number)
    assert taken(cache) == 1000
    assert cache.read("x/a", 100, 0, 1) == b"a"
    for name in "klmn":
        put(cache, name)
        assert taken(cache) <= 1000
    kept = {path.name for path in (cache.folder / "data" / "x").iterdir()}
    assert {"a", *"klmn"} <= kept and not {*"bc"} & kept
    assert len(kept) > 6, "no more went than had to"


def test_two_caches_of_a_folder_keep_one_limit(tmp_path):
    one, two = Cache(tmp_path / "c", 1000), Cache(tmp_path / "c", 1000)
    for number in range(30):
        put(one if number % 2 else two, f"n{number}")
        assert taken(one) <= 1000


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path):
    cache = Cache(tmp_path / "c", 1000)
    assert put(cache, "a", 1001) is None and taken(cache) == 0


def test_a_count_that_was_lost_is_made_again(tmp_path):
    cache = Cache(tmp_path / "c", 1000)
    for number in range(9):
        put(cache, f"n{number}")
    (cache.folder / "taken").write_text("")
    for number in range(9, 12):
        put(cache, f"n{number}")
        assert taken(cache) <= 1000


def test_what_a_killed_process_left_goes(tmp_path):
    cache = Cache(tmp_path / "c", 1000)
    put(cache, "a")
    for name in ("b.1-1.part", "c.1-1.part"):
        (cache.folder / "data" / "x" / name).write_bytes(bytes(300))
    age(cache, "b.1-1.part", module.STALE_S + 1)
    (cache.folder / "taken").unlink()
    put(cache, "d", 600)
    kept = {path.name for path in (cache.folder / "data" / "x").iterdir()}
    assert "c.1-1.part" in kept and "b.1-1.part" not in kept, "what is being written stays"


def test_what_fails_while_it_comes_is_not_kept(tmp_path):
    cache = Cache(tmp_path / "c", 1000)

    def pieces():
        yield bytes(50)
        raise InputError("gone")

    with pytest.raises(InputError, match="gone"):
        cache.put("x/a", 100, pieces())
    assert cache.path("x/a", 100) is None and taken(cache) == 0


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path, capsys):
    (tmp_path / "c").write_text("a file")
    cache = Cache(tmp_path / "c", 1000)
    for name in "ab":
        with cache.locked([f"x/{name}"]):
            assert put(cache, name) is None
    assert capsys.readouterr().err.count("warning") == 1


def test_others_see_a_private_folder(tmp_path):
    cache = Cache(tmp_path / "c", 1000)
    put(cache, "a")
    assert (cache.folder / "data").stat().st_mode & 0o077 == 0


def test_the_environment_names_folder_and_limit(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "x"))
    monkeypatch.setenv(LIMIT_VARIABLE, "0.5")
    assert (node_cache().folder, node_cache().limit) == (tmp_path / "x", 2**29)
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.delenv(LIMIT_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (node_cache().folder, node_cache().limit) == (tmp_path / ".cache" / "metashard", 50 * 2**30)


@pytest.mark.parametrize("value", ["0", "-1", "many", "inf", "nan", "0.01"])
def test_a_limit_is_a_number_that_leaves_room(monkeypatch, value):
    monkeypatch.setenv(LIMIT_VARIABLE, value)
    with pytest.raises(InputError, match=f"{LIMIT_VARIABLE} = '{value}'"):
        node_cache()
