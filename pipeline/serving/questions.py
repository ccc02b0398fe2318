"""Images that are asked about: read side by side, answered together, a batch being whatever has come while the last one was."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from pipeline.data.images import encode_png
from pipeline.errors import InputError
from pipeline.serving.metrics import Metrics
from pipeline.serving.room import Room, Snapshot
from pipeline.serving.uploads import File
from pipeline.teaching.adapted import Label
from pipeline.teaching.answers import Answer, Mask, answered, as_json
from pipeline.teaching.assembled import Assembled

MOST = 64
"""Images of a batch, unless one request has more."""
SMALL = 8192
"""Bytes of a file that is read where it is answered: to hand it from thread to thread would take longer than to read it."""


class Read(NamedTuple):
    """An image as the learner takes it (1, channels, height, width), and its own height and width; or why it cannot be read."""

    name: str
    inputs: Tensor | None
    size: tuple[int, int] = (0, 0)
    error: str = ""


class Told(NamedTuple):
    """What is said of the images of a request, as JSON values in their order, by which version of what was taught."""

    predictions: list[dict[str, Any]]
    version: int


class _Question(NamedTuple):
    images: Sequence[File | Read]
    threshold: float | None
    told: asyncio.Future[Told]


def read(learner: Assembled, file: File) -> Read:
    """An image file; as a tensor at once, which is small however large the image is."""
    try:
        arrays = learner.inputs.sample([file.data], f"image {file.name!r}")
        shape = next(array for array in arrays if array is not None).shape
        return Read(file.name, learner.inputs.tensor([arrays]), (shape[0], shape[1]))
    except InputError as error:
        return Read(file.name, None, error=str(error))


@final
class Questions:
    """Batches of one room. Files are read by `readers`, answers are worked out by one thread."""

    def __init__(self, room: Room, metrics: Metrics, *, readers: ThreadPoolExecutor):
        self._room, self._metrics, self._readers = room, metrics, readers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._waiting: list[_Question] = []
        self._working: asyncio.Task[None] | None = None

    def close(self) -> None:
        self._thread.shutdown()

    async def read(self, files: Sequence[File]) -> list[Read]:
        loop = asyncio.get_running_loop()
        found = [loop.run_in_executor(self._readers, read, self._room.learner, file) for file in files]
        return list(await asyncio.gather(*found))

    async def ask(self, files: Sequence[File], *, threshold: float | None) -> Told:
        """What is said of image files; one that cannot be read has an error in its place.

        Raises:
            Refused: nothing can be said yet.
            InputError: the learner's answer is not finite.
        """
        images = files if all(len(file.data) <= SMALL for file in files) else await self.read(files)
        question = _Question(images, threshold, asyncio.get_running_loop().create_future())
        self._waiting.append(question)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await question.told

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._next()
            found = await loop.run_in_executor(self._thread, self._answer, batch)
            for question, told in zip(batch, found, strict=True):
                if question.told.done():
                    continue  # whoever asked is gone
                if isinstance(told, Exception):
                    question.told.set_exception(told)
                else:
                    question.told.set_result(told)

    def _next(self) -> list[_Question]:
        """The questions that have waited longest, whole."""
        count, images = 1, len(self._waiting[0].images)
        for question in self._waiting[1:]:
            images += len(question.images)
            if images > MOST:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def _answer(self, batch: list[_Question]) -> list[Told | Exception]:
        """All of a batch is answered by one snapshot."""
        snapshot = self._room.snapshot
        found: dict[int, Told | Exception] = {}
        for threshold in {question.threshold for question in batch}:
            own = [number for number, question in enumerate(batch) if question.threshold == threshold]
            try:
                told = self._together(snapshot, [batch[number] for number in own], threshold)
            except InputError as error:
                # One question must not spoil the others.
                told = [error] if len(own) == 1 else [self._answer([batch[number]])[0] for number in own]
            except Exception as error:
                told = [error] * len(own)
            found |= dict(zip(own, told, strict=True))
        return [found[number] for number in range(len(batch))]

    def _together(self, snapshot: Snapshot, batch: list[_Question], threshold: float | None) -> list[Told]:
        model = snapshot.answering
        asked = [
            [image if isinstance(image, Read) else read(self._room.learner, image) for image in question.images]
            for question in batch
        ]
        known = [image for images in asked for image in images if image.inputs is not None]
        self._metrics.batch.observe(len(known))
        self._metrics.refused.inc(sum(map(len, asked)) - len(known))
        inputs = [image.inputs for image in known if image.inputs is not None]
        answers = iter(
            answered(model, torch.cat(inputs), [image.size for image in known], threshold=threshold) if known else []
        )
        return [
            Told(
                [
                    {"name": image.name, "error": image.error}
                    if image.inputs is None
                    else {"name": image.name, **told_of(next(answers), snapshot)}
                    for image in images
                ],
                snapshot.version,
            )
            for images in asked
        ]


def told_of(answer: Answer, snapshot: Snapshot) -> dict[str, Any]:
    """An answer as JSON values: with the sample of the support that is nearest, and with a mask as PNG."""
    model = snapshot.answering
    said = as_json(answer, model)
    match answer:
        case Label(nearest=place):
            way = int(model.support.targets[place])
            said["nearest"] = {
                "id": snapshot.ids[place],
                "name": model.support.names[place],
                "class": model.support.classes[way],
            }
        case Mask(mask=mask, classes=classes):
            said |= {"mask": base64.b64encode(encode_png(mask)).decode(), "classes": list(classes)}
        case _:
            pass
    return said
