"""The place of a pack: begun once, gone on with by the same call alone."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.data.files import make_folder, write_file
from pipeline.errors import InputError

_RECEIPT = "pack.json"


def claim(dest: Path, identity: str) -> None:
    """Make `dest` the place of a pack, or recognise that this one was begun there; `identity` tells packs apart."""
    make_folder(dest)
    receipt = dest / _RECEIPT
    if receipt.is_file():
        try:
            known = json.loads(receipt.read_bytes())["identity"]
        except (ValueError, KeyError, TypeError):
            known = "damaged"
        if known != identity:
            raise InputError(
                f"{dest}: holds a pack of other images or options, or another encoder's; choose another place or delete it"
            )
    elif any(dest.iterdir()):
        raise InputError(f"{dest}: is not empty and holds no pack; choose another place")
    else:
        write_file(receipt, json.dumps({"identity": identity}).encode())


def release(dest: Path) -> None:
    """Give back the place of a pack that failed before any of its tars was whole, so that other options can be tried there."""
    receipt = dest / _RECEIPT
    if list(dest.iterdir()) == [receipt]:
        receipt.unlink()
