"""Who may ask a server, by what name, and for how long."""

from __future__ import annotations

import json
import os
import socket
import sys
from datetime import UTC, datetime, timedelta

import pytest
from rooms import client_of, images, learner_of, model_of, room_of

from pipeline import cli, serve
from pipeline.errors import InputError
from pipeline.serving import tokens
from pipeline.serving.limits import Refused
from pipeline.serving.tokens import Tokens


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def why(known: Tokens, token: str, status: int = 401) -> str:
    with pytest.raises(Refused) as refused:
        known.check(f"Bearer {token}")
    assert refused.value.status == status
    return refused.value.sentence


def test_a_token_is_needed_for_all_but_health(glyphs_root, tmp_path):
    file = tmp_path / "tokens"
    token = tokens.add(file, days=1)
    learner = learner_of("classification", glyphs_root, tmp_path / "runs")
    with client_of(room_of(learner, tmp_path / "state"), tokens=Tokens(file)) as client:
        assert client.get("/healthz").status_code == 200
        asked = {
            "get": ("/classes", "/model", "/metrics", "/openapi.json", "/samples/0", "/nothing"),
            "delete": ("/classes/a",),
        }
        for method, paths in asked.items():
            for path in paths:
                answer = client.request(method, path)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert "a token is needed" in answer.json()["error"]
        # The body is not looked at before.
        assert client.post("/predict", content=b"", headers={"content-length": str(5 << 30)}).status_code == 401
        assert client.get("/classes", headers=bearer(token)).status_code == 200
        assert client.get("/classes", headers=bearer(token[:-1])).status_code == 401
        # With a token the name of the machine does not matter.
        assert client.get("/classes", headers={**bearer(token), "Host": "example.org"}).status_code == 200


def test_a_token_ends_when_its_time_is_over(tmp_path):
    file = tmp_path / "tokens"
    token, now = "a token of our own", datetime.now(UTC)
    for expires, is_known in ((now + timedelta(hours=1), True), (now - timedelta(seconds=1), False)):
        file.write_text(json.dumps({"sha256": tokens.hashed(token), "expires": expires.isoformat()}))
        known = Tokens(file)
        if is_known:
            known.check(f"Bearer {token}")
        else:
            assert f"expired at {expires.isoformat(timespec='seconds')}" in why(known, token)
    file.write_text(file.read_text() + "\n" + json.dumps({"sha256": tokens.hashed(token)}))
    Tokens(file).check(f"bearer {token}")


def test_a_file_of_tokens_is_read_again_when_it_changes(tmp_path):
    file = tmp_path / "tokens"
    first = tokens.add(file, days=None)
    known = Tokens(file)
    second = tokens.add(file, days=None)
    for token in (first, second):
        known.check(f"Bearer {token}")
    file.write_text(file.read_text().splitlines()[1])
    assert "is not known here" in why(known, first)
    file.write_text("nonsense")
    assert "cannot be read" in why(known, second, 503)
    file.unlink()
    assert "cannot be read" in why(known, second, 503)
    assert first not in repr(vars(known)) and second not in repr(vars(known))


def test_a_file_of_tokens_holds_hashes_alone_and_is_private(tmp_path):
    file = tmp_path / "folder" / "tokens"
    token = tokens.add(file, days=None)
    assert token not in file.read_text() and len(token) >= 40
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"sha256": "zz"}', '{"sha256": "00"}', '{"sha256": 3}', "\udcff",
             json.dumps({"sha256": "0" * 64, "expires": "soon"}),
             json.dumps({"sha256": "0" * 64, "expires": "2030-01-01T00:00:00"})]
)  # fmt: skip
def test_a_line_that_is_no_token_is_named(tmp_path, line):
    (tmp_path / "tokens").write_text(line, errors="surrogateescape")
    with pytest.raises(InputError, match="--token-file"):
        Tokens(tmp_path / "tokens")


def test_a_token_of_the_environment_must_be_long(monkeypatch):
    monkeypatch.setenv(tokens.VARIABLE, "short")
    with pytest.raises(InputError, match="has 5 characters"):
        tokens.from_environment()
    monkeypatch.setenv(tokens.VARIABLE, "long enough for nobody to guess")
    known = Tokens(fixed=[tokens.from_environment()])
    known.check(f"Bearer {os.environ[tokens.VARIABLE]}")
    assert "not known" in why(known, "another one that nobody knows")


def test_pages_of_other_places_may_not_ask(glyphs_root, tmp_path):
    learner = learner_of("classification", glyphs_root, tmp_path / "runs")
    with client_of(room_of(learner, tmp_path / "state")) as client:
        own, other = {"Origin": "http://127.0.0.1"}, {"Origin": "https://example.org"}
        assert client.get("/classes", headers=own).status_code == 200
        assert client.post("/classes", data={"name": "a"}, files=images(0), headers=other).status_code == 403
        assert client.get("/classes", headers={"Origin": "null"}).status_code == 403
        # A name that somebody else makes mean this machine.
        for host in ("example.org", "example.org:8000", "[", ""):
            assert client.get("/classes", headers={"Host": host}).status_code == 403, host
        for host in ("localhost:8000", "[::1]:8000"):
            assert client.get("/classes", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "is_so"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
    ],
)
def test_whose_address_is_this_machines_own(host, is_so):
    assert serve.is_loopback(host) is is_so


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--host", "0.0.0.0"], "others can reach it, and nobody needs a token"),
        (["--token-file", "none"], "--token-file none: cannot be read"),
        (["--port", "{port}"], "cannot be listened on"),
        (["--host", "192.0.2.1", "--token-file", "{tokens}"], "cannot be listened on"),
        (["--state", "{model}"], "cannot be written"),
    ],
)
def test_a_fault_is_told_before_anything_is_started(more, why, glyphs_root, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(tokens.VARIABLE, raising=False)
    model = model_of(glyphs_root, tmp_path)
    tokens.add(tmp_path / "tokens", days=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"port": taken.getsockname()[1], "tokens": tmp_path / "tokens", "model": model}
        monkeypatch.setattr("sys.argv", ["metashard", "serve", str(model), *(word.format(**names) for word in more)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 2 and why in capsys.readouterr().err


def test_a_token_is_made_by_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["metashard", "token", str(tmp_path / "tokens"), "--days", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    Tokens(tmp_path / "tokens").check(f"Bearer {capsys.readouterr().out.strip()}")


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pipeline.serving.app", None)
    monkeypatch.delattr("pipeline.serving.app")
    monkeypatch.delattr("pipeline.serve")
    monkeypatch.delitem(sys.modules, "pipeline.serve")
    monkeypatch.setattr("sys.argv", ["metashard", "serve", "x"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "pip install 'metashard[serve]'" in capsys.readouterr().err
