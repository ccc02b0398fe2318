"""The verb `page`: what it refuses before it begins, whom it answers, and that its page names no other host."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from rooms import listening, opened_to_browsers

from pipeline import page_server
from pipeline.errors import InputError
from pipeline.serving.client import Server

NEAR = "http://127.0.0.1:8000"


@pytest.fixture
def api(glyphs_root, tmp_path):
    with opened_to_browsers("classification", glyphs_root, tmp_path, token="secret") as (_, url):
        yield url


@pytest.fixture
def secret(tmp_path) -> Path:
    (tmp_path / "token").write_text("secret\n")
    return tmp_path / "token"


def test_a_token_is_in_a_file_or_the_environment(secret, monkeypatch):
    monkeypatch.delenv(page_server.VARIABLE, raising=False)
    assert page_server.token(NEAR, None) == ""
    assert page_server.token(NEAR, secret) == page_server.token("https://far.example", secret) == "secret"
    monkeypatch.setenv(page_server.VARIABLE, "other")
    assert page_server.token(NEAR, None) == "other" and page_server.token(NEAR, secret) == "secret"
    with pytest.raises(
        InputError, match="can be read on the way; use https, or ssh -L 8000:127.0.0.1:8000 far.example"
    ):
        page_server.token("http://far.example:8000", secret)


@pytest.mark.parametrize("content", [b"", b"two words", b'{"sha256": "ab"}', b"\xff\xfe", "schlüssel".encode()])
def test_what_is_no_token_is_refused_and_not_repeated(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match="--token-file .*: (is no token|cannot be read)") as caught:
        page_server.token(NEAR, tmp_path / "file")
    assert "words" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        page_server.token(NEAR, tmp_path / "absent")


def test_it_is_refused_before_it_begins(api, secret, monkeypatch):
    for name in (*page_server.QUIET, page_server.PLACE, page_server.VARIABLE):
        monkeypatch.setenv(name, "")
    with pytest.raises(InputError, match="does not answer"):
        page_server.serve("http://127.0.0.1:9", port=0)
    with pytest.raises(InputError, match="a token is needed"):
        page_server.serve(api, port=0)
    with socket.socket() as taken:
        taken.bind((page_server.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        for wrong in (port, 70_000, -1):
            with pytest.raises(InputError, match=rf"--port {wrong}: cannot be had .* choose another"):
                page_server.serve(api, token_file=secret, port=wrong)


def test_it_answers_its_own_page_on_this_machine_and_loads_nothing_from_elsewhere(api, monkeypatch, tmp_path):
    monkeypatch.setenv(page_server.PLACE, str(tmp_path))
    for name, value in page_server.QUIET.items():
        monkeypatch.setenv(name, value)
    server = Server(api, token="secret")
    with listening(page_server.guarded(page_server.app(server))) as url, httpx.Client(base_url=url) as client:
        found = client.get("/")
        assert found.status_code == 200 and "secret" not in found.text
        assert "default-src 'self'" in found.headers["content-security-policy"]
        assert not re.findall(r'(?:src|href)="(?:https?:)?//[^"]*"', found.text)
        assert client.get("/", headers={"Host": "localhost:7860"}).status_code == 200
        for head in ({"Host": "evil.example"}, {"Host": "[::1"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
            assert client.get("/", headers=head).status_code == 403
        assert client.post("/gradio_api/upload", headers={"Origin": url}).status_code != 403
        assert client.get("/gradio_api/file=/etc/passwd").status_code == 403
        missing = client.get("/model")
        assert missing.status_code == 409 and missing.text.startswith("no class is taught yet; teach one")
        large = {"files": ("x", bytes(page_server.LARGEST + 1))}
        assert client.post("/gradio_api/upload", files=large, headers={"Origin": url}).status_code == 413
    server.close()


@pytest.mark.slow
@pytest.mark.smoke
def test_the_command_says_where_the_page_is_and_ends_when_it_is_interrupted(api, secret):
    command = [sys.executable, "-m", "pipeline.cli", "page", api, "--token-file", str(secret), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        said = process.stdout.readline()
        url = said.split()[1]
        for _ in range(200):
            try:
                assert httpx.get(url, trust_env=False).status_code == 200
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        process.send_signal(2)
        assert process.wait(timeout=60) == 0 and "page  ended" in process.stderr.read()
