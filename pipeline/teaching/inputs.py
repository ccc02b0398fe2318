"""Images from outside a packed data set as a learner takes them: of any size, from files that nobody has looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from pipeline.data import modalities, npy
from pipeline.data.images import decode
from pipeline.data.loader import Reader
from pipeline.data.modalities import IMAGE
from pipeline.errors import InputError


@final
class Inputs:
    """What `reader` makes of samples, for samples that are not packed; they may be of any size unless they are features."""

    def __init__(self, reader: Reader, *, precision: str, device: torch.device):
        index = reader.shards.index
        height, width, _ = index.shape(0)
        size = None if index.encoder or height != width else reader.size or height
        self.reader, self.device = reader._replace(size=reader.size or size), device
        self._dtype = torch.float64 if precision == "float64" else torch.float32

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the image that the learner sees."""
        height, width, channels = self.reader.shards.index.shape(0)
        return self.reader.size or height, self.reader.size or width, channels

    def array(self, data: bytes, what: str, *, modality: str = IMAGE) -> np.ndarray:
        """The (height, width, channels) array of a file: PNG, JPEG or another format of `data.images`, or npy, whose integers
        mean shares of their type's largest value, as in a packed data set.

        Raises:
            InputError: `what` cannot be read, or is not what the learner takes.
        """
        index = self.reader.shards.index
        height, width, _ = index.shape(0)
        channels = index.channels(modality)
        if modality == IMAGE and not data.startswith(npy.MAGIC):
            array = decode(data, what, channels=channels if channels in (1, 3) else None)
        else:
            array = modalities.decoded(data, what)
        if not np.isfinite(array).all():
            raise InputError(f"{what}: has values that are not finite; replace them")
        if index.encoder and array.shape != (height, width, channels):
            raise InputError(
                f"{what}: is {array.shape}, and this learner takes features of ({height}, {width}, {channels}) values; embed "
                "the image by the encoder it was trained with"
            )
        if array.shape[2] != channels:
            raise InputError(f"{what}: has {array.shape[2]} channels and this learner takes {channels}; give as many")
        return array

    def sample(self, files: Sequence[bytes], what: str) -> tuple[np.ndarray | None, ...]:
        """The modalities of a sample from a file for each, empty for what it lacks.

        Raises:
            InputError: as `array`, or it lacks what it must have.
        """
        reader = self.reader
        if len(files) != len(reader.modalities):
            raise InputError(
                f"{what}: has {len(files)} files, and this learner takes {', '.join(reader.modalities)}; give one for each"
            )
        if not any(files) or (not all(files) and not reader.told):
            raise InputError(f"{what}: a file is empty, and this learner takes no sample without it; give it")
        parts = zip(reader.modalities, files, strict=True)
        return tuple(self.array(data, what, modality=name) if data else None for name, data in parts)

    def tensor(self, samples: Sequence[Sequence[np.ndarray | None]]) -> Tensor:
        """(samples, channels, height, width) on the learner's device, as packed samples of these arrays would be read.

        Raises:
            InputError: they are of another size than the learner takes, and only squares are resized.
        """
        found = self.reader.inputs([0] * len(samples), samples, [0] * len(samples))
        return found.to(self.device, self._dtype)
