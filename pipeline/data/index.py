"""The index of a data set: which samples there are, of which class, in which bytes of which tar.

On disk or in a store, beside the tars: ROOT/index/{manifest.json, samples.arrow, postings.arrow, classes.arrow};
uncompressed Arrow files of one record batch, so that a column is a NumPy view of the mapped file and opening costs no
memory per sample; those of a store are mapped where the node's cache keeps them.
Row = rank of the sample's key among all keys; class id = rank of the class name among all names. So the same samples in
other tars keep their rows, hence their episodes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.data.folder import AGAIN, Folder, ShardInfo, folder_of
from pipeline.data.modalities import IMAGE
from pipeline.data.remote import RemoteFile
from pipeline.data.root import Root, root_of
from pipeline.errors import InputError

FORMAT = 1
FOLDER = "index"
TABLES = ("samples", "postings", "classes")
ROLES = ("image", "json", "mask")


class Location(NamedTuple):
    """Where a member's bytes lie, and the crc32 they must have."""

    shard: int
    offset: int
    size: int
    crc: int


class Index:
    """An opened index; every accessor is O(1) and copies nothing. Open it with `Index.open`.

    `splits` gives sorted int32 class ids by split name; `counts` int64 samples per class; `shard_of` the int32 shard
    number of every row, `class_of` its int32 class id; `pictures` the uint32 number of what a row shows, where several
    rows may show one (0: it alone), None where none do. `store` is "raw" (npy members of one shape and dtype) or "encoded" (image
    files). `modalities` are the images that samples may have, the first of which they all have. `encoder` is the sha256 of the
    encoder whose features these are, empty for images.
    """

    def __init__(self, root: Root, folder: Folder, manifest: dict, tables: Mapping[str, pa.Table]):
        self.root = root
        self._folder = folder
        self.manifest = manifest
        self.name: str = manifest["name"]
        self.store: str = manifest["store"]
        self.dtype = np.dtype(manifest["dtype"])
        self.fingerprint: str = manifest["fingerprint"]
        self.encoder: str = manifest.get("origin", {}).get("encoder", {}).get("sha256", "")
        self._planes: Mapping[str, dict] = manifest.get("modalities", {})
        self.modalities = (IMAGE, *self._planes)
        self.shards: Sequence[ShardInfo] = [ShardInfo(**shard) for shard in manifest["shards"]]
        samples, postings, classes = (tables[name] for name in TABLES)
        self._keys = samples["key"].chunk(0)
        self.shard_of = _view(samples, "shard")
        self.class_of = _view(samples, "class")
        self._shapes = [_view(samples, axis) for axis in ("height", "width", "channels")]
        self._members = {
            role: tuple(_view(samples, f"{role}_{part}") for part in ("offset", "size", "crc"))
            for role in manifest["roles"]
        }
        self.pictures = _view(samples, "picture") if "picture" in samples.column_names else None
        self._rows = _view(postings, "row")
        self._starts = np.append(_view(classes, "start"), len(self._rows))
        self.class_names: list[str] = classes["name"].to_pylist()
        self.counts = np.diff(self._starts)
        split_of = _view(classes, "split")
        self.splits: Mapping[str, np.ndarray] = {
            name: np.flatnonzero(split_of == number).astype(np.int32) for number, name in enumerate(manifest["splits"])
        }

    @classmethod
    def open(cls, root: str | Root) -> Index:
        """Map the index under `root`; raises `InputError` if it is absent, damaged, of another format, or if a shard is
        absent or has another size than when it was indexed. Contents are checked sample by sample when they are read.
        """
        index = cls.without_shards(root)
        index._folder.check(index.shards)
        return index

    @classmethod
    def without_shards(cls, root: str | Root) -> Index:
        """As `open`, but the shards themselves are not looked for."""
        root = root_of(root)
        folder = folder_of(root)
        manifest = _manifest(root, folder)
        try:
            tables = {name: _table(folder, f"{FOLDER}/{name}.arrow", manifest["files"][name]) for name in TABLES}
            index = cls(root, folder, manifest, tables)
            splits = {name: [index.class_names[i] for i in ids] for name, ids in index.splits.items()}
            expected = fingerprint([shard.sha256 for shard in index.shards], index.class_names, splits)
            if expected != index.fingerprint or len(index) != manifest["samples"]:
                raise ValueError("its parts do not belong together")
        except InputError:  # what a store answers is no damage
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError, pa.ArrowException) as error:
            raise InputError(f"{root / FOLDER}: index is damaged ({error}); {AGAIN}") from None
        return index

    def of_images(self, height: int, width: int, channels: int) -> Index:
        """This index as if every image were of that size: what was made for others can be built with it, and nothing read."""
        other = Index.without_shards(self.root)
        other._shapes = [np.full(len(self), side, np.int32) for side in (height, width, channels)]
        return other

    def __len__(self) -> int:
        return len(self.shard_of)

    def __reduce__(self):
        return Index.without_shards, (self.root,)

    def path(self, shard: int) -> Path | RemoteFile:
        """The file of a shard."""
        return self._folder.tar(self.shards[shard])

    def table_content(self, name: str) -> pa.NativeFile:
        """The file of one of `TABLES`, or of what the manifest names beside them."""
        return self._folder.mapped(f"{FOLDER}/{name}.arrow", self.manifest["files"][name])

    def postings(self, class_id: int) -> np.ndarray:
        """The int32 rows of a class's samples, ordered by key."""
        return self._rows[self._starts[class_id] : self._starts[class_id + 1]]

    def key(self, row: int) -> str:
        """The key of a sample."""
        return self._keys[int(row)].as_py()

    def has(self, row: int, role: str) -> bool:
        """Whether a sample has a member of this role: "json", "mask" or one of the modalities."""
        return role in self._members and self._members[role][0][row] >= 0

    def locate(self, row: int, role: str) -> Location:
        """Where a member lies; raises `InputError` if the sample has none of this role."""
        if not self.has(row, role):
            raise InputError(f"{self.root}: sample {self.key(row)!r} has no {role} member; use data that has")
        offset, size, crc = self._members[role]
        return Location(int(self.shard_of[row]), int(offset[row]), int(size[row]), int(crc[row]))

    def offsets(self, role: str) -> np.ndarray:
        """Where the members of this role begin in their shards, by row; negative where a sample has none."""
        return self._members[role][0]

    def shape(self, row: int) -> tuple[int, int, int]:
        """(height, width, channels) of a sample's image as stored."""
        height, width, channels = self._shapes
        return int(height[row]), int(width[row]), int(channels[row])

    def channels(self, modality: str) -> int:
        """Channels of a modality; of the image those of the first sample. Raises `InputError` if the data have none of it."""
        if modality not in self.modalities:
            raise InputError(
                f"{self.root}: has no modality {modality!r}, only {', '.join(self.modalities)}; change data.modalities, or pack "
                f"or index it again with --modalities image,{modality}"
            )
        return self.shape(0)[2] if modality == IMAGE else int(self._planes[modality]["channels"])


