"""Files that are there as a whole or not at all, and the folders they go to."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError


def write_file(path: Path, data: bytes) -> None:
    """Write a file as a whole: after a crash there is the old one or the new one."""
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_table(path: Path, table: pa.Table) -> dict[str, Any]:
    """Write a table as a whole; how many bytes it has, and their hash."""
    temporary = path.with_name(f".{path.name}.part")
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    os.replace(temporary, path)
    return {"bytes": size, "sha256": digest}


def make_folder(path: Path) -> None:
    """Make a folder that can be written. Raises InputError if that is not allowed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: folder cannot be made ({error.strerror}); choose another one") from None
    if not os.access(path, os.W_OK):
        raise InputError(f"{path}: folder cannot be written; choose another one")
