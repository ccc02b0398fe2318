"""From scanned tars to an index: a fragment per tar, then one sorted whole."""

# pyarrow makes the functions of its compute module at run time, where a type checker does not see them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.files import write_file, write_table
from pipeline.data.fragments import Fragment
from pipeline.data.index import FOLDER, FORMAT, ROLES, TABLES, Index, fingerprint
from pipeline.data.pairs import TABLE as PAIRS
from pipeline.data.pairs import table_of
from pipeline.data.scan import MEMBER_FIELDS
from pipeline.data.source import Pair
from pipeline.data.splits import Splits, check
from pipeline.errors import InputError


def across(fragments: Sequence[Fragment]) -> list[str]:
    """A line for every fault that only shows between tars: a key in two of them, or images that differ in kind."""
    return _faults(fragments, *_sorted(fragments))


def _faults(fragments: Sequence[Fragment], table: pa.Table, shard_of: np.ndarray) -> list[str]:
    faults = []
    first = fragments[0]
    for other in fragments[1:]:
        if other.store != first.store:
            faults.append(
                f"{other.shard.name}: has {other.store} images, {first.shard.name} {first.store} ones; index them apart"
            )
        elif first.store == "raw" and _kind(other) != _kind(first):
            faults.append(
                f"{other.shard.name}: raw images are {_kind(other)}, those of {first.shard.name} {_kind(first)}; "
                "they must be of one size: pack with --size, or with --store encoded"
            )
    for modality in first.planes:
        told = {found: other.shard.name for other in fragments if (found := other.planes[modality])}
        if len(told) > 1:
            (one, at), (two, elsewhere) = list(told.items())[:2]
            faults.append(
                f"{elsewhere}: its {modality} is {two.channels} channels of {two.dtype}, that of {at} {one.channels} of "
                f"{one.dtype}; make them alike"
            )
        if not told:
            faults.append(f"no sample has a member {modality!r}, as KEY.{modality}.png; leave it out of --modalities")
    keys = table["key"]
    for place in np.flatnonzero(np.asarray(pc.equal(keys[1:], keys[:-1]))).tolist():
        one, two = sorted(fragments[shard_of[place + i]].shard.name for i in (0, 1))
        faults.append(f"{two}: key {keys[place].as_py()!r} is also in {one}; keys must be unique")
    return faults


def merge(
    root: Path,
    fragments: Sequence[Fragment],
    *,
    name: str,
    splits: Splits,
    origin: Mapping[str, object],
    pairs: Sequence[Pair] = (),
) -> Index:
    """Write the index of these tars under `root` and open it.

    `origin` tells where the splits came from and is stored, as are `pairs` of its samples.
    Raises `InputError` for what `across` finds and for splits that do not fit the
    classes. Peak memory is a few times the index's own size (some 100 bytes per sample).
    """
    table, shard_of = _sorted(fragments)
    if faults := _faults(fragments, table, shard_of):
        more = f" (and {len(faults) - 1} more such faults)" if len(faults) > 1 else ""
        raise InputError(faults[0] + more)
    names = sorted(pc.unique(table["label"]).to_pylist())
    check(splits, names, str(root))
    class_of = np.asarray(pc.index_in(table["label"], value_set=pa.array(names, pa.large_string())))
    planes = {name: next(found for f in fragments if (found := f.planes[name])) for name in fragments[0].planes}
    every = (*ROLES, *planes)
    roles = [role for role in every if pc.any(pc.greater_equal(table[f"{role}_offset"], 0)).as_py()]
    absent = [f"{role}_{part}" for role in every if role not in roles for part in MEMBER_FIELDS]
    if not pc.any(pc.greater(table["picture"], 0)).as_py():
        absent.append("picture")
    samples = table.drop_columns(["label", *absent])
    samples = samples.append_column("class", pa.array(class_of)).append_column("shard", pa.array(shard_of))
    tables: dict[str, pa.Table] = dict(zip(TABLES, (samples, *_classes(class_of, names, splits)), strict=True))
    if pairs:
        tables[PAIRS] = table_of(pairs, table["key"])
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: write_table(folder / f"{kind}.arrow", part) for kind, part in tables.items()}
    shards = [fragment.shard for fragment in fragments]
    manifest = {
        "format": FORMAT,
        "name": name,
        "fingerprint": fingerprint([s.sha256 for s in shards], names, {k: sorted(v) for k, v in splits.items()}),
        "store": fragments[0].store,
        "dtype": fragments[0].dtype,
        "samples": table.num_rows,
        "class_field": fragments[0].class_field,
        "roles": roles,
        "splits": list(splits),
        "origin": dict(origin),
        **({"modalities": {name: plane._asdict() for name, plane in planes.items()}} if planes else {}),
        "ignored": sum((Counter(fragment.ignored) for fragment in fragments), Counter()),
        "files": files,
        "shards": [asdict(shard) for shard in shards],
    }
    write_file(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    return Index.open(root)


def _classes(class_of: np.ndarray, names: list[str], splits: Splits) -> tuple[pa.Table, pa.Table]:
    """The tables postings and classes. An image's label counts as one instance that covers all of the image."""
    rows = np.argsort(class_of, kind="stable").astype(np.int32)
    postings = {"row": rows, "instances": np.ones(len(rows), np.int32), "area": np.ones(len(rows), np.float32)}
    counts = np.bincount(class_of, minlength=len(names))
    number = {name: split for split, members in enumerate(splits.values()) for name in members}
    classes = {
        "name": names,
        "start": np.cumsum(counts) - counts,
        "split": np.array([number.get(name, -1) for name in names], np.int32),
    }
    return pa.table(postings), pa.table(classes)


def _sorted(fragments: Sequence[Fragment]) -> tuple[pa.Table, np.ndarray]:
    """All rows ordered by key, and the shard number of each."""
    table = pa.concat_tables([fragment.table for fragment in fragments]).replace_schema_metadata(None).combine_chunks()
    shard_of = np.repeat(np.arange(len(fragments), dtype=np.int32), [f.table.num_rows for f in fragments])
    order = pc.sort_indices(table["key"])
    return table.take(order), shard_of[np.asarray(order)]


def _kind(fragment: Fragment) -> tuple:
    return (*(fragment.table[axis][0].as_py() for axis in ("height", "width", "channels")), fragment.dtype)
