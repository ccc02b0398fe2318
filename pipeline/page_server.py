"""The verb `page`: a page for people in front of `metashard serve`, on this machine alone and without the internet."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.errors import InputError
from pipeline.serving.hosts import LOOPBACK, name_of
from pipeline.serving.tokens import VARIABLE

# What these need is an extra of the package, and slow to import.
if TYPE_CHECKING:
    from fastapi import FastAPI

    from pipeline.serving.client import Server

HOST = "127.0.0.1"
NAMES = {HOST, "localhost"}
"""What a browser on this machine may call it: a name that somebody else's server of names gives is none of these."""
LARGEST = 64 * 2**20
"""Bytes of a file that the page takes."""
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""What a token may be (RFC 6750, section 2.1)."""
FILE = "model.safetensors"
PLACE = "GRADIO_TEMP_DIR"
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Variables by which libraries are told not to report home."""
POLICY = "; ".join(
    (
        "default-src 'self'",
        # The library's own page has scripts inside, and makes functions of templates.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""What a browser may load: nothing from elsewhere (Content Security Policy, level 3)."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def serve(url: str, *, token_file: Path | None = None, port: int) -> None:
    """Show the page for the server at a URL until it is interrupted.

    Raises:
        InputError: no server answers there, it refuses the token, or the port is not to be had.
    """
    os.environ.update(QUIET)
    try:
        import uvicorn

        from pipeline.serving import page  # noqa: F401
        from pipeline.serving.client import Server
    except ImportError as error:
        raise InputError(f"metashard page needs gradio ({error}); pip install 'metashard[serve]'") from error
    server = Server(url, token=token(url, token_file))
    with closing(server), closing(_socket(port)) as listens, TemporaryDirectory(prefix="metashard-page-") as place:
        # What a browser sends lies there, and is gone with the page.
        os.environ[PLACE] = place
        asked = guarded(app(server))
        print(f"page  http://{HOST}:{listens.getsockname()[1]}/  of {server.url}; Ctrl-C ends it", flush=True)
        # Where whoever started this process had SIGINT ignored, the server ends by it all the same, without this exception.
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(asked, log_level="warning")).run(sockets=[listens])
        print("page  ended", file=sys.stderr)


def token(url: str, file: Path | None) -> str:
    """The token in a file, or in the environment where no file is named; empty where there is none.

    Raises:
        InputError: what is there is none, or it would be sent to another machine where everybody on the way can read it.
    """
    if file is None:
        found, where = os.environ.get(VARIABLE, ""), VARIABLE
        if not found:
            return ""
    else:
        where = f"--token-file {file}"
        try:
            found = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: cannot be read ({error}); name a file that holds the token alone") from error
    if not TOKEN.fullmatch(found):
        raise InputError(f"{where}: is no token; give the one that people ask the server with, and nothing else")
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise InputError(
            f"{url}: a token over http can be read on the way; use https, or ssh -L 8000:127.0.0.1:8000 {parts.hostname} and "
            "http://127.0.0.1:8000"
        )
    return found


def app(server: Server) -> FastAPI:
    """The page and the adapted model of a server, to be served."""
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import PlainTextResponse, Response

    from pipeline.serving.page import MODEL, NAMED, STYLE, THEME, page

    found = FastAPI(openapi_url=None)

    @found.get(MODEL)
    def model() -> Response:
        try:
            content = server.model()
        except InputError as error:
            return PlainTextResponse(str(error), status_code=409)
        name = {"Content-Disposition": f'attachment; filename="{FILE}"'}
        return Response(content, media_type="application/octet-stream", headers=name)

    async def mounted() -> FastAPI:
        return gr.mount_gradio_app(
            found,
            page(server, told),
            path="/",
            server_name=HOST,
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=LARGEST,
            ssr_mode=False,
            mcp_server=False,
            theme=THEME,
            css=STYLE,
            js=NAMED,
        )

    told = server.taught()
    # Where no event loop runs, the library makes some that nobody closes.
    return asyncio.run(mounted())


def guarded(
    asked: Callable[[Scope, Receive, Send], Awaitable[None]],
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI application for its own page in browsers of this machine: other sites' pages may neither ask it by a name of theirs
    that leads here nor send it forms, and nothing is loaded from elsewhere."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await asked(scope, receive, send)
        heads = dict(scope["headers"])
        host, origin = (heads.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if name_of(host) not in NAMES or (origin and origin != f"http://{host}"):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            return await send({"type": "http.response.body", "body": b"ask this page by its own address\n"})

        async def told(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                more = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        await asked(scope, receive, told)

    return answer


def _socket(port: int) -> socket.socket:
    """What listens at a port of this machine; at any free one for 0."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise InputError(
            f"--port {port}: cannot be had ({error}); choose another, or 0 for any that is free"
        ) from error
    return found
