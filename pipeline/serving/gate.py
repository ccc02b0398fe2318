"""What stands before every request: who may ask, how much may come, and how long the answer took."""

from __future__ import annotations

import sys
import time
from typing import final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.hosts import LOOPBACK, name_of
from pipeline.serving.limits import MIB, Limits, Refused
from pipeline.serving.metrics import Metrics
from pipeline.serving.tokens import Tokens

OPEN = "/healthz"
"""What may be asked without a token: whether the server lives."""
RETRY_S = 1
UNTOLD = 4 * MIB
"""Bytes of a body that does not tell its length. Ray Serve's proxy reads ahead of us without a limit: the sooner it is told to
stop, the less it holds."""


def refusal(refused: Refused) -> Response:
    """How a client is told."""
    headers = {}
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refused.status == 503:
        headers["Retry-After"] = str(RETRY_S)
    return JSONResponse({"error": refused.sentence}, refused.status, headers)


def _number(length: str) -> int:
    """What a header `Content-Length` says; what is no number is more than anybody takes."""
    return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else sys.maxsize


@final
class Gate:
    """An ASGI application around another one. What it refuses is refused before anything of the body is looked at."""

    def __init__(self, app: ASGIApp, *, tokens: Tokens, limits: Limits, metrics: Metrics):
        self._app, self._tokens, self._limits, self._metrics = app, tokens, limits, metrics
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status, own, held = time.perf_counter(), 500, 0, 0

        async def counted() -> Message:
            nonlocal own
            message = await receive()
            own += len(message.get("body", b""))
            if own > held:
                raise self._too_large(held)
            return message

        async def seen(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            try:
                held = self._admitted(scope["path"], Headers(scope=scope))
                self._under_way += held
            except Refused as refused:
                await refusal(refused)(scope, receive, seen)
            else:
                await self._app(scope, counted, seen)
        finally:
            self._under_way -= held
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if route != "other" else "other"
            self._metrics.seconds.labels(method, route, status).observe(time.perf_counter() - began_s)

    def _admitted(self, path: str, headers: Headers) -> int:
        """How many bytes a request may have: what it says, or little where it does not say it."""
        host = headers.get("host", "")
        # Pages of other places, open in a browser here, may send forms, but they cannot hide where they come from.
        if (origin := headers.get("origin")) and origin.partition("://")[2] != host:
            raise Refused(403, f"pages of {origin} may not ask this server; open its own page")
        if path != OPEN:
            if not self._tokens.is_needed and name_of(host) not in LOOPBACK:
                raise Refused(403, f"{host!r} is not this machine; ask by 127.0.0.1 or localhost")
            self._tokens.check(headers.get("authorization", ""))
        is_untold = "transfer-encoding" in headers
        length = min(UNTOLD, self._limits.body_bytes) if is_untold else _number(headers.get("content-length", "0"))
        if length > self._limits.body_bytes:
            raise self._too_large(self._limits.body_bytes)
        if self._under_way + length > self._limits.bytes_under_way:
            raise Refused(503, "too much is under way; try again soon")
        return length

    def _too_large(self, most: int) -> Refused:
        told = "" if most == self._limits.body_bytes else ", which is the most without Content-Length"
        return Refused(413, f"the body is larger than {most / MIB:g} MiB{told}; send less at once")
