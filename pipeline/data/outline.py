"""What of an index a learner is built by, as a few JSON values: so that it can be built where the data are not."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pipeline.data.folder import LocalFolder
from pipeline.data.index import Index
from pipeline.data.modalities import IMAGE
from pipeline.data.root import Root
from pipeline.data.sampler import classes_of
from pipeline.errors import InputError


class Outline(NamedTuple):
    """The form of a data set's images (height, width, channels), the channels of its other modalities by name, whose features
    it holds (empty: images), and how many classes its training split has."""

    images: tuple[int, int, int]
    modalities: dict[str, int]
    encoder: str
    classes: int


def outline(index: Index, split: str) -> Outline:
    """The outline of a data set that is trained on by this split.

    Raises:
        InputError: it has no such split.
    """
    modalities = {name: index.channels(name) for name in index.modalities if name != IMAGE}
    return Outline(index.shape(0), modalities, index.encoder, len(classes_of(index, split)))


def outlined(told: Outline, root: Root, split: str) -> Index:
    """An index of that form with as many classes in this split, which all have the same one sample; its bytes are nowhere.

    Raises:
        InputError: the outline is none, as in a file that was changed.
    """
    try:
        images, modalities, encoder, classes = told
        manifest = {
            "name": str(root),
            "store": "raw",
            "dtype": "float32",
            "fingerprint": "",
            "origin": {"encoder": {"sha256": encoder}},
            "modalities": {name: {"channels": int(channels)} for name, channels in modalities.items()},
            "shards": [],
            "roles": [],
            "splits": [split],
        }
        return Index(root, LocalFolder(Path(str(root))), manifest, _tables(tuple(images), int(classes)))
    except (TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise InputError(f"{told}: is no outline of a data set ({error}); have the model made again") from error


def _tables(images: tuple[int, ...], classes: int) -> dict[str, pa.Table]:
    height, width, channels = images
    sample = {"shard": 0, "class": 0, "height": height, "width": width, "channels": channels}
    numbers = {name: pa.array([value], pa.int32()) for name, value in sample.items()}
    return {
        "samples": pa.table({"key": pa.array(["image"]), **numbers}),
        "postings": pa.table({"row": pa.array([0] * classes, pa.int32())}),
        "classes": pa.table(
            {
                "name": pa.array([str(number) for number in range(classes)]),
                "start": pa.array(range(classes), pa.int32()),
                "split": pa.array([0] * classes, pa.int32()),
            }
        ),
    }