def fingerprint(shards: Sequence[str], class_names: Sequence[str], splits: Mapping[str, Sequence[str]]) -> str:
    """The data-set hash: sha256 over the shards' hashes, the class names and the splits."""
    parts = [FORMAT, list(shards), list(class_names), {name: list(names) for name, names in splits.items()}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _manifest(root: Root, folder: Folder) -> dict:
    name = f"{FOLDER}/manifest.json"
    try:
        content = folder.content(name)
    except FileNotFoundError:
        raise InputError(f"{root}: no index here ({name} is absent); run metashard pack or metashard index") from None
    except OSError as error:
        raise InputError(f"{root / name}: cannot be read ({error}); {AGAIN}") from None
    try:
        manifest = json.loads(content)
        number = manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{root / name}: cannot be read as a manifest ({error}); {AGAIN}") from None
    if number != FORMAT:
        raise InputError(f"{root / name}: format {number!r}, this version reads {FORMAT}; {AGAIN}")
    return manifest


def _table(folder: Folder, name: str, expected: dict) -> pa.Table:
    with folder.mapped(name, expected) as file:
        table = pa.ipc.open_file(file).read_all()
    if any(column.num_chunks != 1 for column in table.columns):
        raise ValueError(f"{name} is not one record batch")
    return table


def _view(table: pa.Table, column: str) -> np.ndarray:
    # Not to_numpy(): that imports pandas, most of a second and 24 MB in every worker.
    chunk = table[column].chunk(0)
    dtype = np.dtype(str(chunk.type))
    return np.frombuffer(chunk.buffers()[1], dtype)[chunk.offset : chunk.offset + len(chunk)]
