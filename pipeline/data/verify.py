"""Every fault of a data set on disk: its index, its shards, its samples, its splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.data import pairs
from pipeline.data.fragments import fragment_of
from pipeline.data.index import FOLDER, Index
from pipeline.data.merge import across
from pipeline.data.scan import scan
from pipeline.data.shards import Shards
from pipeline.errors import InputError

LISTED = 20
"""Samples of one shard that are named one by one; the others are counted."""


def index_faults(index: Index, *, samples_per_class: int) -> Iterator[str]:
    """A line for everything wrong with the index itself, without reading a shard."""
    for name in index.manifest["files"]:
        with index.table_content(name) as file:
            if hashlib.sha256(file.read_buffer()).hexdigest() != index.manifest["files"][name]["sha256"]:
                place = index.root / f"{FOLDER}/{name}.arrow"
                yield f"{place}: bytes changed since it was written; run metashard index again"
    if pairs.are_in(index):
        yield from pairs.faults(index)
    if isinstance(index.root, Path):
        yield from _not_indexed(index, index.root)
    for split, classes in index.splits.items():
        if not len(classes):
            yield f"split {split!r} is empty; give it classes or leave it out"
        for class_id in classes[index.counts[classes] < samples_per_class]:
            count, name = index.counts[class_id], index.class_names[class_id]
            yield (
                f"class {name!r} of split {split!r} has {count} samples, an episode needs {samples_per_class}; "
                "add images or take it out of the split"
            )


def _not_indexed(index: Index, root: Path) -> Iterator[str]:
    indexed = {(root / shard.name).resolve() for shard in index.shards}
    for path in sorted(root.glob("*.tar")):
        if path.resolve() not in indexed:
            yield f"{path.name}: is not in the index; run metashard index again or move it away"


def shard_faults(index: Index, number: int) -> list[str]:
    """A line for everything wrong with one shard: the tar, what it should hold, and every image in it."""
    shard = index.shards[number]
    try:
        scanned = scan(index.path(number), class_field=index.manifest["class_field"], modalities=index.modalities[1:])
    except InputError as error:
        return [str(error)]
    if (scanned.sha256, scanned.bytes) == (shard.sha256, shard.bytes):
        return scanned.faults
    size = f"{scanned.bytes} bytes, the index says {shard.bytes}" if scanned.bytes != shard.bytes else "sha256 differs"
    faults = [f"{shard.name}: changed since it was indexed ({size}); bring the old file back or index again"]
    return faults + scanned.faults + _changed_samples(index, number)


def faults_without_index(paths: list[Path], *, class_field: str) -> list[str]:
    """A line for every fault of tars that have no index."""
    faults, sound = [], []
    for path in paths:
        try:
            scanned = scan(path, class_field=class_field)
        except InputError as error:
            faults.append(str(error))
            continue
        faults += scanned.faults
        if scanned.store:
            sound.append(fragment_of(path.name, scanned, class_field=class_field, modified_ns=0))
        elif not scanned.faults:
            faults.append(f"{path.name}: holds no sample; remove it")
    return faults + (across(sound) if sound else [])


def _changed_samples(index: Index, number: int) -> list[str]:
    shards, faults = Shards(index), []
    for row in np.flatnonzero(index.shard_of == number).tolist():
        for role in index.manifest["roles"]:
            try:
                if index.has(row, role):
                    shards.read(row, role)
            except InputError as error:
                faults.append(str(error))
    more = [f"{index.shards[number].name}: {len(faults) - LISTED} more changed members"] if len(faults) > LISTED else []
    return faults[:LISTED] + more
