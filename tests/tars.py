"""Small class folders and tars for tests, sound or as broken as a test wants them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np

from pipeline.data.images import encode_png

LABELS = ("ant", "bee", "cat")
RULES = {"splits": None, "rule": "all=1"}


def picture(number: int, size: int = 6, channels: int = 1) -> np.ndarray:
    """A (size, size, channels) uint8 array of noise, another for each number."""
    return np.random.default_rng(number).integers(0, 256, (size, size, channels), np.uint8)


def class_folders(root: Path, *, labels=LABELS, per_class: int = 4, size: int = 6, channels: int = 1) -> Path:
    """PNG files ROOT/LABEL/N.png."""
    for i, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        for j in range(per_class):
            (root / label / f"{j}.png").write_bytes(encode_png(picture(100 * i + j, size, channels)))
    return root


def sample_members(number: int, *, label: str | None = None) -> list[tuple[str, bytes]]:
    """The two members of an encoded sample."""
    fields = {"class": label or LABELS[number % len(LABELS)]}
    key = f"s{number:03d}"
    return [(f"{key}.json", json.dumps(fields).encode()), (f"{key}.png", encode_png(picture(number)))]


def good_members(count: int = 6) -> list[tuple[str, bytes]]:
    """Members of `count` sound samples."""
    return [member for number in range(count) for member in sample_members(number)]


def npy(array: np.ndarray) -> bytes:
    """The bytes of an npy file; object arrays become pickles."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def write_tar(path: Path, members, *, kind: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of (name, bytes) or (TarInfo, bytes) members, as Python's tarfile writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return path
