"""A server of classes without Ray, for tests of what stands in front of one: the same HTTP, one learner, nothing kept on disk."""

from __future__ import annotations

import base64
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response
from small import small_config

from pipeline import adapt, build
from pipeline.data.images import decode_mask, encode_png, resize_mask
from pipeline.data.index import Index
from pipeline.data.outline import outline
from pipeline.errors import InputError
from pipeline.start import started
from pipeline.teaching import adapted
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.answers import Mask, answers, as_json, opened
from pipeline.teaching.assembled import Assembled
from pipeline.teaching.source import Source
from pipeline.teaching.support import Support, joined, without

TASKS: dict[str, dict[str, Any]] = {
    "classification": {"learner": {"kind": "prototype"}},
    "verification": {"task": {"kind": "verification"}, "learner": {"kind": "cosine"}},
    "segmentation": {
        "task": {"kind": "segmentation"},
        "model": {"kind": "unet", "width": 4, "depth": 2},
        "learner": {"kind": "prototype"},
    },
    "detection": {
        "task": {"kind": "detection", "boxes": 6},
        "model": {"kind": "unet", "width": 4, "depth": 2, "stride": 4},
        "learner": {"kind": "gradient", "rule": {"kind": "sgd", "lr": 0.01}, "steps": 1},
    },
}
"""Sections of a run of each task; what they train on is packed glyphs, or scenes of them."""


def untrained(task: str, root: Path, place: Path) -> Assembled:
    """A learner of a task with its initial values."""
    config = small_config(root, place, **TASKS[task])
    index = Index.open(root)
    learner = started(config, index, build.learner)
    return Source(config, outline(index, config.data.train), learner.state_dict(), {"from": "nowhere"}).assembled()


