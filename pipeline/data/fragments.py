"""What is known of one tar, kept so that a tar that has not changed is not read again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pipeline.data.files import write_table
from pipeline.data.folder import ShardInfo
from pipeline.data.index import FOLDER, FORMAT
from pipeline.data.scan import Plane, Scan, scan, schema
from pipeline.errors import InputError

CLASS_FIELD = "class"
"""Where a sample's own JSON names its class, unless said otherwise."""


class Fragment(NamedTuple):
    """What is known of one tar: its rows in the tar's order (see `scan.schema`), and what it holds besides images."""

    shard: ShardInfo
    table: pa.Table
    store: str
    dtype: str
    class_field: str
    modified_ns: int
    ignored: Mapping[str, int]
    planes: Mapping[str, Plane | None] = {}


def path_of(root: Path, shard: str) -> Path:
    """Where the fragment of a tar lies; different tars never share one."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", Path(shard).stem)
    suffix = "" if f"{plain}.tar" == shard else "-" + hashlib.sha256(shard.encode()).hexdigest()[:12]
    return root / FOLDER / "fragments" / f"{plain}{suffix}.arrow"


def fragment_of(shard: str, scanned: Scan, *, class_field: str, modified_ns: int) -> Fragment:
    """What a scan says of a tar that holds samples; `modified_ns` is the file's time of change."""
    assert scanned.store and scanned.dtype
    info = ShardInfo(shard, scanned.bytes, scanned.table.num_rows, scanned.sha256)
    return Fragment(
        info, scanned.table, scanned.store, scanned.dtype, class_field, modified_ns, scanned.ignored, scanned.planes
    )


def write(root: Path, fragment: Fragment) -> None:
    """Store what a faultless scan found, so that this tar is not read again."""
    path = path_of(root, fragment.shard.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"format": FORMAT, **fragment._asdict(), "shard": asdict(fragment.shard)}
    del meta["table"]
    write_table(path, fragment.table.replace_schema_metadata({"fragment": json.dumps(meta)}))


def read(root: Path, shard: str) -> Fragment | None:
    """The stored fragment of a tar; None if there is none, or none that this version can read: then scan again."""
    try:
        with pa.memory_map(str(path_of(root, shard))) as file:
            table = pa.ipc.open_file(file).read_all()
        meta = json.loads(table.schema.metadata[b"fragment"])
        planes = {name: told and Plane(*told) for name, told in meta.pop("planes", {}).items()}
        if meta.pop("format") != FORMAT or not table.schema.equals(schema(tuple(planes))):
            return None
        fragment = Fragment(table=table, **{**meta, "shard": ShardInfo(**meta["shard"]), "planes": planes})
        return fragment if (fragment.shard.name, fragment.shard.samples) == (shard, table.num_rows) else None
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None


def current(root: Path, name: str, class_field: str, planes: Sequence[str] = ()) -> Fragment | None:
    """The stored fragment of a tar, if the tar has not changed since and the same class and modalities were looked for."""
    fragment = read(root, name)
    path = root / name
    if fragment is None or not path.exists():
        return None
    if (fragment.class_field, tuple(fragment.planes)) != (class_field, tuple(planes)):
        return None
    status = path.stat()
    return fragment if (fragment.shard.bytes, fragment.modified_ns) == (status.st_size, status.st_mtime_ns) else None


def known(root: Path, names: Sequence[str], class_field: str, planes: Sequence[str] = ()) -> list[Fragment]:
    """What is known of these tars, all of which were scanned."""
    found = []
    for name in names:
        if (fragment := current(root, name, class_field, planes)) is None:
            raise InputError(f"{root / name}: changed while it was indexed; leave the tars alone and start again")
        found.append(fragment)
    return found


def faults(root: Path, name: str, class_field: str, planes: Sequence[str] = ()) -> list[str]:
    """Scan a tar unless its fragment is current; store the fragment, or tell the faults."""
    if current(root, name, class_field, planes) is not None:
        return []
    try:
        modified_ns = (root / name).stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{root / name}: cannot be read ({error.strerror})") from None
    scanned = scan(root / name, class_field=class_field, modalities=planes)
    if scanned.faults or scanned.store is None:
        return scanned.faults or [f"{name}: holds no sample; leave it out"]
    write(root, fragment_of(name, scanned, class_field=class_field, modified_ns=modified_ns))
    return []
