"""What an importer yields: the samples of a data set before they are packed."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image, read only when it is packed.

    `key` is unique in the data set and made of [A-Za-z0-9_/-]: WebDataset readers cut names at the first dot.
    `image` gives an encoded file's bytes, of the kind `extension` ("png" or "jpg") says, or a
    (height, width, channels) array; `mask` gives (height, width) uint8: 0 for no class, 255 for what is not to be looked at,
    else the place, from 1 on, in `classes` of the meta, where that is missing 1 for the label. `meta` gives what is added
    to the sample's JSON; samples that show one picture name it there as `picture`, so that no episode draws it twice. `planes`
    give, by modality, what was seen of the same besides the image: an encoded file's bytes or an array, of its height and width.
    """

    key: str
    label: str
    image: Callable[[], bytes | np.ndarray]
    extension: str = "png"
    mask: Callable[[], np.ndarray] | None = None
    meta: Callable[[], Mapping] = dict
    planes: Mapping[str, Callable[[], bytes | np.ndarray]] = field(default_factory=dict)


class Pair(NamedTuple):
    """Two samples, by key, that are compared: whether they are of one class, and the fold in which they are judged."""

    fold: int
    a: str
    b: str
    same: bool


@dataclass(frozen=True)
class Source:
    """A data set as its importer found it: samples in any order; class names by split, if its layout has splits.

    `notes` say what was left out, in a sentence each. `pairs` are what its samples are compared in; classes that are `unsplit`
    have too few samples for an episode: where there are any of them, it is for the sake of pairs alone.
    """

    name: str
    samples: Sequence[Sample]
    splits: Mapping[str, Sequence[str]]
    notes: Sequence[str] = ()
    pairs: Sequence[Pair] = ()
    unsplit: frozenset[str] = frozenset()


def keys_of(paths: Sequence[str]) -> list[str]:
    """A key for each relative file path: the path without its extension, with `_` for what a key cannot hold.

    Paths that would meet in one key (`a b.png` and `a_b.png`, `a.png` and `a.jpg`) all get a hash of their path added.
    """
    plain = [re.sub(r"[^A-Za-z0-9_/-]", "_", str(PurePosixPath(path).with_suffix(""))) for path in paths]
    users = Counter(plain)
    return [
        key if users[key] == 1 else f"{key}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"
        for key, path in zip(plain, paths, strict=True)
    ]
