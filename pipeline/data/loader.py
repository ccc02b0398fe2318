"""Turns draws into tensors, ahead of the step that needs them."""

from __future__ import annotations

import functools
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.data.images import resize, resize_mask, with_channels
from pipeline.data.modalities import IMAGE
from pipeline.data.sampler import Draw, assign
from pipeline.data.shards import Shards
from pipeline.episode import Batch, Episode
from pipeline.errors import InputError
from pipeline.labels import IGNORED
from pipeline.noise import Noise, Purpose

Drawn = TypeVar("Drawn")
Drawn_co = TypeVar("Drawn_co", covariant=True)
Drawn_contra = TypeVar("Drawn_contra", contravariant=True)


class Reader(NamedTuple):
    """How a draw becomes an episode: where its bytes lie and what is done to every image."""

    shards: Shards
    invert: bool
    size: int | None
    channels: int | None = None
    """How many every image is given; none: those of the data set."""
    masks: bool = False
    """Whether targets are a class for every pixel instead of one for every image."""
    boxes: int = 0
    """Places for boxes in the targets of an image; 0: targets are no boxes."""
    modalities: tuple[str, ...] = (IMAGE,)
    """What the channels of inputs are, one modality after another."""
    told: bool = False
    """Whether a sample may lack a modality besides the image: its channels are 0 then, and a further channel behind them says
    everywhere whether the sample has it, 1 or 0."""

    def episode(self, draw: Draw) -> Episode:
        """Inputs are float32 (samples, channels, height, width), integers scaled to [0, 1]; labels number the drawn classes.

        With `masks` targets are (samples, height, width): 1 + the number of the drawn class, 0 for what is of none, 255 for what
        is not to be looked at.

        With `boxes` they are (samples, boxes, 5) float32: left, top, right, bottom as shares of the image's sides, and 1 + the
        number of the drawn class, or minus that for what is not to be looked at; all 0 where there is no further box. Of a
        support image one object of the class that it was drawn for is looked at, chosen by the draw alone, so that a class of
        `shots` images has as many objects.
        """
        roles = (*self.modalities, *(("mask",) if self.masks else ()), *(("json",) if self.masks or self.boxes else ()))
        self.shards.bring(draw.rows.tolist(), roles)
        support = self._batch(draw.support, draw, is_support=True)
        return Episode(support, self._batch(draw.query, draw, is_support=False), ways=len(draw.classes))

    def _batch(self, by_class: Sequence[np.ndarray], draw: Draw, *, is_support: bool) -> Batch:
        rows, counts = np.concatenate(by_class), [len(own) for own in by_class]
        images = (self.stored(int(row)) for row in rows)
        inputs = self.inputs(rows, images, np.repeat(draw.turns, counts))
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        if self.boxes:
            targets = [
                self.boxes_of(int(row), int(way), draw, is_support=is_support)
                for row, way in zip(rows, labels, strict=True)
            ]
            return Batch(inputs, torch.from_numpy(np.stack(targets)))
        if not self.masks:
            return Batch(inputs, labels)
        masks = [self.mask_of(int(row), int(way), draw) for row, way in zip(rows, labels, strict=True)]
        return Batch(inputs, torch.from_numpy(np.stack(masks)))

    def stored(self, row: int) -> tuple[np.ndarray | None, ...]:
        """The modalities of a sample as stored, None for what it lacks.

        Raises:
            InputError: it must not lack it, or it has none of them.
        """
        index = self.shards.index
        there = [index.has(row, modality) for modality in self.modalities]
        if not (any(there) if self.told else all(there)):
            lacking = self.modalities[there.index(False)]
            way_out = "take it out" if self.told else "take it out, or set data.missing = mask"
            raise InputError(f"{index.root}: sample {index.key(row)!r} has no {lacking}; {way_out}")
        return tuple(
            self.shards.plane(row, modality) if is_there else None
            for modality, is_there in zip(self.modalities, there, strict=True)
        )

    def inputs(
        self, rows: Iterable[int], stored: Iterable[Sequence[np.ndarray | None]], turns: Iterable[int]
    ) -> Tensor:
        """The inputs of a batch from its rows, their modalities as stored and the quarter turns of each."""
        rows, turns = [int(row) for row in rows], [int(n) for n in turns]
        by_modality = zip(self.modalities, zip(*stored, strict=True), strict=True)
        parts = [part for modality, arrays in by_modality for part in self._parts(modality, rows, arrays, turns)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _parts(
        self, modality: str, rows: Sequence[int], arrays: Sequence[np.ndarray | None], turns: Sequence[int]
    ) -> list[Tensor]:
        """The channels of a modality (samples, channels, height, width), and that which says who has it where it is told."""
        # What the model is built for: an episode may well consist of odd images only.
        height, width, _ = self.shards.index.shape(0)
        channels = self.shards.index.channels(modality)
        if modality == IMAGE and self.channels is not None:
            channels = self.channels
        expected = (self.size or height, self.size or width, channels)
        dtype = next((array.dtype for array in arrays if array is not None), np.dtype(np.uint8))
        images = [
            np.zeros(expected, dtype) if array is None else self._image(modality, row, array, n)
            for row, array, n in zip(rows, arrays, turns, strict=True)
        ]
        for image, row in zip(images, rows, strict=True):
            if image.shape != expected:
                raise InputError(
                    f"{self.shards.index.root}: sample {self.shards.index.key(row)!r} is {image.shape}, not {expected} "
                    "(height, width, channels); set data.size, or pack with --size and --channels"
                )
        pixels = np.stack(images)
        white = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1
        if pixels.dtype != np.uint8:  # torch has neither all types nor byte orders
            pixels = pixels.astype(np.float32)
        inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(white)
        if modality == IMAGE:
            return [1 - inputs if self.invert else inputs]
        there = torch.tensor([float(array is not None) for array in arrays])
        return [inputs, there[:, None, None, None].expand(-1, 1, *inputs.shape[2:])] if self.told else [inputs]

    def mask_of(self, row: int, way: int, draw: Draw) -> np.ndarray:
        """The pixels' classes (height, width) int64 of a sample that was drawn for its class `way`."""
        index = self.shards.index
        own = index.class_names[draw.classes[way]]
        stored, classes = self.shards.mask(row, own)
        ways = {index.class_names[number]: 1 + place for place, number in enumerate(draw.classes)}
        meaning = np.zeros(IGNORED + 1, np.int64)
        meaning[IGNORED] = IGNORED
        meaning[1 : 1 + len(classes)] = [ways.get(name, 0) for name in classes]
        mask = meaning[stored if self.size is None else resize_mask(stored, self.size)]
        if not (mask == 1 + way).any():
            raise InputError(
                f"{index.root}: sample {index.key(row)!r} has no pixel of its class {own!r}, "
                "as it is read; take it out, or raise data.size"
            )
        return mask

    def boxes_of(self, row: int, way: int, draw: Draw, *, is_support: bool) -> np.ndarray:
        """The boxes (boxes, 5) float32 of a sample that was drawn for its class `way`."""
        index = self.shards.index
        what, own = f"{index.root}: sample {index.key(row)!r}", index.class_names[draw.classes[way]]
        found, classes = self.shards.boxes(row, own)
        ways = {index.class_names[number]: 1 + place for place, number in enumerate(draw.classes)}
        meaning = np.array([0, *(ways.get(name, 0) for name in classes)])
        values = found[:, 4].astype(np.int64)
        codes = np.sign(values) * meaning[np.abs(values)]
        mine = np.flatnonzero(codes == 1 + way)
        if not len(mine):
            raise InputError(f"{what} has no box of its class {own!r} that is to be looked at; take it out")
        if is_support:
            # A word of the draw itself: the same object for the same episode, whoever reads it.
            noise = Noise(0, Purpose.INSTANCE, row, zlib.crc32(np.concatenate(draw.support).astype("<i8").tobytes()))
            codes = -np.abs(codes)
            codes[mine[noise.below(len(mine))]] = 1 + way
        told = np.flatnonzero(codes)
        if len(told) > self.boxes:
            raise InputError(
                f"{what} has {len(told)} boxes of the episode's classes, and task.boxes = {self.boxes}; raise it"
            )
        targets = np.zeros((self.boxes, 5), np.float32)
        targets[: len(told), :4], targets[: len(told), 4] = found[told, :4], codes[told]
        return targets

    def _image(self, modality: str, row: int, image: np.ndarray, turns: int) -> np.ndarray:
        if self.size is not None and image.shape[:2] != (self.size, self.size):
            image = resize(image, self.size)
        if modality == IMAGE and self.channels is not None:
            image = with_channels(
                image, self.channels, f"{self.shards.index.root}: sample {self.shards.index.key(row)!r}"
            )
        return np.rot90(image, turns) if turns else image


class Share(NamedTuple):
    """A rank's part of a meta-batch: numbers of its episodes and the episodes."""

    numbers: list[int]
    episodes: list[Episode]


class Frozen(Protocol[Drawn_co]):
    """What says which samples make up an episode."""

    def draw(self, step: int, number: int) -> Drawn_co: ...


class Drawing(Frozen[Drawn_co], Protocol[Drawn_co]):
    """What says that of the episodes of training, and how much each of them costs."""

    lanes: int
    seed: int

    def costs(self, step: int, batch: int) -> list[float]: ...


class Reading(Protocol[Drawn_contra]):
    """What makes an episode of the samples that were drawn for it."""

    def episode(self, draw: Drawn_contra, /) -> Episode: ...


class Loader(Generic[Drawn]):
    """Reads this rank's episodes of the steps to come in the background; `waited_s` is what the loop waited for them.

    `read(step, number)` is asked for them, if given, in the place of its own threads. Use it as a context manager: leaving
    it ends its threads.
    """

    def __init__(
        self,
        sampler: Drawing[Drawn],
        reader: Reading[Drawn],
        *,
        batch: int,
        rank: int,
        world: int,
        depth: int = 2,
        threads: int = 1,
        read: Callable[[int, int], Future[Episode]] | None = None,
    ):
        self.sampler, self.reader, self.depth = sampler, reader, depth
        self.batch, self.rank, self.world = batch, rank, world
        self.numbers(0)  # refused here rather than at the first step
        self.waited_s = 0.0
        self._pending: dict[int, list[tuple[int, Future[Episode]]]] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        self._read = read or functools.partial(self._pool.submit, self.episode)

    def __enter__(self) -> Loader[Drawn]:
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def share(self, step: int, *, last: int) -> Share:
        """The episodes of `step`, asking already for those of the next `depth` steps before `last`."""
        for ahead in range(step, min(step + self.depth + 1, last)):
            if ahead not in self._pending:
                self._pending[ahead] = [(number, self._read(ahead, number)) for number in self.numbers(ahead)]
        began = time.perf_counter()
        asked = self._pending.pop(step)
        episodes = [future.result() for _, future in asked]
        self.waited_s = time.perf_counter() - began
        return Share([number for number, _ in asked], episodes)

    def numbers(self, step: int) -> list[int]:
        """The numbers of this rank's episodes of a meta-step: which they are follows from what they cost.

        Raises:
            InputError: as `assign`.
        """
        return assign(self.sampler.costs(step, self.batch), self.world, lanes=self.sampler.lanes)[self.rank]

    def episode(self, step: int, number: int) -> Episode:
        """The episode `number` of meta-step `step`, with the key of what is drawn while it is learned from."""
        word = Noise(self.sampler.seed, Purpose.CHANCE, step, number).word()
        return self.reader.episode(self.sampler.draw(step, number))._replace(key=torch.tensor(word >> 32))


def frozen(sampler: Frozen[Drawn], reader: Reading[Drawn], numbers: Iterable[int]):
    """Yield (number, episode) of the fixed evaluation episodes: those of step 0 of the sampler's own seed."""
    for number in numbers:
        yield number, reader.episode(sampler.draw(0, number))
