"""Reads a folder per person, and pairs of their images that are to be told apart."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath

from pipeline.data import pairs as pairing
from pipeline.data.importers.folder import images_of, sample
from pipeline.data.source import Source, keys_of
from pipeline.errors import InputError

FEWEST = 2
"""Images of a person that an episode needs: a support and a query."""


def identities(path: str | Path, *, pairs: Path | None = None) -> Source:
    """The data set in a folder or zip of a folder per person; its class is the person.

    `pairs` is a CSV file of pairs (`pipeline.data.pairs.read`). A person with one image can be in no episode and so in no split;
    such an image is left out unless a pair names it. How many there are is in the source's notes.

    Raises:
        InputError: the images cannot be read, none has two images, or the pairs do not fit them.
    """
    path = Path(path)
    names, read = images_of(path)
    keys = dict(zip(names, keys_of(list(names)), strict=True))
    labels = {keys[shown]: str(PurePosixPath(shown).parent) for shown in names}
    counts = Counter(labels.values())
    lonely = frozenset(label for label, count in counts.items() if count < FEWEST)
    if counts and len(lonely) == len(counts):
        raise InputError(
            f"{path}: no person has {FEWEST} images, as {min(lonely)!r} with one; an episode needs a support and a query"
        )
    found = pairing.read(pairs, keys, labels) if pairs is not None else []
    named = {key for pair in found for key in (pair.a, pair.b)}
    samples, kept = [], set()
    for shown, stored in names.items():
        key = keys[shown]
        if labels[key] not in lonely or key in named:
            samples.append(sample(key, labels[key], partial(read, stored), shown))
            kept.add(labels[key])
    notes = []
    if lonely:
        more = f"; {len(lonely & kept)} of them are kept for the pairs that name them" if found else " and are left out"
        notes.append(f"{len(lonely)} persons have one image, so that they are in no split{more}")
    return Source(path.stem, samples, {}, tuple(notes), found, lonely)
