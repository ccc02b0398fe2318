"""Claim: what a model is asked over HTTP costs little more than Ray Serve does by itself, and teaching it a class takes no time.

`metashard serve` of conv4 with 5 ways and, with the same kind of ingress, a deployment of Ray Serve that reads a request and
says nothing, both on this machine, are asked in turns by the same clients with the same bodies: quantiles of the time of an
answer, and their ratio. Then classes are taught and deleted: how long that takes, and what the replica's memory does. And how
long it takes from the start of a process to the first prediction of a model that was adapted in it.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from startup import ROOT, SHORT, on_data

from pipeline.data.glyphs import characters, draw
from pipeline.data.images import encode_png

RECIPE = ROOT / "configs/train/classification/glyphs.yaml"
SETTINGS = ("model.width=64", "workers.count=1", "engine.mode=loop", *SHORT)
WAYS, SHOTS, SIDE = 5, 5, 28
BOUND_RATIO, BOUND_TEACH_MS, BOUND_MEMORY, BOUND_FIRST_S = 2.0, 500.0, 0.05, 5.0
BOUNDARY = "metashard"
WARM = 100
"""Requests of each client, and changes, that are not counted: by then allocators and buffers have their size."""
LAST = 5
"""Classes over which the time of teaching is taken while more and more are there."""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
LONGEST_S = 600.0


class Asked(NamedTuple):
    """Seconds of every answer, the requests of a second, and how many went wrong."""

    seconds: list[float]
    rate: float
    errors: int


def tell(name: str, value: float, bound: float, unit: str = "s") -> None:
    """A line with a bound."""
    print(f"{name:32}{value:8.3g}   bound {bound:g} {unit}: {'met' if value <= bound else 'MISSED'}", flush=True)


def form(files: list[bytes], **texts: str) -> bytes:
    """A body of multipart/form-data."""
    parts = [f'name="{name}"\r\n\r\n{text}'.encode() for name, text in texts.items()]
    parts += [f'name="images"; filename="{n}.png"\r\n\r\n'.encode() + file for n, file in enumerate(files)]
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


def send(connection: HTTPConnection, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    connection.request(method, path, body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def connected(url: str) -> HTTPConnection:
    parts = urlsplit(url)
    return HTTPConnection(str(parts.hostname), parts.port, timeout=60)


def asked(url: str, bodies: list[bytes], clients: int, count: int) -> Asked:
    """At least `count` predictions, by so many clients that each wait for an answer before the next request."""
    seconds: list[float] = []
    errors = 0

    def work(own: int) -> None:
        nonlocal errors
        connection = connected(url)
        for number in range(own):
            began_s = time.perf_counter()
            try:
                status, _ = send(connection, "POST", "/predict", bodies[number % len(bodies)])
            except OSError:
                status, connection = 0, connected(url)
            seconds.append(time.perf_counter() - began_s)
            errors += status != 200
        connection.close()

    threads = [threading.Thread(target=work, args=(-(-count // clients),)) for _ in range(clients)]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Asked(seconds, len(seconds) / (time.perf_counter() - began_s), errors)


def quantiles(seconds: list[float]) -> tuple[float, float]:
    """p50 and p99 in ms."""
    found = statistics.quantiles(seconds, n=100)
    return 1000 * found[49], 1000 * found[98]


@contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """A server, until the block ends; it says its URL on a line of its own."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True)
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "http://" in line:
                break
        else:
            raise SystemExit(f"{' '.join(command)} ended with {process.wait()}:\n{said}")
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(LONGEST_S)


