"""From an importer's samples to tars: which sample goes where, and the writing of one tar."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from webdataset.writer import TarWriter

from pipeline.data.boxes import scaled, sound
from pipeline.data.images import decode, encode_png, resize, resize_mask, with_channels
from pipeline.data.modalities import member
from pipeline.data.scan import META
from pipeline.data.source import Sample, Source
from pipeline.errors import InputError
from pipeline.noise import Noise, Purpose

_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_HEADER_AND_PADDING = 512 + 256
_MEASURED = 32


def check(source: Source) -> None:
    """Raise `InputError` for a source without samples, for keys that are unfit or used twice, and for unfit labels."""
    if not source.samples:
        raise InputError(f"{source.name}: no images found; look at the path and at --layout")
    keys: set[str] = set()
    for sample in source.samples:
        if not _KEY.fullmatch(sample.key) or META.match(sample.key):
            raise InputError(f"{source.name}: key {sample.key!r} must be letters, digits, _ - and /, and no __NAME__/")
        if sample.key in keys:
            raise InputError(f"{source.name}: key {sample.key!r} is used twice; keys must be unique")
        if not sample.label.isprintable() or sample.label != sample.label.strip() or not sample.label:
            raise InputError(f"{source.name}: class name {sample.label!r} must be one line without blanks at its ends")
        keys.add(sample.key)


def plan(source: Source, *, shard_bytes: int, sample_bytes: float, block: int = 64, seed: int) -> list[list[Sample]]:
    """Deal the samples to tars of about `shard_bytes`, each sample taking `sample_bytes` on average.

    Samples stay together in blocks of one class, at most `block` of them in key order, and the blocks are shuffled by
    `seed`: reading a block is one range, and a window of many blocks mixes classes.
    """
    ordered = sorted(source.samples, key=lambda sample: (sample.label, sample.key))
    blocks: list[list[Sample]] = []
    for _, group in itertools.groupby(ordered, key=lambda sample: sample.label):
        members = list(group)
        blocks += [members[i : i + block] for i in range(0, len(members), block)]
    room = max(1, int(shard_bytes / sample_bytes))
    shards: list[list[Sample]] = [[]]
    for members in Noise(seed, Purpose.PACK).shuffled(blocks):
        if shards[-1] and len(shards[-1]) + len(members) > room:
            shards.append([])
        shards[-1] += members
    return shards


def mean_bytes(samples: Sequence[Sample], *, store: str, size: int | None, channels: int | None) -> float:
    """Bytes per sample in a tar, measured on a few spread evenly over the samples."""
    chosen = samples[:: max(1, len(samples) // _MEASURED)]
    made = [members(sample, store=store, size=size, channels=channels).values() for sample in chosen]
    return sum(len(data) + _HEADER_AND_PADDING for parts in made for data in parts) / len(chosen)


def members(sample: Sample, *, store: str, size: int | None, channels: int | None) -> dict[str, bytes]:
    """A sample's members by extension. Raises `InputError` naming the sample if its image is not whole."""
    what = f"sample {sample.key!r}"
    image = sample.image()
    stored = array = decode(image, what) if isinstance(image, bytes) else image
    if channels is not None:
        array = with_channels(array, channels, what)
    if size is not None and array.shape[:2] != (size, size):
        array = resize(array, size)
    if store == "raw":
        made = {"npy": _npy(array)}
    elif isinstance(image, bytes) and array is stored:
        made = {sample.extension: image}
    else:
        made = {"png": _png(array, what)}
    meta = _meta(sample)
    if "boxes" in meta:
        height, width = stored.shape[:2]
        sound({"classes": [sample.label], **meta}, sample.label, height, width, what)
        if array.shape[:2] != (height, width):
            meta["boxes"] = scaled(meta["boxes"], array.shape[1] / width, array.shape[0] / height)
    made["json"] = json.dumps({"class": sample.label, **meta}, sort_keys=True).encode()
    if sample.mask is not None:
        mask = sample.mask()
        if mask.shape != stored.shape[:2]:
            raise InputError(
                f"{what}: its mask is {mask.shape} (height, width), its image {stored.shape[:2]}; make them equal"
            )
        made["mask.png"] = encode_png(mask if mask.shape == array.shape[:2] else resize_mask(mask, array.shape[0]))
    height, width = stored.shape[:2]
    for modality, give in sample.planes.items():
        extension, data = member(modality, give(), (height, width), store=store, size=size, what=what)
        made[extension] = data
    return made


def write_shard(path: Path, samples: Iterable[Sample], *, store: str, size: int | None, channels: int | None) -> None:
    """Write one tar as a whole: under a temporary name first. The same samples always give the same bytes."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        _write(temporary, samples, store=store, size=size, channels=channels)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def _write(path: Path, samples: Iterable[Sample], *, store: str, size: int | None, channels: int | None) -> None:
    first: tuple[str, bytes] | None = None
    with open(path, "wb") as file:
        writer = TarWriter(
            file, encoder=False, compress=False, mtime=0, user="metashard", group="metashard", format="PAX_FORMAT"
        )
        with writer:
            for sample in samples:
                made = members(sample, store=store, size=size, channels=channels)
                if store == "raw":
                    first = first or (sample.key, made["npy"])
                    _refuse_mixture(first, (sample.key, made["npy"]))
                writer.write({"__key__": sample.key, **made})
        file.flush()
        os.fsync(file.fileno())


def identity(shards: Sequence[Sequence[Sample]], settings: Mapping[str, object]) -> str:
    """A hash of what a pack will hold, by which an interrupted pack knows itself again."""
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    for samples in shards:
        digest.update(b"\0shard")
        for sample in samples:
            digest.update("\0".join(["", sample.key, sample.label, *sample.planes]).encode())
    return digest.hexdigest()


def _meta(sample: Sample) -> dict:
    meta = dict(sample.meta())
    if "class" in meta:
        raise InputError(f"sample {sample.key!r}: field 'class' is taken by its class name; rename the field")
    return meta


def _png(array: np.ndarray, what: str) -> bytes:
    if array.dtype != np.uint8 or array.shape[2] not in (1, 3, 4):
        raise InputError(f"{what}: {array.shape[2]} channels of {array.dtype} fit no PNG; pack with --store raw")
    return encode_png(array)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _refuse_mixture(first: tuple[str, bytes], other: tuple[str, bytes]) -> None:
    # Equal headers mean equal shape and dtype; only different ones are worth parsing.
    if first[1][:128] != other[1][:128]:
        (one, a), (two, b) = (
            (key, np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)) for key, data in (first, other)
        )
        raise InputError(
            f"sample {two!r} is {b.shape} {b.dtype}, sample {one!r} is {a.shape} {a.dtype}; raw images must be of one "
            "size and kind: give --size and --channels, or --store encoded"
        )
