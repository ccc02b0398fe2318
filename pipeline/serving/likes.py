"""Whether two images show one class, as `metashard predict` says of pairs."""

from __future__ import annotations

import threading
from typing import final

from torch import Tensor

from pipeline.serving.limits import Refused
from pipeline.serving.room import Room
from pipeline.teaching.pairs import Compared, compared, threshold_of


@final
class Likes:
    """Pairs of one room. Their threshold is worked out once for each version of what is taught."""

    def __init__(self, room: Room):
        self._room, self._one = room, threading.Lock()
        self._version, self._threshold = -1, None

    def of(self, one: Tensor, other: Tensor) -> Compared:
        """What is said of two images (1, channels, height, width).

        Raises:
            Refused: nobody knows how alike images of one class are.
            InputError: the task has no classes of whole images.
        """
        snapshot = self._room.snapshot
        model = snapshot.answering
        with self._one:
            if self._version != snapshot.version:
                self._version, self._threshold = snapshot.version, threshold_of(model)
            least = self._threshold
        if least is None:
            raise Refused(409, "every class has one image, so that nobody knows how alike two of one are; add some")
        return compared(model.features(one), model.features(other), least=least)[0]
