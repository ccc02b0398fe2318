"""Arrays of numbers in npy files (NumPy enhancement proposal 1), whose header is read by a pattern, not as the Python it is."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r"\{\s*'descr':\s*'(?P<descr>[<>|=][buif]\d\d?)',\s*'fortran_order':\s*(?P<fortran>True|False),"
    r"\s*'shape':\s*\((?P<shape>[\d, ]{1,80})\),?\s*\}\s*",
    re.ASCII,
)


class Header(NamedTuple):
    """What an npy file holds: (height, width, channels) of a type, from a byte on."""

    dtype: np.dtype
    shape: tuple[int, int, int]
    start: int


def header(data: bytes) -> Header:
    """The header of a whole file; two axes are (height, width) of one channel. Raises `ValueError` for anything else."""
    wide = data[6:7] != b"\1"
    start = 12 if wide else 10
    end = start + int.from_bytes(data[8:start], "little")
    found = _HEADER.fullmatch(data[start:end].decode("latin-1"))
    if not data.startswith((MAGIC + b"\1\0", MAGIC + b"\2\0")) or found is None:
        raise ValueError(f"its header is {data[:80]!r}")
    dtype = np.dtype(found["descr"])
    shape = tuple(int(length) for length in found["shape"].replace(",", " ").split())
    if found["fortran"] == "True" or len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"shape {shape} is not (height, width, channels) in C order")
    if end + math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes do not fit shape {shape} of {dtype}")
    height, width, channels = (*shape, 1)[:3]
    return Header(dtype, (height, width, channels), end)


def array(data: bytes) -> np.ndarray:
    """The (height, width, channels) array of a whole file, a read-only view of its bytes. Raises `ValueError` as `header`."""
    dtype, shape, start = header(data)
    return np.frombuffer(data, dtype, offset=start).reshape(shape)
