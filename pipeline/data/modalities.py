"""Images of a sample besides its first, as depth or infrared: their names, and their members in a tar."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np

from pipeline.data import npy
from pipeline.data.images import EXTENSIONS, decode, encode_png, resize
from pipeline.errors import InputError

IMAGE = "image"
"""The modality that every sample has."""
KINDS = (*EXTENSIONS, "npy")
"""Extensions of their members: `KEY.depth.png`, `KEY.depth.npy`."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = {IMAGE, "mask", "json", "cls", *KINDS}
_MAGICS = {npy.MAGIC: "npy", b"\x89PNG": "png", b"\xff\xd8\xff": "jpg"}


def named(text: str) -> tuple[str, ...]:
    """The modalities besides the image of a list as "image,depth".

    Raises:
        InputError: it does not begin with the image, or a name is none, twice there or taken by other members.
    """
    first, *others = [name.strip() for name in text.split(",")]
    if first != IMAGE or not others:
        raise InputError(
            f"--modalities {text}: is no list of {IMAGE!r} and what there is besides, as {IMAGE},depth; mend it"
        )
    for name in others:
        if not _NAME.fullmatch(name) or name in _TAKEN or others.count(name) > 1:
            raise InputError(
                f"--modalities {text}: {name!r} is no name for a modality, or twice there; choose another, of small letters"
            )
    return tuple(others)


def kind_of(name: str, modalities: Sequence[str]) -> tuple[str, str] | None:
    """Of a file `NAME.depth.png`: NAME and "depth"; None for other files."""
    stem, *parts = name.rsplit(".", 2)
    if len(parts) == 2 and parts[0] in modalities and parts[1].lower() in KINDS:
        return stem, parts[0]
    return None


def decoded(data: bytes, what: str) -> np.ndarray:
    """The (height, width, channels) array of a member: an npy file of any numbers, or an image, of which 16 bits are kept.

    Raises:
        InputError: it is neither.
    """
    if not data.startswith(npy.MAGIC):
        return decode(data, what, is_deep=True)
    try:
        return npy.array(data)
    except (ValueError, TypeError) as error:
        raise InputError(f"{what}: is no npy array of numbers: {error}") from None


def member(
    modality: str, given: bytes | np.ndarray, shape: tuple[int, int], *, store: str, size: int | None, what: str
) -> tuple[str, bytes]:
    """The extension and the bytes of a member, beside an image of `shape` (height, width) as it was given.

    `store` "raw" makes arrays; "encoded" keeps the bytes unless `size` changes the picture.

    Raises:
        InputError: it cannot be read, has another height or width than the image, or values that are not finite.
    """
    array = decoded(given, f"{what}: {modality}") if isinstance(given, bytes) else given
    if array.shape[:2] != shape:
        raise InputError(
            f"{what}: its {modality} is {array.shape[:2]} (height, width), its image {shape}; make them equal"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{what}: its {modality} has values that are not finite; replace them, by 0 for instance")
    is_changed = size is not None and shape != (size, size)
    kind = next((kind for magic, kind in _MAGICS.items() if isinstance(given, bytes) and given.startswith(magic)), None)
    if store == "encoded" and kind is not None and not is_changed and isinstance(given, bytes):
        return f"{modality}.{kind}", given
    array = resize(array, size) if is_changed and size is not None else array
    if store == "encoded" and array.dtype == np.uint8 and array.shape[2] in (1, 3):
        return f"{modality}.png", encode_png(array)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return f"{modality}.npy", buffer.getvalue()
