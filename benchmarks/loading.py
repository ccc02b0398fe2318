"""Claim: episodes come from tars as fast as the disk gives them, and an index of 14 million samples costs little.

First, episodes of 5 ways, 1 shot and 15 queries from raw tars, from encoded tars, and from the same images in class
folders read by Pillow; all three must give equal tensors, then they take turns (one thread, files in the page cache).
Second, an index of 14 million samples in 21,000 classes, simulated (tables of full size, tars as sparse files): time to
open, private memory of a fresh process, time to draw.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from pipeline import prepare
from pipeline.data.glyphs import characters, draw
from pipeline.data.images import EXTENSIONS, encode_png
from pipeline.data.index import FOLDER, FORMAT, Index, fingerprint
from pipeline.data.loader import Reader
from pipeline.data.sampler import Draw, Sampler
from pipeline.data.shapes import Shape
from pipeline.data.shards import Shards
from pipeline.data.source import keys_of
from pipeline.episode import Batch, Episode

SHAPE = Shape(ways=5, shots=1, queries=15)
PIXELS = 28
SAMPLES, CLASSES, PER_SHARD = 14_000_000, 21_000, 4_000
SHARD_BYTES = 64 << 20
BLOCK = 64


def glyph_folder(root: Path, classes: int, each: int) -> Path:
    """Class folders of PNG files, drawn from the embedded data set."""
    for character in characters()[:: len(characters()) // classes][:classes]:
        (root / character.name).mkdir(parents=True)
        for number in range(each):
            image = draw(character, seed=0, number=number, size=PIXELS).image
            (root / character.name / f"{number:04d}.png").write_bytes(encode_png(image))
    return root


def pillow_reader(source: Path, index: Index, size: int) -> Callable[[Draw], Episode]:
    """What one writes without tars: open every file of the episode, resize, stack, scale."""
    found = (path.relative_to(source) for path in source.rglob("*") if path.suffix[1:].lower() in EXTENSIONS)
    names = sorted(path.as_posix() for path in found)
    files = dict(zip(keys_of(names), names, strict=True))
    mode = "L" if index.shape(0)[2] == 1 else "RGB"

    def image(row: int) -> np.ndarray:
        with Image.open(source / files[index.key(row)]) as opened:
            picture = opened if opened.mode == mode else opened.convert(mode)
            if picture.size != (size, size):
                picture = picture.resize((size, size), Image.Resampling.LANCZOS)
            return np.asarray(picture).reshape(size, size, -1)

    def batch(by_class: Sequence[np.ndarray]) -> Batch:
        images = torch.from_numpy(np.stack([image(row) for own in by_class for row in own]))
        inputs = images.permute(0, 3, 1, 2).contiguous().float().div_(255)
        return Batch(inputs, torch.arange(len(by_class)).repeat_interleave(len(by_class[0])))

    return lambda drawn: Episode(batch(drawn.support), batch(drawn.query), len(drawn.classes))


def compare(source: Path, place: Path, size: int, *, repeats: int, episodes: int) -> None:
    """Pack both stores, see that the three ways give the same tensors, time them in turns, print the table."""
    readers: dict[str, Callable[[Draw], Episode]] = {}
    for store in ("raw", "encoded"):
        form = {"layout": "folder", "rule": "train=1", "store": store}
        index = prepare.pack(str(source), place / store, size=size if store == "raw" else None, **form)
        readers[f"{store} tars"] = Reader(Shards(index), False, size).episode
    readers["Pillow from folders"] = pillow_reader(source, index, size)
    sampler = Sampler(index, "train", SHAPE, seed=0, turns=False)
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(repeats + 1):
        drawn = [sampler.draw(turn, number) for number in range(episodes)]
        expected = readers["raw tars"](drawn[0])
        for name in sorted(readers, reverse=bool(turn % 2)):
            assert torch.equal(readers[name](drawn[0]).query.inputs, expected.query.inputs), name
            began = time.perf_counter()
            for one in drawn:
                readers[name](one)
            rates[name].append(episodes / (time.perf_counter() - began))
    print(f"{len(index):,} images of {size} × {size}, {SHAPE}, {repeats} repeats of {episodes} episodes")
    for name, values in rates.items():
        # The first turn brings the files into the page cache.
        ratios = [own / other for own, other in zip(values[1:], rates["Pillow from folders"][1:], strict=True)]
        print(f"{name:24}{statistics.median(values[1:]):10.0f} episodes/s{statistics.median(ratios):8.2f} × Pillow")


def simulate(root: Path, samples: int, classes: int) -> None:
    """Write the index of a data set that does not exist: classes from small to large, blocks dealt to the tars."""
    (root / FOLDER).mkdir()
    shards = -(-samples // PER_SHARD)
    weights = np.linspace(0.1, 1.9, classes)
    starts = np.floor(np.concatenate([[0], np.cumsum(weights)]) / weights.sum() * samples).astype(np.int64)[:-1]
    counts = np.diff(np.append(starts, samples))
    rows = np.arange(samples, dtype=np.int32)
    inside_class = rows - np.repeat(starts, counts)
    class_of = np.repeat(np.arange(classes, dtype=np.int32), counts)
    # Keys as a folder of classes gives them, of 14 characters: the buffers of an Arrow column, not 14 million strings.
    digits = np.frombuffer(b"c00000/0000000", np.uint8)
    letters = np.tile(digits, (samples, 1))
    for at, power in enumerate(range(4, -1, -1), 1):
        letters[:, at] += (class_of // 10**power % 10).astype(np.uint8)
    for at, power in enumerate(range(6, -1, -1), 7):
        letters[:, at] += (inside_class // 10**power % 10).astype(np.uint8)
    offsets = np.arange(samples + 1, dtype=np.int64) * len(digits)
    keys = pa.LargeStringArray.from_buffers(samples, pa.py_buffer(offsets), pa.py_buffer(letters))
    inside = rows.astype(np.int64) % PER_SHARD * (SHARD_BYTES // PER_SHARD)
    columns: dict[str, object] = {"key": keys}
    columns |= {
        axis: np.full(samples, value, np.int32) for axis, value in (("height", 64), ("width", 64), ("channels", 3))
    }
    for role, begin, size in (("image", 512, 12_416), ("json", 13_824, 40)):
        columns |= {f"{role}_offset": inside + begin, f"{role}_size": np.full(samples, size, np.int32)}
        columns[f"{role}_crc"] = rows.astype(np.uint32)
    columns |= {"class": class_of, "shard": (rows.astype(np.int64) // BLOCK * 7919 % shards).astype(np.int32)}
    names = [f"c{number:05d}" for number in range(classes)]
    postings = {"row": rows, "instances": np.ones(samples, np.int32), "area": np.ones(samples, np.float32)}
    class_table = {"name": names, "start": starts, "split": np.zeros(classes, np.int32)}
    files = {}
    for name, table in (("samples", columns), ("postings", postings), ("classes", class_table)):
        whole = pa.table(table)
        with pa.OSFile(str(root / FOLDER / f"{name}.arrow"), "wb") as file, pa.ipc.new_file(file, whole.schema) as out:
            out.write_table(whole)
        # Pages still to be written to the disk would count as dirty ones of the reader.
        with open(root / FOLDER / f"{name}.arrow", "rb") as file:
            os.fsync(file.fileno())
        files[name] = {"bytes": (root / FOLDER / f"{name}.arrow").stat().st_size, "sha256": ""}
    infos = []
    for number in range(shards):
        infos.append({"name": f"shard-{number:06d}.tar", "bytes": SHARD_BYTES, "samples": PER_SHARD, "sha256": ""})
        with open(root / infos[-1]["name"], "wb") as file:
            file.truncate(SHARD_BYTES)
    manifest = {"format": FORMAT, "name": "simulated", "store": "raw", "dtype": "|u1", "samples": samples}
    manifest |= {"fingerprint": fingerprint([""] * shards, names, {"train": names}), "splits": ["train"]}
    manifest |= {"roles": ["image", "json"], "files": files, "shards": infos}
    (root / FOLDER / "manifest.json").write_text(json.dumps(manifest))


def memory_mb() -> tuple[float, float]:
    """MB of this process that no other one shares, and MB of it that are no pages of a mapped file."""
    text = Path("/proc/self/smaps_rollup").read_text()
    fields = {name: int(kib) * 1024 / 1e6 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return fields["Private_Clean"] + fields["Private_Dirty"], fields["Anonymous"]


def probe(root: Path, episodes: int) -> dict[str, float]:
    """Open, draw, locate: times, and memory beyond that of the imports."""
    before = memory_mb()
    began = time.perf_counter()
    index = Index.open(root)
    open_s = time.perf_counter() - began
    sampler = Sampler(index, "train", SHAPE, seed=0, turns=False)
    draw_ms, locate_ms = [], []
    for number in range(episodes):
        began = time.perf_counter()
        sampler.draw(0, number)
        draw_ms.append(1e3 * (time.perf_counter() - began))
    drawn_mb = memory_mb()
    for number in range(episodes):
        drawn = sampler.draw(1, number)
        began = time.perf_counter()
        for row in drawn.rows:
            index.locate(row, "image")
        locate_ms.append(1e3 * (time.perf_counter() - began))
    located_mb = memory_mb()
    return {
        "open_s": open_s,
        "draw_ms": statistics.mean(draw_ms),
        "draw_p99_ms": float(np.quantile(draw_ms, 0.99)),
        "locate_ms": statistics.mean(locate_ms),
        "private_mb": drawn_mb[0] - before[0],
        "heap_mb": drawn_mb[1] - before[1],
        "located_mb": located_mb[0] - before[0],
        "located_heap_mb": located_mb[1] - before[1],
    }


def at_scale(samples: int, episodes: int) -> None:
    """Simulate the index, measure in a fresh process, print against the bounds."""
    classes = max(20, CLASSES * samples // SAMPLES)
    with tempfile.TemporaryDirectory(prefix="metashard-") as folder:
        simulate(Path(folder), samples, classes)
        command = [sys.executable, __file__, "--probe", folder, "--episodes", str(episodes)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(f"\nindex of {samples:,} samples in {classes:,} classes, {SHAPE}, {episodes} episodes, in a fresh process")
    bounds = (
        ("open, s", "open_s", 1.0),
        ("draw, ms per episode", "draw_ms", 0.3),
        ("private, MB", "private_mb", 200.0),
    )
    for name, key, bound in bounds:
        print(f"{name:24}{found[key]:10.3f}   bound {bound}: {'met' if found[key] < bound else 'MISSED'}")
    print(
        "slowest percent of draws from {draw_p99_ms:.3f} ms; finding the bytes {locate_ms:.3f} ms more".format(**found)
    )
    print("of the private memory {heap_mb:.1f} MB are heap, the rest pages of the mapped tables;".format(**found))
    print("after finding the bytes, {located_mb:.1f} MB, of them {located_heap_mb:.1f} MB heap".format(**found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="class folders of images; none: glyphs are drawn")
    parser.add_argument("--size", type=int, default=PIXELS, help="side of the images in an episode, pixels")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of the simulated index")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.probe:
        print(json.dumps(probe(arguments.probe, arguments.episodes)))
        return
    quick = arguments.quick
    with tempfile.TemporaryDirectory(prefix="metashard-") as folder:
        place = Path(folder)
        source = arguments.source or glyph_folder(place / "glyphs", *((5, 16) if quick else (200, 20)))
        compare(source, place, arguments.size, repeats=1 if quick else arguments.repeats, episodes=5 if quick else 200)
    at_scale(20_000 if quick else arguments.samples, 20 if quick else arguments.episodes)


if __name__ == "__main__":
    main()
