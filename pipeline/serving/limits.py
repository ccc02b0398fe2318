"""How much a server takes, and how it says that something is not taken."""

from __future__ import annotations

from typing import NamedTuple, final

MIB = 1 << 20
LONGEST_NAME = 100
"""Characters of a class's name."""
LONGEST_FILE_NAME = 200
RESERVED = ("unknown", ".", "..")
"""What a model says of images that are of no class; and what HTTP clients take for ways through folders."""


class Limits(NamedTuple):
    """Of one request its bytes and files, of all under way together their bytes; of what is taught the classes, and the samples
    of each."""

    body_bytes: int = 64 * MIB
    files: int = 64
    bytes_under_way: int = 256 * MIB
    classes: int = 1000
    samples: int = 100


@final
class Refused(Exception):
    """A request that is not answered as it wished: the HTTP status, and why, in a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def class_name(said: str) -> str:
    """The name of a class as it is kept. It is plain text and never a path.

    Raises:
        Refused: it is empty, too long, not printable or means something else.
    """
    name = said.strip()
    if not name:
        raise Refused(400, "name: is empty; give the class a name")
    if len(name) > LONGEST_NAME:
        raise Refused(400, f"name: has {len(name)} characters; give at most {LONGEST_NAME}")
    if not name.isprintable():
        raise Refused(400, f"name: {name!r} has characters that cannot be printed; leave them out")
    if name in RESERVED:
        raise Refused(400, f"name: {name!r} means something else; give the class another name")
    return name


def file_name(said: str) -> str:
    """What a file is called when it is spoken of; nothing is ever opened by that name."""
    return "".join(each if each.isprintable() else "?" for each in said[:LONGEST_FILE_NAME]) or "image"
