"""Claim: a submitted training run reaches its first meta-step soon after a bare hello-world on such a cluster says hello.

To a cluster of three Ray nodes on this machine, in turns: the recipe for glyphs with two workers, from the start of
`metashard submit` to the first meta-step in the run's spool; and, kept by the same process in the place of `metashard`, a
program that joins the cluster and has a task say hello. Where the run's time goes is seen from the files as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from startup import RECIPE, ROOT, SHORT, on_data, tell

from cluster import supervise

BOUND_S = 35
HELLO = f"""#!{sys.executable}
import logging, os, ray, time
ray.init(address=os.environ["RAY_ADDRESS"], logging_level=logging.ERROR, log_to_driver=False)
assert ray.get(ray.remote(lambda: "hello").remote()) == "hello"
print("hello at", time.time())
"""


CLUSTER = {"kind": "local", "nodes": 3, "cpus": 1}
STAGES = {"the nodes begin to start": supervise.PLACE_FILE, "the first answers, the command starts": "node-1.log"}
"""Files of the attempt, by what their coming means."""
TOLD = {
    "imports, the nodes it needs, preflight": "config.fingerprint",
    "workers started, read, built, planned": "engine.plan",
    "the first meta-step": "train/loss",
}
"""Keys of the run's spool, by what has been done when they are told."""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
LOOK_S = 0.05


def keep(attempt: str, program: str) -> None:
    """As `cluster.supervise`, with another program in the place of `metashard`."""
    own = supervise.binary
    supervise.binary = lambda name: program if name == "metashard" else own(name)
    sys.argv[1:] = [attempt]
    supervise.main()


def of_hello(place: Path) -> float:
    """Seconds until a task has said hello."""
    program = place / "hello"
    program.write_text(HELLO)
    program.chmod(0o755)
    attempt = place / ".metashard" / "hello" / "attempt-1"
    attempt.mkdir(parents=True)
    kept = {"id": "hello", "command": ["hello"], "spec": CLUSTER, "job": "", "attempt": 1}
    (attempt.parent / "submission.json").write_text(json.dumps(kept))
    began_s = time.time()
    with (attempt / supervise.LOG_FILE).open("ab") as log:
        command = [sys.executable, __file__, "--keep", str(attempt), str(program)]
        subprocess.run(command, stdout=log, stderr=log, check=True, env=ENVIRONMENT)
    while json.loads((attempt / supervise.STATE_FILE).read_text())["name"] == "running":
        time.sleep(LOOK_S)
    said = (attempt / supervise.LOG_FILE).read_text()
    return float(said.rpartition("hello at ")[2].split()[0]) - began_s


def of_train(place: Path, data: Path) -> dict[str, float]:
    """Seconds until each stage of a run was reached."""
    (place / "three.yaml").write_text(json.dumps(CLUSTER))
    runs, attempt = place / "runs", place / ".metashard" / "run" / "attempt-1"
    settings = [f"runs={runs}", f"data.root={data}", "workers.count=2", *SHORT]
    words = ["submit", "--cluster", "three.yaml", "--run", "run", "--", "train", str(RECIPE), *settings]
    came: dict[str, float] = {}
    began_s = time.time()
    with (place / "said").open("wb") as said:
        command = [sys.executable, "-m", "pipeline.cli", *words]
        submitted = subprocess.Popen(command, cwd=place, stdout=said, stderr=said, env=ENVIRONMENT)
        while submitted.poll() is None:
            for stage, file in STAGES.items():
                if stage not in came and (attempt / file).exists():
                    came[stage] = time.time() - began_s
            time.sleep(LOOK_S)
    if submitted.returncode:
        raise SystemExit(
            f"metashard {' '.join(words)} ended with {submitted.returncode}:\n{(place / 'said').read_text()}"
        )
    records = [json.loads(line) for line in (runs / "run" / "spool.jsonl").read_text().splitlines()]
    for stage, key in TOLD.items():
        came[stage] = next(record["t"] for record in records if key in record.get("values", {})) / 1000 - began_s
    return came


def compare(data: Path, repeats: int) -> None:
    """Both in turns; medians, where the time goes, and whether the bound is met."""
    hello, train = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="metashard-") as folder:
            hello.append(of_hello(Path(folder)))
        with tempfile.TemporaryDirectory(prefix="metashard-") as folder:
            train.append(of_train(Path(folder), data))
        print(
            f"hello {hello[-1]:.1f} s, first meta-step {list(train[-1].values())[-1]:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    print(f"medians of {repeats} repeats, seconds from the start of the command")
    print(f"{'hello-world':52}{statistics.median(hello):8.1f}")
    for stage in train[0]:
        print(f"{stage:52}{statistics.median(one[stage] for one in train):8.1f}")
    later = statistics.median(list(ours.values())[-1] - theirs for ours, theirs in zip(train, hello, strict=True))
    tell("later than hello-world", later, BOUND_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data/glyphs", help="a packed data set")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one repeat, to see that it works")
    parser.add_argument("--keep", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.keep:
        keep(*arguments.keep)
        return
    on_data(arguments.data, compare, 1 if arguments.quick else arguments.repeats)


if __name__ == "__main__":
    main()
