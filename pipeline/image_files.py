"""The image files that a person means by files, folders and patterns, each once, and the place of what is made of one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.data.images import EXTENSIONS
from pipeline.errors import InputError

KINDS = (*EXTENSIONS, "npy")
"""What files of a folder are images by the ends of their names; a file that is named itself may have any name."""
MOST_BYTES = 512 << 20
"""A file of an image with the most pixels that are decoded, as it is, has half of that."""


class ImageFile(NamedTuple):
    """A file as people call it, where it lies, and its path below the folder that has all of them: parts of names, never `..`."""

    name: str
    path: Path
    place: str

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            InputError: it is no file, cannot be read or is larger than any image.
        """
        what = f"image {self.name!r}"
        try:
            # A pipe would be waited for, and a device never ends.
            if not self.path.is_file():
                raise InputError(
                    f"{what}: {'is no file' if self.path.exists() else 'there is no such file'}; name another"
                )
            if (size := self.path.stat().st_size) > MOST_BYTES:
                raise InputError(f"{what}: has {size:,} bytes, more than {MOST_BYTES:,}; make the image smaller")
            if not (data := self.path.read_bytes()):
                raise InputError(f"{what}: is empty; copy it again or remove it")
            return data
        except InputError:
            raise
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"{what}: cannot be read ({why}); name another") from error


def files_of(asked: Sequence[str], *, but: Path | None = None) -> list[ImageFile]:
    """The files that are named, those below named folders, and those that patterns as `birds/**/*.png` mean, in that order.

    Hidden files are left out of folders, and so is what lies below `but`: what is written is not read again.

    Raises:
        InputError: a folder holds no image, or a pattern means none.
    """
    named: dict[str, str] = {}
    for name in asked:
        for found in _meant(name, None if but is None else os.path.abspath(but)):
            named.setdefault(os.path.abspath(found), found)
    if not named:
        raise InputError("no image is named; give files, folders or patterns")
    top = os.path.commonpath([os.path.dirname(path) for path in named])
    return [ImageFile(name, Path(path), os.path.relpath(path, top)) for path, name in named.items()]


def one_file(name: str, *, below: Path | None = None) -> ImageFile:
    """The file of this name, relative to a folder if one is given."""
    path = os.path.abspath(name if below is None else os.path.join(below, name))
    return ImageFile(name, Path(path), os.path.basename(path))


def _meant(name: str, but: str | None) -> Iterator[str]:
    if "\0" in name:
        raise InputError(f"{name!r}: is no path; name another")
    if os.path.isdir(name):
        found = list(_below(name, but))
        if not found:
            raise InputError(f"{name}: holds no image ({', '.join(KINDS)}); name another folder")
        yield from found
    elif os.path.lexists(name) or not glob.has_magic(name):
        # One that is not there is told at the end, when the others are answered.
        yield name
    else:
        found = sorted(glob.glob(name, recursive=True))
        files = [each for path in found for each in (_below(path, but) if os.path.isdir(path) else [path])]
        files = [path for path in files if not _is_below(path, but)]
        if not files:
            raise InputError(f"{name}: nothing is called so; name other files")
        yield from files


def _below(folder: str, but: str | None) -> Iterator[str]:
    """The images in a folder and those in it, in the order of their names; links to folders are not followed."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(files):
            path = os.path.join(place, name)
            if not name.startswith(".") and _kind(name) in KINDS and not _is_below(path, but):
                yield path


def _kind(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _is_below(path: str, folder: str | None) -> bool:
    return folder is not None and os.path.abspath(path).startswith(folder + os.sep)