class Classes:
    """What was taught so far."""

    def __init__(self, learner: Assembled):
        self.learner, self.support, self.model = learner, None, None
        self.version = 0
        self.lock = threading.Lock()

    @property
    def task(self) -> str:
        return self.learner.config.task.kind

    def become(self, support: Support | None) -> None:
        self.support, self.version = support, self.version + 1
        self.model = None if support is None else Adapted(self.learner, support, origin={"from": "nowhere"})

    def known(self) -> Adapted:
        if self.model is None:
            raise InputError("nothing is taught yet; teach a class first")
        return self.model

    def counts(self) -> list[dict[str, Any]]:
        if self.support is None:
            return []
        members = self.support.members().sum(0).tolist()
        return [{"name": n, "samples": c} for n, c in zip(self.support.classes, members, strict=True)]

    def sample(self, number: int) -> bytes:
        values = self.known().support.inputs[number].cpu()
        return encode_png((values.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def _targets(learner: Assembled, sizes: list, masks: list[bytes], boxes: str | None) -> torch.Tensor:
    match learner.config.task.kind:
        case "segmentation":
            height, _, _ = learner.inputs.shape
            read = [decode_mask(mask, "mask") for mask in masks]
            assert [mask.shape for mask in read] == sizes
            return torch.stack([torch.from_numpy(np.array(resize_mask(mask, height))).long() for mask in read])
        case "detection":
            given = json.loads(boxes or "[]")
            found = torch.zeros(len(sizes), max(map(len, given)), 5)
            for number, (own, (height, width)) in enumerate(zip(given, sizes, strict=True)):
                for place, (left, top, right, bottom) in enumerate(own):
                    assert 0 <= left < right <= width and 0 <= top < bottom <= height
                    found[number, place] = torch.tensor([left / width, top / height, right / width, bottom / height, 1])
            return found
        case _:
            return torch.zeros(len(sizes), dtype=torch.long)


def _told(answer: Any, model: Adapted) -> dict[str, Any]:
    found = as_json(answer, model)
    if isinstance(answer, Mask):
        return {**found, "mask": base64.b64encode(encode_png(answer.mask)).decode(), "classes": list(answer.classes)}
    if "nearest" in found:
        near = answer.nearest
        label = model.support.classes[int(model.support.targets[near])]
        found["nearest"] = {"id": near, "name": model.support.names[near], "class": label}
    return found


def application(learner: Assembled, *, token: str = "") -> FastAPI:
    """The server of a learner."""
    app, classes = FastAPI(), Classes(learner)
    app.state.classes = classes

    _refusing(app, token)
    _teaching(app, classes)
    _asking(app, classes)
    return app


def _refusing(app: FastAPI, token: str) -> None:
    @app.middleware("http")
    async def authorized(request: Request, call_next):
        if token and request.headers.get("authorization") != f"Bearer {token}":
            return JSONResponse({"error": "the token is missing or wrong; give the server's"}, 401)
        return await call_next(request)

    @app.exception_handler(InputError)
    async def refused(request: Request, error: InputError):
        return JSONResponse({"error": str(error)}, 409 if request.url.path == "/model" else 400)


def _teaching(app: FastAPI, classes: Classes) -> None:
    learner = classes.learner

    @app.get("/classes")
    def listed(offset: int = 0, limit: int = 100) -> dict[str, Any]:
        found = None if classes.model is None else classes.model.calibration
        return {
            "task": classes.task,
            "total": len(classes.counts()),
            "most": learner.most_ways,
            "size": learner.inputs.shape,
            "accuracy": found and found.accuracy,
            "samples": found.samples if found else 0,
            "copies": found.copies if found else False,
            "threshold": found and found.threshold,
            "classes": classes.counts()[offset : offset + limit],
        }

    @app.post("/classes", status_code=201)
    def taught(
        name: Annotated[str, Form()],
        images: list[UploadFile],
        masks: Annotated[list[UploadFile] | None, File()] = None,
        boxes: Annotated[str, Form()] = "",
    ) -> dict[str, Any]:
        read = [learner.inputs.sample([each.file.read()], f"image {each.filename!r}") for each in images]
        sizes = [arrays[0].shape[:2] for arrays in read if arrays[0] is not None]
        targets = _targets(learner, sizes, [mask.file.read() for mask in masks or []], boxes)
        names = tuple(str(each.filename) for each in images)
        support = Support((name,), learner.inputs.tensor(read), targets, names)
        with classes.lock:
            classes.become(support if classes.support is None else joined(classes.support, support))
            (count,) = [each["samples"] for each in classes.counts() if each["name"] == name]
            model = classes.known()
        return {"name": name, "samples": count, "accuracy": model.calibration.accuracy, "warnings": adapt.doubts(model)}

    @app.delete("/classes/{name:path}", status_code=204)
    def forgotten(name: str) -> Response:
        with classes.lock:
            if classes.support is None or name not in classes.support.classes:
                return JSONResponse({"error": f"class {name!r}: is not known; see GET /classes"}, 404)
            left = without(classes.support, classes.support.classes.index(name))
            classes.become(left if left.ways else None)
        return Response(status_code=204)


def _asking(app: FastAPI, classes: Classes) -> None:
    learner = classes.learner

    @app.post("/predict")
    def predicted(images: list[UploadFile], threshold: float | None = None) -> dict[str, Any]:
        model, told = classes.known(), []
        for each in images:
            try:
                asked = opened(model, each.file.read(), str(each.filename))
                (answer,) = answers(model, [asked], threshold=threshold)
                told.append({"name": each.filename, **_told(answer, model)})
            except InputError as error:
                told.append({"name": each.filename, "error": str(error)})
        return {"predictions": told, "version": classes.version}

    @app.post("/compare")
    def compared(images: list[UploadFile]) -> dict[str, Any]:
        read = [learner.inputs.sample([each.file.read()], f"image {each.filename!r}") for each in images]
        embed = learner.embedder(learner.inputs.tensor(read))
        one, other = embed(learner.inputs.tensor(read))
        likeness = float(one @ other)
        return {"same": likeness >= 0.9, "likeness": likeness, "threshold": 0.9}

    @app.get("/samples/{number}")
    def sample(number: int) -> Response:
        return Response(classes.sample(number), media_type="image/png")

    @app.get("/model")
    def model() -> Response:
        with tempfile.TemporaryDirectory() as place:
            adapted.save(classes.known(), Path(place) / "model")
            return Response((Path(place) / "model").read_bytes(), media_type="application/octet-stream")


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The URL of an ASGI application that is served by a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
