"""A data set of 16 classes in any number of tars, and a draw from it as plain numbers."""

import json

import numpy as np
from tars import picture, write_tar

from pipeline import prepare
from pipeline.data.images import encode_png

CLASSES, EACH = 12, 24


def sharded(root, *, shards, seed):
    """The same 12 classes of 24 samples, and 4 more in split val, dealt to `shards` tars by `seed`."""
    names = [f"c{label:02d}-{number:02d}" for label in range(CLASSES + 4) for number in range(EACH)]
    order = np.random.default_rng(seed).permutation(len(names))
    png = encode_png(picture(0, 2))
    for shard in range(shards):
        members = []
        for key in (names[n] for n in order[shard::shards]):
            members += [(f"{key}.json", json.dumps({"class": key[:3]}).encode()), (f"{key}.png", png)]
        write_tar(root / f"{shard}.tar", members)
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text("".join(f"c{label:02d}\n" for label in range(CLASSES)))
    (root / "splits" / "val.txt").write_text("".join(f"c{label:02d}\n" for label in range(CLASSES, CLASSES + 4)))
    return prepare.index([root], out=None, splits=root / "splits")


def flat(draw) -> tuple:
    return draw.classes, draw.turns, *([own.tolist() for own in part] for part in (draw.support, draw.query))
