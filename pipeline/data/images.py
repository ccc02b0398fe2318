"""Images from untrusted bytes and back: a list of formats, a limit of pixels, and one clear error."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from pipeline.errors import InputError

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "GIF", "WEBP")
EXTENSIONS = ("png", "jpg", "jpeg", "ppm", "pgm", "pbm", "bmp", "gif", "webp")
MAX_PIXELS = 89_478_485
"""Pillow's own limit: 256 MiB of RGB. Above it a small file is more likely an attack than a picture."""

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601), as in Pillow."""

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

# Pillow only warns between one and two times its limit; a warning would let such an image through.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode(data: bytes, what: str, *, channels: int | None = None, is_deep: bool = False) -> np.ndarray:
    """The (height, width, channels) uint8 array of an encoded image.

    `channels` 1 or 3 converts; without it grey images give 1 and all others 3. Transparent pixels become white,
    16-bit samples lose their low byte, unless `is_deep`, which keeps them as uint16; of an animation the first frame counts.
    Raises `InputError` naming `what` for bytes that are no whole image of a known format or that claim more than `MAX_PIXELS`.
    """
    return _load(data, what, lambda image: _deep(image) if is_deep and _is_deep(image) else _pixels(image, channels))


def decode_mask(data: bytes, what: str) -> np.ndarray:
    """The (height, width) uint8 values of an encoded mask; palette colours are not looked at. Errors as `decode`."""
    return _load(data, what, _values)


def with_channels(array: np.ndarray, channels: int, what: str) -> np.ndarray:
    """A (height, width, old) array as (height, width, channels): grey repeated, or RGB weighed to grey (ITU-R 601)."""
    match array.shape[2], channels:
        case old, new if old == new:
            return array
        case 1, new:
            return np.repeat(array, new, axis=2)
        case 3, 1 if array.dtype == np.uint8:
            return np.array(Image.fromarray(array).convert("L"))[..., None]
        case 3, 1 if array.dtype.kind == "f":
            return (array @ np.array(GREY, array.dtype))[..., None]
        case old, new:
            raise InputError(f"{what}: {old} channels of {array.dtype} cannot become {new}; leave --channels out")


def encode_png(array: np.ndarray) -> bytes:
    """PNG bytes of a (height, width, channels) or (height, width) uint8 array with 1, 3 or 4 channels."""
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def resize(array: np.ndarray, size: int) -> np.ndarray:
    """A (size, size, channels) array of the same dtype, antialiased (Lanczos); the aspect ratio is not kept.

    So all of the image stays in view and boxes only scale, as in Meta-Dataset (Triantafillou et al., ICLR 2020).
    """
    planes = [_plane(array[..., channel], size) for channel in range(array.shape[2])]
    return np.stack(planes, axis=-1)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A (size, size) mask by nearest neighbour: its values are names, not amounts."""
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


def _plane(plane: np.ndarray, size: int) -> np.ndarray:
    if plane.dtype == np.uint8:
        return np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.LANCZOS))
    smooth = np.asarray(Image.fromarray(plane.astype(np.float32)).resize((size, size), Image.Resampling.LANCZOS))
    if plane.dtype.kind == "f":
        return smooth.astype(plane.dtype)
    limits = np.iinfo(plane.dtype)
    return np.clip(np.rint(smooth.astype(np.float64)), limits.min, limits.max).astype(plane.dtype)


def _check_size(size: tuple[int, int], what: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"{what}: {size[0]} x {size[1]} is more than {MAX_PIXELS:,} pixels; make the image smaller")


def _check_png(data: bytes, what: str) -> None:
    """Check every chunk's checksum and the end chunk: Pillow skips the checksum of the pixel data."""
    at, kind = len(_PNG_MAGIC), b""
    while kind != b"IEND":
        length = int.from_bytes(data[at : at + 4], "big")
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(data):
            raise InputError(f"{what}: PNG is cut off after {len(data)} bytes; copy it again or remove it")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise InputError(f"{what}: PNG is damaged in chunk {kind!r} at byte {at}; copy it again or remove it")
        if kind == b"IHDR":
            width, height = data[at + 8 : at + 12], data[at + 12 : at + 16]
            _check_size((int.from_bytes(width, "big"), int.from_bytes(height, "big")), what)
        at = end + 4


def _load(data: bytes, what: str, use: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    if data.startswith(_PNG_MAGIC):
        _check_png(data, what)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, what)
            image.load()
            return use(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{what}: more than {MAX_PIXELS:,} pixels: {error}; make the image smaller") from None
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's parsers raise whatever they stumble over: OSError, SyntaxError …
        reason = " ".join(str(error).split())
        if "cannot identify image file" in reason:
            reason = f"it starts with {data[:8]!r}"
        known = ", ".join(FORMATS)
        raise InputError(f"{what}: not a whole image ({reason}); give one of {known} or remove it") from None


def _values(image: Image.Image) -> np.ndarray:
    if image.mode not in ("1", "L", "P"):
        raise ValueError(f"a mask has one channel of 8 bits, this has mode {image.mode}")
    return np.array(image.convert("L") if image.mode == "1" else image)


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _deep(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.uint16)[..., None]


def _pixels(image: Image.Image, channels: int | None) -> np.ndarray:
    grey = image.mode in ("1", "L", "LA") or _is_deep(image)
    if _is_deep(image):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        front = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), front)
    image = image.convert("L" if (channels or (1 if grey else 3)) == 1 else "RGB")
    array = np.array(image)
    return array[..., None] if array.ndim == 2 else array
