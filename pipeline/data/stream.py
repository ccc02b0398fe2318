"""Labelled images for supervised training: every sample of a split once per epoch, streamed from the tars.

What is drawn is known from the index alone, so that it does not depend on ranks, and a resume starts in the middle:
a lane's epoch is its shards in an order of their own, one window of samples after another, each window shuffled.
"""

from __future__ import annotations

import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.data.index import Index
from pipeline.data.loader import Reader
from pipeline.data.remote import RemoteFile
from pipeline.data.sampler import QUARTER_TURNS, classes_of
from pipeline.data.scan import role_of
from pipeline.episode import Batch, Episode
from pipeline.errors import InputError
from pipeline.noise import Noise, Purpose

WINDOW_BYTES = 256 * 2**20
"""What the windows of all lanes hold in memory at most, if nobody says otherwise."""


class Window(NamedTuple):
    """A stretch of a lane's epoch: what is shuffled, and held in memory, together."""

    lane: int
    epoch: int
    number: int


class Piece(NamedTuple):
    """What a window gives to a batch: rows of the index, the quarter turns and the label of each."""

    window: Window
    rows: np.ndarray
    turns: np.ndarray
    labels: np.ndarray


class Stream:
    """Draws the parts of supervised batches, `samples` images each, from one split of an index.

    Labels number the split's classes; with `turns` every class counts four times, and each epoch draws one quarter turn for
    every sample. Part n belongs to lane n mod lanes. A lane passes over a group of shards that is dealt anew every epoch, and
    shuffles what it reads in windows of `window` samples; None: as many as 256 MiB of the tars hold, over all lanes. Tars hold
    blocks of one class, so that a window with few blocks knows few classes. It belongs to one thread.
    """

    def __init__(
        self,
        index: Index,
        split: str,
        *,
        samples: int,
        batch: int,
        seed: int,
        turns: bool,
        lanes: int = 1,
        window: int | None,
    ):
        self.index, self.samples, self.batch, self.seed = index, samples, batch, seed
        self.turns, self.lanes = QUARTER_TURNS if turns else 1, lanes
        self.window = window or self._fitting()
        self.labels = np.full(len(index), -1, np.int32)
        for label, class_id in enumerate(classes_of(index, split)):
            self.labels[index.postings(int(class_id))] = label
        # Samples as they lie in the tars, one shard behind the other.
        self._order = np.lexsort((index.offsets("image"), index.shard_of)).astype(np.int32)
        self._ends = np.cumsum(np.bincount(index.shard_of, minlength=len(index.shards)))
        self.counts = np.bincount(index.shard_of[self.labels >= 0], minlength=len(index.shards))
        self._starts = [[0] for _ in range(lanes)]
        self._shuffled = lru_cache(maxsize=2 * lanes)(self._shuffle)
        self._check(split)

    def _check(self, split: str) -> None:
        holding = int((self.counts > 0).sum())
        if self.lanes > holding:
            raise InputError(
                f"data.lanes = {self.lanes} is more than the {holding} shards of {self.index.root} with samples of split "
                f"{split!r}; lower it"
            )
        if self.lanes > self.batch:
            raise InputError(
                f"data.lanes = {self.lanes} is more than meta.batch = {self.batch}, so that some lanes would never be read; "
                "lower the one or raise the other"
            )

    def _fitting(self) -> int:
        """The samples of a lane's window when all lanes together may hold `WINDOW_BYTES`."""
        bytes_of_a_sample = sum(shard.bytes for shard in self.index.shards) / len(self.index)
        return max(1, int(WINDOW_BYTES / self.lanes / bytes_of_a_sample))

    def costs(self, step: int, batch: int) -> list[float]:
        """What every part of a batch costs, the same for all of them."""
        return [self.samples] * batch

    def draw(self, step: int, number: int) -> list[Piece]:
        """Part `number` of the batch of meta-step `step`."""
        lane = number % self.lanes
        of_lane = len(range(lane, self.batch, self.lanes))
        position = (step * of_lane + number // self.lanes) * self.samples
        end, pieces = position + self.samples, []
        while position < end:
            epoch, offset = self._place(lane, position)
            window, within = Window(lane, epoch, offset // self.window), offset % self.window
            rows, turns = self._shuffled(window)
            part = slice(within, within + end - position)
            labels = self.labels[rows[part]] * self.turns + turns[part]
            pieces.append(Piece(window, rows[part], turns[part], labels))
            position += len(labels)
        return pieces

    def _place(self, lane: int, position: int) -> tuple[int, int]:
        """The epoch of a lane that a position of its stream lies in, and where in there."""
        starts = self._starts[lane]
        while starts[-1] <= position:
            starts.append(starts[-1] + int(self.counts[self.shards(lane, len(starts) - 1)].sum()))
        epoch = bisect_right(starts, position) - 1
        return epoch, position - starts[epoch]

    def shards(self, lane: int, epoch: int) -> list[int]:
        """The shards of a lane in the order of an epoch; those without a sample of the split belong to none."""
        holding = np.flatnonzero(self.counts).tolist()
        return Noise(self.seed, Purpose.DEAL, epoch).shuffled(holding)[lane :: self.lanes]

    def rows(self, shard: int) -> np.ndarray:
        """All rows of a shard, of whatever split, as they lie in its tar."""
        return self._order[self._ends[shard - 1] if shard else 0 : self._ends[shard]]

    def _shuffle(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a window in the order in which they are drawn, and their quarter turns."""
        noise = Noise(self.seed, Purpose.STREAM, *window)
        rows = noise.shuffled(self._within(window).tolist())
        turns = [noise.below(self.turns) if self.turns > 1 else 0 for _ in rows]
        return np.asarray(rows, np.int32), np.asarray(turns, np.int32)

    def _within(self, window: Window) -> np.ndarray:
        """The rows of a window as they lie in the tars."""
        shards = self.shards(window.lane, window.epoch)
        ends = np.cumsum(self.counts[shards])
        first, last = window.number * self.window, (window.number + 1) * self.window
        touched = slice(np.searchsorted(ends, first, "right"), np.searchsorted(ends, last) + 1)
        found = np.concatenate([self.rows(shard) for shard in shards[touched]])
        before = ends[touched.start - 1] if touched.start else 0
        return found[self.labels[found] >= 0][first - before : last - before]


class StreamReader:
    """Reads what a stream draws with webdataset's reader: on from where it stopped, one window of every lane held as bytes.

    A draw from elsewhere begins anew: whole shards before it are left out, samples of its first shard passed over.
    It belongs to one thread.
    """

    def __init__(self, stream: Stream, reader: Reader):
        self.stream, self.reader = stream, reader
        self._lanes: dict[int, tuple[Window, dict[int, bytes], Iterator[tuple[int, bytes]]]] = {}

    def episode(self, draw: Sequence[Piece]) -> Episode:
        """An episode without support, whose query is the part that was drawn; inputs as in `Reader.episode`.

        Raises:
            InputError: a shard does not hold what the index says.
        """
        _, *columns = zip(*draw, strict=True)
        rows, turns, labels = (np.concatenate(column) for column in columns)
        images = (
            (self.reader.shards.decoded(row, self._held(piece.window)[row]),)
            for piece in draw
            for row in piece.rows.tolist()
        )
        query = Batch(self.reader.inputs(rows, images, turns), torch.from_numpy(labels).long())
        support = Batch(query.inputs[:0], query.targets[:0])
        return Episode(support, query, ways=int(self.stream.labels.max() + 1) * self.stream.turns)

    def _held(self, window: Window) -> dict[int, bytes]:
        """The bytes of a window's images by row."""
        lane, epoch, number = window
        last, held, running = self._lanes.get(lane, (None, {}, iter(())))
        if last == window:
            return held
        if last != Window(lane, epoch, number - 1):
            running = self._from(window)
        held = dict(islice(running, self.stream.window))
        self._lanes[lane] = window, held, running
        return held

    def _from(self, window: Window) -> Iterator[tuple[int, bytes]]:
        """(row, image bytes) of a lane's epoch from the beginning of a window."""
        passed = window.number * self.stream.window
        for shard in self.stream.shards(window.lane, window.epoch):
            here = int(self.stream.counts[shard])
            if passed < here:
                yield from islice(self._shard(shard), passed, None)
            passed = max(0, passed - here)

    def _shard(self, shard: int) -> Iterator[tuple[int, bytes]]:
        """(row, image bytes) of the split's samples in a shard."""
        index, labels, path = self.stream.index, self.stream.labels, self.stream.index.path(shard)
        samples, rows = _samples(path), self.stream.rows(shard).tolist()
        for number, row in enumerate(rows):
            sample = next(samples, None)
            if sample is None:
                raise InputError(f"{path}: ends after {number} of {len(rows)} samples; copy it again")
            if sample["__key__"] != index.key(row):
                raise InputError(
                    f"{path}: sample {sample['__key__']!r} stands where the index knows {index.key(row)!r}; "
                    "bring the old file back or make it again with metashard index"
                )
            if labels[row] >= 0:
                parts = {role_of(extension, index.modalities[1:]): data for extension, data in sample.items()}
                # The class comes from the index: what it was read from must not have changed.
                for role in ("image", "json"):
                    if index.has(row, role):
                        self.reader.shards.checked(row, role, parts.get(role, b""))
                yield row, parts["image"]


def _samples(path: Path | RemoteFile) -> Iterator[dict]:
    """The samples of a tar as webdataset's reader groups them: member bytes by extension, nothing decoded."""
    # Here, because importing webdataset takes more than a second and most runs need not pay it.
    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        # Opened here: webdataset's own opener would take some names for commands.
        with path.open("rb") as file:
            yield from group_by_keys(tar_file_expander([{"url": str(path), "stream": file}]))
    except InputError:  # what a store answers
        raise
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise InputError(f"{path}: webdataset cannot read it ({reason}); copy it again") from error
