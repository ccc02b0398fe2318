"""Rooms in which untrained learners of every task are taught and asked over HTTP, without Ray, and what is sent to them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from small import small_config
from starlette.testclient import TestClient

from pipeline import build
from pipeline.data.images import encode_png
from pipeline.data.index import Index
from pipeline.data.outline import outline
from pipeline.errors import InputError
from pipeline.serving.app import application
from pipeline.serving.limits import Limits
from pipeline.serving.room import Room
from pipeline.serving.store import Store
from pipeline.serving.tokens import Tokens, hashed
from pipeline.start import started
from pipeline.teaching import adapted
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.assembled import Assembled
from pipeline.teaching.reading import support_of
from pipeline.teaching.source import Source

UNET: dict[str, Any] = {"kind": "unet", "width": 4, "depth": 2, "downsample": "stride"}
TASKS: dict[str, dict[str, Any]] = {
    "classification": {"learner": {"kind": "prototype"}},
    "verification": {"task": {"kind": "verification"}, "learner": {"kind": "cosine"}},
    "segmentation": {"task": {"kind": "segmentation"}, "model": UNET, "learner": {"kind": "prototype"}},
    "detection": {"task": {"kind": "detection"}, "model": UNET},
}
LIMITS = Limits()
URL = "http://127.0.0.1"
SIDE = 20
"""Of images that are sent, pixels: another one than a learner's."""


def learner_of(task: str, root: Path, runs: Path) -> Assembled:
    """The untrained learner, as a checkpoint would bring it."""
    config, index = small_config(root, runs, **TASKS[task]), Index.open(root)
    values = started(config, index, build.learner).state_dict()
    told = {"from": "a test", "step": 0, "sha256": "0"}
    return Source(config, outline(index, config.data.train), values, told).assembled()


def model_of(glyphs_root: Path, place: Path) -> Path:
    """The file of a model of two characters."""
    learner = learner_of("classification", glyphs_root, place / "runs")
    for name, numbers in (("a", (90, 91, 92)), ("b", (93, 94))):
        (place / "support" / name).mkdir(parents=True)
        for number in numbers:
            (place / "support" / name / f"{number}.png").write_bytes(picture(number))
    support = support_of(place / "support", learner).support
    adapted.save(Adapted(learner, support, origin={"from": "a test", "sha256": "0"}), place / "model.safetensors")
    return place / "model.safetensors"


def room_of(learner: Assembled, state: Path, *, limits: Limits = LIMITS, known: Adapted | None = None) -> Room:
    """A room of its own; as in `pipeline.serving.opening`, without a file or a checkpoint."""
    store = Store(state, "origin")
    try:
        return Room(learner, store, limits, origin={"from": "a test", "sha256": "0"}, known=known)
    except InputError:
        store.close()
        raise


@contextmanager
def client_of(room: Room, *, limits: Limits = LIMITS, tokens: Tokens | None = None) -> Iterator[TestClient]:
    app = application(room, tokens=tokens or Tokens(), limits=limits, closes=room.close)
    with TestClient(app, base_url=URL, raise_server_exceptions=False) as client:
        yield client


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


@contextmanager
def opened_to_browsers(task: str, root: Path, place: Path, *, token: str = "") -> Iterator[tuple[Room, str]]:
    """A room of an untrained learner in a folder of its own, and its URL."""
    room = room_of(learner_of(task, root, place / "runs"), place / "state")
    tokens = Tokens(fixed=[hashed(token)] if token else [])
    with listening(application(room, tokens=tokens, limits=LIMITS, closes=room.close)) as url:
        yield room, url


def picture(number: int, *, side: int = SIDE) -> bytes:
    """PNG of noise with something light in it, at (4, 4) to (12, 16): left, top, right, bottom are 4, 4, 16, 12."""
    values = np.random.Generator(np.random.Philox(number)).integers(0, 90, (side, side), dtype=np.uint8)
    values[4:12, 4:16] += 100
    return encode_png(values)


def images(*numbers: int) -> list[tuple[str, Any]]:
    return [("images", (f"{number}.png", picture(number))) for number in numbers]


def lesson(task: str, name: str, numbers: Sequence[int]) -> dict[str, Any]:
    """What is sent to teach a class."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4:12, 4:16] = 1
    files, data = images(*numbers), {"name": name}
    if task == "segmentation":
        files += [("masks", ("mask.png", encode_png(mask)))] * len(numbers)
    if task == "detection":
        data["boxes"] = json.dumps([[[4, 4, 16, 12]]] * len(numbers))
    return {"data": data, "files": files}
