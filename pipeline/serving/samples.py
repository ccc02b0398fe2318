"""A sample of the support as the learner sees it, to look at."""

from __future__ import annotations

import numpy as np

from pipeline.data.images import encode_png
from pipeline.serving.limits import Refused
from pipeline.serving.room import Snapshot

COLOURS = 3


def png(snapshot: Snapshot, number: int) -> bytes:
    """PNG of the sample that answers name by this number; of other than three channels the first.

    Raises:
        Refused: there is none of that number, or none any more.
    """
    if snapshot.support is None or number not in snapshot.ids:
        raise Refused(404, f"sample {number}: is not there; it may have been deleted")
    values = snapshot.support.inputs[snapshot.ids.index(number)].float().numpy()
    shown = values if len(values) == COLOURS else values[:1]
    return encode_png(np.ascontiguousarray((255 * shown.clip(0, 1)).round().astype(np.uint8).transpose(1, 2, 0)))
