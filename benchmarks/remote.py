"""Claim: a node that has fetched a data set reads its episodes at a rate of the order of local files, however slow the store.

Episodes of 5 ways, 1 shot and 15 queries of drawn glyphs in raw tars: from local files, from a web server of this machine
that waits `--delay-ms` before each answer, cold (an empty cache) and warm. All must be equal tensors.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from loading import PIXELS, SHAPE, glyph_folder

from pipeline import prepare
from pipeline.data.cache import FOLDER_VARIABLE
from pipeline.data.index import Index
from pipeline.data.loader import Reader
from pipeline.data.sampler import Sampler
from pipeline.data.shards import Shards
from pipeline.episode import Episode


class Ranges(BaseHTTPRequestHandler):
    """Serves ranges of the files under `root`."""

    root: Path
    delay_s: float
    requests = 0

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(200, self.content(), {})

    def do_GET(self) -> None:
        type(self).requests += 1
        content = self.content()
        start, last = map(int, re.findall(r"\d+", self.headers["Range"]))
        body = content[start : last + 1]
        self.answer(206, body, {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(content)}"})
        self.wfile.write(body)

    def content(self) -> bytes:
        time.sleep(self.delay_s)
        return (self.root / self.path.lstrip("/")).read_bytes()

    def answer(self, code: int, body: bytes, more: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "ETag": '"1"', **more}.items():
            self.send_header(name, value)
        self.end_headers()


def timed(root: str | Path, episodes: int) -> tuple[float, list[Episode]]:
    """Seconds for a fresh reader to give the episodes, without those for opening."""
    index = Index.open(root)
    sampler, reader = Sampler(index, "train", SHAPE, seed=0, turns=False), Reader(Shards(index), False, None)
    began = time.perf_counter()
    found = [reader.episode(sampler.draw(0, number)) for number in range(episodes)]
    return time.perf_counter() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    arguments = parser.parse_args()
    episodes = 3 if arguments.quick else arguments.episodes
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="metashard-") as folder:
        place = Path(folder)
        os.environ[FOLDER_VARIABLE] = str(place / "cache")
        source = glyph_folder(place / "glyphs", *((5, 16) if arguments.quick else (200, 20)))
        prepare.pack(str(source), place / "data", layout="folder", size=PIXELS, rule="train=1", shard_mib=1)
        Ranges.root, Ranges.delay_s = place / "data", arguments.delay_ms / 1e3
        with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            timed(place / "data", episodes)  # the files come into the page cache
            results = {"local files": timed(place / "data", episodes)}
            Index.open(url)
            before = Ranges.requests
            results["cold"] = timed(url, episodes)
            results["warm"] = timed(url, episodes)
            requests = Ranges.requests - before
            server.shutdown()
    expected = results["local files"][1]
    print(f"{episodes} episodes, {SHAPE}, images of {PIXELS} × {PIXELS}, {arguments.delay_ms:g} ms to each answer")
    for name, (seconds, found) in results.items():
        assert all(one.query.inputs.equal(two.query.inputs) for one, two in zip(found, expected, strict=True))
        print(f"{name:16}{episodes / seconds:10.0f} episodes/s")
    print(f"{requests} requests for chunks and index in both passes")


if __name__ == "__main__":
    main()
