"""A web server for tests that serves a folder with ranges, and misbehaves as often as it is told to."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SLOW_S = 0.6


class Web:
    """`script` holds what goes wrong in the next answers to ranges of tars, one word each; `ranges` what was asked for."""

    def __init__(self, root: Path):
        self.root = root
        self.script: list[str] = []
        self.always = ""
        self.ranges: list[tuple[str, int, int]] = []
        self.ignores_if_match = False
        self.lock = threading.Lock()
        self.url = ""

    def next_fault(self) -> str:
        with self.lock:
            return self.script.pop(0) if self.script else self.always

    def tag(self, content: bytes) -> str:
        return f'"{hashlib.md5(content).hexdigest()}"'


@contextmanager
def web(root: Path) -> Iterator[Web]:
    """Serve `root` on a free port."""
    served = Web(root)

    class Handler(_Handler):
        web = served

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    web: Web

    def log_message(self, format, *args) -> None:
        pass

    def content(self) -> bytes | None:
        path = self.web.root / self.path.lstrip("/")
        return path.read_bytes() if path.is_file() else None

    def do_HEAD(self) -> None:
        if (content := self.content()) is None:
            return self.answer(404)
        self.answer(200, {"Content-Length": len(content), "ETag": self.web.tag(content)})

    def do_GET(self) -> None:
        if (content := self.content()) is None:
            return self.answer(404)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        start, stop = int(match[1]), min(int(match[2]) + 1, len(content))
        is_tar = self.path.endswith(".tar")
        if is_tar:
            with self.web.lock:
                self.web.ranges.append((self.path, start, stop))
        wanted = self.headers.get("If-Match")
        if wanted not in (None, self.web.tag(content)) and not self.web.ignores_if_match:
            return self.answer(412)
        self.send(content, start, stop, self.web.next_fault() if is_tar else "")

    def send(self, content: bytes, start: int, stop: int, fault: str) -> None:
        head = {"ETag": self.web.tag(content), "Content-Length": stop - start}
        body = content[start:stop]
        match fault:
            case "whole":
                return self.answer(200, {**head, "Content-Length": len(content)}, content)
            case "short":
                body = body[: len(body) // 2]
            case "other":
                start, stop = start + 1, stop + 1
            case "slow":
                time.sleep(SLOW_S)
            case "reset":
                # Closing with nothing to linger for sends a reset.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return self.connection.close()
            case "away":
                return self.answer(302, {"Location": "/elsewhere.tar?signature=SECRET"})
            case "":
                pass
            case code:
                return self.answer(int(code))
        self.answer(206, {**head, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, body)

    def answer(self, code: int, head: dict = {}, body: bytes = b"") -> None:  # noqa: B006
        self.send_response(code)
        for name, value in head.items():
            self.send_header(name, str(value))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            pass  # the client has heard enough