def nothing() -> None:
    """Serve an application that reads what it is sent and says nothing, until Ctrl-C."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from starlette.types import ASGIApp

    from pipeline.serve import until_ended
    from pipeline.serving.deployment import Address, deployed, free

    def build() -> ASGIApp:
        app = FastAPI()

        async def predict(request):
            await request.body()
            return JSONResponse({})

        predict.__annotations__ = {"request": Request}
        app.post("/predict")(predict)
        return app

    address = free(Address("127.0.0.1", 0))
    with deployed(build, address):
        print("serving", address.url, flush=True)
        until_ended()


def adapted(place: Path, data: Path) -> Path:
    """A model of five characters, of a conv4 that was trained for one step: its answers are poor and cost as much."""
    from pipeline.adapt import adapt

    settings = [f"runs={place / 'runs'}", f"data.root={data}", *SETTINGS]
    command = [sys.executable, "-m", "pipeline.cli", "train", str(RECIPE), *settings]
    subprocess.run(command, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    for character in [each for each in characters() if each.split == "test"][:WAYS]:
        (place / "support" / character.name).mkdir(parents=True)
        for number in range(SHOTS):
            image = encode_png(draw(character, seed=0, number=number, size=SIDE).image)
            (place / "support" / character.name / f"{number}.png").write_bytes(image)
    (run,) = (place / "runs").glob("glyphs*")
    adapt(str(run), place / "support", place / "model.safetensors", runs=place / "runs")
    return place / "model.safetensors"


def first(run: str, support: str, out: str) -> None:
    """Adapt and predict, in this process."""
    from pipeline.adapt import adapt
    from pipeline.teaching.answers import answers, opened

    model = adapt(run, Path(support), Path(out), runs=Path("runs")).model
    answers(model, [opened(model, next(Path(support).rglob("*.png")).read_bytes(), "first")])


def of_first(place: Path) -> tuple[float, float]:
    """Seconds from the start of a process to its first prediction, and those of them that a CPU worked for it."""
    (run,) = (place / "runs").glob("glyphs*")
    began_s = time.perf_counter()
    command = [sys.executable, __file__, "--first", str(run), str(place / "support"), str(place / "first.safetensors")]
    before = os.times()
    subprocess.run(command, check=True, env=ENVIRONMENT)
    after = os.times()
    worked_s = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began_s, worked_s


def of_answers(url: str, other: str, arguments: argparse.Namespace) -> None:
    """Both in turns, and what the one takes of the other."""
    drawn = [each for each in characters() if each.split == "test"][:WAYS]
    bodies = [form([encode_png(draw(each, seed=1, number=9, size=SIDE).image)]) for each in drawn]
    for each in (url, other):
        asked(each, bodies, arguments.clients, WARM * arguments.clients)
    ours: list[Asked] = []
    theirs: list[Asked] = []
    for turn in range(arguments.rounds):
        pair = ((url, ours), (other, theirs))
        for each, found in pair if turn % 2 == 0 else pair[::-1]:
            found.append(asked(each, bodies, arguments.clients, arguments.requests // arguments.rounds))
    print(f"{'':24}{'requests':>10}{'errors':>8}{'a second':>10}{'p50 ms':>9}{'p99 ms':>9}")
    together = []
    for name, found in (("metashard serve", ours), ("no-op deployment", theirs)):
        seconds = [second for each in found for second in each.seconds]
        together.append(quantiles(seconds))
        rate, errors = statistics.fmean(each.rate for each in found), sum(each.errors for each in found)
        p50, p99 = together[-1]
        print(f"{name:24}{len(seconds):10d}{errors:8d}{rate:10.0f}{p50:9.1f}{p99:9.1f}")
    turns = [[quantiles(each.seconds) for each in found] for found in (ours, theirs)]
    for place, (name, one, two) in enumerate(zip(("p50", "p99"), *together, strict=True)):
        ratios = [a[place] / b[place] for a, b in zip(*turns, strict=True)]
        print(f"ratio of {name} by turns: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
        tell(f"{name} of a no-op's", one / two, BOUND_RATIO, unit="times")


def resident(connection: HTTPConnection) -> float:
    """MiB that the replica has in memory, as it tells itself."""
    said = send(connection, "GET", "/metrics")[1].decode()
    (line,) = [line for line in said.splitlines() if line.startswith("process_resident_memory_bytes ")]
    return float(line.split()[1]) / 2**20


def of_changes(url: str, count: int) -> None:
    """Teach and delete one class after another."""
    (stranger,) = [each for each in characters() if each.split == "test"][WAYS : WAYS + 1]
    images = [encode_png(draw(stranger, seed=0, number=number, size=SIDE).image) for number in range(SHOTS)]
    connection, ms, sizes = connected(url), [], []
    for number in range(WARM + count):
        began_s = time.perf_counter()
        status, said = send(connection, "POST", "/classes", form(images, name=f"class {number}"))
        ms.append(1000 * (time.perf_counter() - began_s))
        assert status == 201, said
        status, said = send(connection, "DELETE", f"/classes/class%20{number}")
        assert status == 204, said
        if number >= WARM and (number - WARM) % max(1, count // 10) == 0:
            sizes.append(resident(connection))
    sizes.append(resident(connection))
    print(f"memory of the replica, MiB: {', '.join(f'{size:.0f}' for size in sizes)}")
    tell("a class is taught in (median)", statistics.median(ms[WARM:]), BOUND_TEACH_MS, unit="ms")
    tell(f"memory after {count} more classes", sizes[-1] / sizes[0] - 1, BOUND_MEMORY, unit="of it more")


def of_growth(url: str, totals: list[int]) -> None:
    """Teach so many classes, one after another: how long the last ones of them take."""
    connection, ms = connected(url), []
    shown = [each for each in characters() if each.split == "train"]
    for number in range(max(totals) - WAYS):
        drawn = [draw(shown[number % len(shown)], seed=number // len(shown), number=n, size=SIDE) for n in range(SHOTS)]
        images = [encode_png(each.image) for each in drawn]
        began_s = time.perf_counter()
        status, said = send(connection, "POST", "/classes", form(images, name=f"more {number}"))
        ms.append(1000 * (time.perf_counter() - began_s))
        assert status == 201, said
        if (total := number + 1 + WAYS) in totals:
            print(f"a class is taught, {total} there:  {statistics.median(ms[-LAST:]):8.4g} ms")


def compare(data: Path, arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="metashard-") as folder:
        place = Path(folder)
        model = adapted(place, data)
        first_s, worked_s = zip(*(of_first(place) for _ in range(1 if arguments.quick else 3)), strict=True)
        tell("adapt and the first prediction", statistics.median(first_s), BOUND_FIRST_S)
        print(f"of that a CPU worked            {statistics.median(worked_s):8.3g} s")
        verb = [sys.executable, "-m", "pipeline.cli", "serve", str(model), "--port", "0"]
        with serving([*verb, "--state", str(place / "one")]) as url:
            with serving([sys.executable, __file__, "--nothing"]) as other:
                of_answers(url, other, arguments)
            of_changes(url, arguments.changes)
            of_growth(url, arguments.classes)
    print(f"load of the last minutes: {', '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} CPUs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data/glyphs", help="packed glyphs of 28 pixels")
    parser.add_argument("--requests", type=int, default=10_000, help="to each of both")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--changes", type=int, default=2000, help="classes that are taught and deleted")
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 100], help="so many are there at last")
    parser.add_argument("--quick", action="store_true", help="a few requests, to see that it works")
    parser.add_argument("--nothing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.requests, arguments.rounds, arguments.changes, arguments.classes = 80, 2, 5, [7]
    if arguments.nothing:
        nothing()
    elif arguments.first:
        first(*arguments.first)
    else:
        on_data(arguments.data, lambda data, _: compare(data, arguments), 1)


if __name__ == "__main__":
    main()
