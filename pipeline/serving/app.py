"""The HTTP interface of a room: an ASGI application, whoever runs it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from pipeline.errors import InputError
from pipeline.serving import schema
from pipeline.serving.gate import Gate, refusal
from pipeline.serving.lessons import lesson
from pipeline.serving.likes import Likes
from pipeline.serving.limits import Limits, Refused, class_name
from pipeline.serving.metrics import KIND, Metrics
from pipeline.serving.questions import Questions
from pipeline.serving.room import Learned, Room
from pipeline.serving.samples import png
from pipeline.serving.tokens import Tokens
from pipeline.serving.uploads import Form, received
from pipeline.teaching.adapted import packed
from pipeline.teaching.calibration import MEASURES

READERS = 2
"""Threads that read image files."""
MOST_CHANGES = 16
"""Changes that wait for one another, at most."""
MODEL_FILE = "model.safetensors"
Result = TypeVar("Result")


def application(room: Room, *, tokens: Tokens, limits: Limits, closes: Callable[[], None] = lambda: None) -> ASGIApp:
    """The routes of a room behind its gate; `closes` is called as it ends."""
    metrics, readers = Metrics(), ThreadPoolExecutor(READERS, thread_name_prefix="readers")
    questions, desk = Questions(room, metrics, readers=readers), _Desk()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        questions.close()
        desk.close()
        readers.shutdown()
        closes()

    # The pages that FastAPI has for humans fetch scripts from the internet.
    app = FastAPI(title="metashard serve", docs_url=None, redoc_url=None, lifespan=lifespan, responses=schema.ERRORS)
    _tell_errors(app)
    _about(app, room, metrics)
    _changes(app, room, limits, desk)
    _answers(app, room, limits, questions)
    return Gate(app, tokens=tokens, limits=limits, metrics=metrics)


class _Desk:
    """The thread in which changes are made, one after another. A change that has begun ends, whoever still waits for it."""

    def __init__(self) -> None:
        self._thread, self._waiting = ThreadPoolExecutor(1, thread_name_prefix="changes"), 0

    def close(self) -> None:
        self._thread.shutdown()

    async def do(self, change: Callable[..., Result], *what: Any) -> Result:
        """Raises:
        Refused: too many wait already.
        """
        if self._waiting >= MOST_CHANGES:
            raise Refused(503, f"{self._waiting} changes wait already; try again soon")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, change, *what)
        finally:
            self._waiting -= 1


def _tell_errors(app: FastAPI) -> None:
    """Errors as JSON of one sentence, whoever raised them."""

    def told(status: int, sentence: str) -> Response:
        return refusal(Refused(status, sentence))

    def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return told(400, f"{first['loc'][-1]} = {first.get('input')!r}: {first['msg']}")

    def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return told(error.status_code, f"{error.detail}; see /openapi.json")

    def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return refusal(error)

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(InputError, lambda _, error: told(400, str(error)))
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientDisconnect, lambda *_: told(400, "the connection was closed"))
    app.add_exception_handler(Exception, lambda *_: told(500, "the server failed; its log says how"))


def _about(app: FastAPI, room: Room, metrics: Metrics) -> None:
    """What there is."""
    kind = room.learner.config.task.kind

    @app.get("/healthz", response_model=schema.Health)
    async def healthz() -> Response:
        return JSONResponse({"status": "ok", "task": kind, "classes": len(room.snapshot.counts)})

    @app.get("/classes", response_model=schema.Classes)
    async def classes(
        offset: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=0, le=1000)] = 100
    ) -> Response:
        now, own = room.snapshot, list(room.snapshot.counts.items())[offset : offset + limit]
        found = None if now.model is None else now.model.calibration
        return JSONResponse(
            {
                "task": kind,
                "total": len(now.counts),
                "most": room.most,
                "size": list(room.learner.inputs.shape),
                "lacks": now.lacks,
                "measure": MEASURES[kind],
                "accuracy": found and found.accuracy,
                "samples": found.samples if found else 0,
                "copies": bool(found and found.copies),
                "threshold": found and found.threshold,
                "classes": [{"name": name, "samples": count} for name, count in own],
            }
        )

    @app.get("/samples/{number}", response_class=Response, responses=schema.PNG)
    async def sample(number: int) -> Response:
        return Response(png(room.snapshot, number), media_type="image/png")

    @app.get("/model", response_class=Response, responses=schema.FILE)
    async def model() -> Response:
        content = await asyncio.to_thread(packed, room.snapshot.answering)
        told = {"Content-Disposition": f'attachment; filename="{MODEL_FILE}"'}
        return Response(content, media_type="application/octet-stream", headers=told)

    @app.get("/metrics", response_class=Response)
    async def tell_metrics() -> Response:
        now = room.snapshot
        metrics.classes.set(len(now.counts))
        metrics.samples.set(len(now.ids))
        metrics.version.set(now.version)
        return Response(metrics.text(), headers={"Content-Type": KIND})


def _changes(app: FastAPI, room: Room, limits: Limits, desk: _Desk) -> None:
    """What teaches and deletes."""

    def teach(name: str, form: Form) -> Learned:
        return room.teach(name, lesson(name, form, room.learner))

    @app.post("/classes", status_code=201, response_model=schema.Learned, openapi_extra=schema.LESSON)
    async def post(request: Request) -> Response:
        form = await received(request, limits)
        name = class_name(form.texts.get("name", ""))
        room.check(name, 1)
        return JSONResponse((await desk.do(teach, name, form))._asdict(), 201)

    @app.delete("/classes/{name:path}", status_code=204)
    async def delete(name: str) -> Response:
        await desk.do(room.forget, name)
        return Response(status_code=204)


def _answers(app: FastAPI, room: Room, limits: Limits, questions: Questions) -> None:
    """What is asked about images."""
    likes = Likes(room)

    @app.post("/predict", response_model=schema.Predictions, openapi_extra=schema.IMAGES)
    async def predict(request: Request, threshold: float | None = None) -> Response:
        form = await received(request, limits)
        if threshold is not None and not math.isfinite(threshold):
            raise Refused(400, f"threshold = {threshold}: is no number; leave it out")
        if not (files := form.files.get("images", [])):
            raise Refused(400, "images: there are none; send at least one")
        return JSONResponse((await questions.ask(files, threshold=threshold))._asdict())

    @app.post("/compare", response_model=schema.Compared, openapi_extra=schema.IMAGES)
    async def of_two(request: Request) -> Response:
        form = await received(request, limits)
        if len(files := form.files.get("images", [])) != 2:
            raise Refused(400, f"images: {len(files)}; send exactly 2")
        images = await questions.read(files)
        for image in images:
            if image.inputs is None:
                raise Refused(400, image.error)
        one, other = (image.inputs for image in images if image.inputs is not None)
        return JSONResponse((await asyncio.to_thread(likes.of, one, other))._asdict())
