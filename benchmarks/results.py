"""Claim: the table of methods in docs/results.md. One run per method and benchmark, all with the same backbone, number of
training episodes, outer optimizer and frozen test episodes; each is a run in MLflow. What is done is not done again: stop
it with Ctrl-C and start it again. Nothing is chosen on validation: the last checkpoint of a run is measured.

    python benchmarks/results.py --data ../shared/data                 # all, hours on two cores
    python benchmarks/results.py --data … --only omniglot-5w1s --methods maml,prototypes
    python benchmarks/results.py --table                               # what there is so far, as Markdown
"""

from __future__ import annotations

import argparse
import json
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline import build, prepare, train
from pipeline.config import parse
from pipeline.data.index import Index
from pipeline.engine import Engine, Plan
from pipeline.errors import InputError
from pipeline.learners.learner import Mode
from pipeline.loop import Diverged
from pipeline.memory import peak_bytes
from pipeline.watch import watching


class Benchmark(NamedTuple):
    """A data set, a shape of episodes, a backbone and a budget of `steps` meta-steps of `batch` episodes."""

    data: str
    ways: int
    shots: int
    model: dict[str, Any]
    rate: float
    """Inner rate of methods that adapt the whole network."""
    steps: int
    batch: int
    queries: int
    test: str
    options: dict[str, Any]


MODEL = {"kind": "conv4", "width": 32, "downsample": "stride", "features": "flatten"}
OMNIGLOT = {"rotations": True, "invert": True}
BENCHMARKS = {
    "omniglot-5w1s": Benchmark("omniglot", 5, 1, MODEL, 0.1, 300, 8, 5, "test", OMNIGLOT),
    "omniglot-5w5s": Benchmark("omniglot", 5, 5, MODEL, 0.1, 300, 8, 5, "test", OMNIGLOT),
    "omniglot-20w1s": Benchmark("omniglot", 20, 1, MODEL, 0.1, 300, 4, 3, "test", OMNIGLOT),
    "cifar_fs-5w1s": Benchmark("cifar_fs", 5, 1, MODEL, 0.05, 300, 4, 10, "val", {}),
    "cifar_fs-5w5s": Benchmark("cifar_fs", 5, 5, MODEL, 0.05, 300, 4, 10, "val", {}),
}
STEPS = 3
"""Inner steps of methods that take several."""


class Method(NamedTuple):
    """A learner as a config, what it changes in the model, and published figures by benchmark, % (sources: docs/results.md)."""

    learner: dict[str, Any]
    model: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    published: dict[str, float] = {}
    mini: tuple[float, ...] = ()
    """Published for mini-ImageNet, 5-way 1-shot and 5-shot, %, where no figure for one of these benchmarks is known."""
    scale: float = 1.0
    """Factor on the benchmark's inner rate."""
    apart: dict[str, dict[str, Any]] = {}
    """Keys of the learner that are others on a benchmark."""
    start: str = ""
    """The method whose run on the same benchmark gives the initial weights."""
    teacher: str = ""
    """The method whose run on the same benchmark is listened to."""


def _gradient(**keys: Any) -> dict[str, Any]:
    return {"kind": "gradient", "steps": STEPS, "rule": {"kind": "sgd"}, **keys}


def _figures(*values: float | None) -> dict[str, float]:
    return {name: value for name, value in zip(BENCHMARKS, values, strict=False) if value is not None}


SUPERVISED = {"batch": 4}
"""64 images a part: about as many in all as a gradient learner sees in its episodes."""
UNTRAINED = {"steps": 0}


def _tuned(**keys: Any) -> dict[str, Any]:
    """A head made anew in every episode and fitted for 100 steps, on features as they are."""
    settings = {"steps": 100, "initial": {"kind": "fresh"}, "statistics": "start", "adapts": r"head\..*"}
    return _gradient(**{**settings, **keys})


METHODS = {
    "no-pre-training": Method(_tuned(adapts=".*", statistics="support", steps=20), meta=UNTRAINED),
    "supervised": Method({"kind": "supervised"}, meta=SUPERVISED),
    "supervised-cosine": Method({"kind": "supervised", "head": {"kind": "cosine"}}, meta=SUPERVISED),
    "self-distilled": Method({"kind": "supervised"}, meta=SUPERVISED, teacher="supervised"),
    "fine-tune": Method(_tuned(), meta=UNTRAINED, start="supervised", mini=(42.1, 62.5)),
    # With kept norm statistics whole networks diverge at the others' rate; chosen on validation classes (docs/results.md).
    "fine-tune-all": Method(_tuned(adapts=".*", steps=20), meta=UNTRAINED, start="supervised", scale=0.1),
    "baseline++": Method(
        _tuned(adapts=r"head\.weight", head={"kind": "cosine"}),
        meta=UNTRAINED,
        start="supervised-cosine",
        mini=(48.2, 66.4),
    ),
    "rfs": Method(
        {"kind": "logistic", "normalise": True},
        meta=UNTRAINED,
        start="self-distilled",
        published=_figures(None, None, None, 63.8, 79.5),
    ),
    "maml": Method(_gradient(), published=_figures(98.7, 99.9, 95.8, 58.9, 71.5)),
    "fomaml": Method(_gradient(estimate={"kind": "first_order"}), published=_figures(98.3, 99.2, 89.4)),
    "reptile": Method(
        _gradient(estimate={"kind": "reptile"}),
        meta={"optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.0}},
        published=_figures(95.4, 98.9, 88.1),
    ),
    "imaml": Method(
        # With less damping conjugate gradients do not converge on a network as curved as this.
        _gradient(steps=8, estimate={"kind": "implicit", "damping": 100.0}),
        published=_figures(99.2, 99.7, 94.5),
        scale=0.08,
        # Five shots curve it more: with the others' damping the run ended at meta-step 212. Rate times damping is the others'.
        apart={
            "omniglot-5w5s": {
                "estimate": {"kind": "implicit", "damping": 200.0},
                "rule": {"kind": "sgd", "lr": 0.004},
            }
        },
    ),
    "es-maml": Method(_gradient(estimate={"kind": "es", "pairs": 4, "sigma": 0.02})),
    "anil": Method(_gradient(adapts=r"head\..*"), published=_figures(None, None, 96.2), mini=(46.7, 61.5)),
    "boil": Method(_gradient(adapts=r"encoder\..*"), mini=(49.6, 66.5)),
    "bitfit": Method(_gradient(adapts=r".*\.bias"), scale=10.0),
    "film": Method(_gradient(adapts=r"encoder\.norms\..*"), scale=10.0),
    "protomaml": Method(_gradient(initial={"kind": "prototypes"}), scale=0.2),
    "cavia": Method(_gradient(initial={"kind": "context"}), model={"context": 100}, scale=10.0, mini=(49.8, 64.6)),
    "meta-sgd": Method(_gradient(rule={"kind": "per_element"}), published=_figures(99.5, 99.9, 95.9)),
    "maml++": Method(
        _gradient(rule={"kind": "per_step"}, estimate={"kind": "unrolled", "multi_step": 60, "first_order_until": 60}),
        model={"norm": "batch_per_step"},
        published=_figures(99.5, 99.9, 97.7),
    ),
    "meta-curvature": Method(
        _gradient(rule={"kind": "curvature"}), published=_figures(99.97, 99.89), mini=(55.7, 70.3)
    ),
    "warpgrad": Method(
        _gradient(adapts=r"(?!encoder\.warps).*", estimate={"kind": "warp"}),
        model={"warp": True},
        mini=(52.3, 68.4),
    ),
    "meta-lstm": Method(_gradient(rule={"kind": "lstm"}), mini=(43.4, 60.6)),
    "mlp-optimizer": Method(_gradient(rule={"kind": "mlp"})),
    "procedure": Method(
        _gradient(rule={"kind": "procedure"}, estimate={"kind": "es_rule", "rest": {"kind": "unrolled"}})
    ),
    "cnaps": Method({"kind": "film"}),
    "metanet": Method({"kind": "metanet"}, published=_figures(98.95, None, 97.0), mini=(49.2,)),
    "leo": Method({"kind": "leo"}, mini=(61.8, 77.6)),
    "matching-full-context": Method({"kind": "matching", "reads": 5}, mini=(43.6, 55.3)),
    "matching": Method({"kind": "matching"}, published=_figures(98.1, 98.9, 93.8)),
    "relation": Method(
        {"kind": "relation"}, model={"features": "map"}, published=_figures(99.6, 99.8, 97.6, 55.0, 69.3)
    ),
    "ridge": Method({"kind": "ridge"}, published=_figures(98.6, 99.7, 94.7, 65.3, 79.4)),
    "logistic": Method({"kind": "logistic"}),
    "svm": Method({"kind": "svm"}, published=_figures(None, None, None, 72.8, 85.0)),
    "prototypes": Method({"kind": "prototype"}, published=_figures(98.8, 99.7, 96.0, 55.5, 72.0)),
    "pre-trained-prototypes": Method({"kind": "prototype"}, start="supervised"),
    "narrow-prototypes": Method({"kind": "prototype"}, model={"width": 8}),
    "taught-prototypes": Method({"kind": "prototype"}, model={"width": 8}, teacher="prototypes"),
}


def tree(name: str, benchmark: str, data: Path, runs: Path) -> dict[str, Any]:
    """The config of a cell of the table."""
    method, asked = METHODS[name], BENCHMARKS[benchmark]
    learner = json.loads(json.dumps(method.learner))
    if "rule" in learner:
        learner["rule"]["lr"] = asked.rate * method.scale
    learner |= method.apart.get(benchmark, {})
    origins: dict[str, Any] = {}
    if method.start:
        origins["start"] = str(_folder(method.start, benchmark, runs))
    if method.teacher:
        origins["teacher"] = {"start": str(_folder(method.teacher, benchmark, runs))}
    return {
        **origins,
        "name": f"{benchmark}-{name}".replace("+", "p"),
        "runs": str(runs),
        "data": {
            "root": str(data / asked.data),
            "ways": asked.ways,
            "shots": asked.shots,
            "queries": asked.queries,
            "test": asked.test,
            **asked.options,
        },
        "model": {**asked.model, **method.model},
        "learner": learner,
        "meta": {
            "steps": asked.steps,
            "batch": asked.batch,
            "optimizer": {"kind": "adam", "lr": 2e-3},
            "schedule": {"kind": "cosine", "floor": 0.01},
            **method.meta,
        },
        "validation": {"every": asked.steps, "episodes": 20},
        "checkpoint": {"every": 1000},
        "evaluate": {"queries": 15, "episodes": 600},
        "workers": {"threads": 1},
        "tracking": {"experiment": "results"},
    }


def _row(name: str, benchmark: str, runs: Path) -> Path:
    return runs / "rows" / f"{benchmark}-{name}.json"


def _folder(name: str, benchmark: str, runs: Path) -> Path:
    """The run of a cell that is done."""
    try:
        return runs / json.loads(_row(name, benchmark, runs).read_text())["run"]
    except FileNotFoundError as error:
        raise InputError(
            f"it begins with the run of {name} on {benchmark}, which is not there; run that first"
        ) from error


def packed(name: str, source: Path, data: Path) -> None:
    """Pack a data set unless it is there. CIFAR-FS comes as two zips of class folders: one per split."""
    if (data / name / "index").is_dir():
        return
    if name == "omniglot":
        prepare.pack(str(source / "omniglot"), data / name, layout="omniglot", size=28)
        return
    joined = data / f"{name}.zip"
    joined.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(joined, "w") as whole:
        for split in ("train", "val"):
            with zipfile.ZipFile(source / "cifar_fs_trainval" / f"meta_{split}.zip") as part:
                for entry in part.namelist():
                    if entry.endswith(".png"):
                        whole.writestr(f"{split}/{'/'.join(entry.split('/')[-2:])}", part.read(entry))
    prepare.pack(str(joined), data / name, layout="folder", size=32)
    joined.unlink()


def peak_mib(config: dict[str, Any]) -> float:
    """The most that the tensors of one episode take, MiB: forward and backward in training, adaptation where there is none."""
    asked = parse(config, "results")
    index = Index.open(asked.data.root)
    learner, bring = build.learner(asked, index), build.place(asked, torch.device("cpu"))
    if asked.meta.steps:
        with build.loader(asked, index, rank=0, world=1) as loader:
            (episode, *_) = loader.share(0, last=1).episodes
        engine = Engine(learner, Plan("loop", 1))
        return peak_bytes(lambda: engine([bring(episode)]).loss.backward()) / 2**20
    drawn = build.sampler(asked, index, asked.data.test).draw(0, 0)
    support, query, ways, _ = bring(build.reader(asked, index).episode(drawn))
    return peak_bytes(lambda: learner.adapt(support, ways, mode=Mode.INDUCTIVE)(query.inputs)) / 2**20


class Clock:
    """CPU seconds of this process while it trains: with one thread the seconds of an idle core, whatever else runs."""

    seconds = 0.0

    @contextmanager
    def watching(self, folder: Path, steps: int) -> Iterator[None]:
        """As `watch.watching`, and the clock runs."""
        with watching(folder, steps):
            began = time.process_time()
            yield
            self.seconds = time.process_time() - began


def run(name: str, benchmark: str, data: Path, runs: Path) -> None:
    """Train and evaluate one cell, unless its row is there."""
    row = _row(name, benchmark, runs)
    if row.exists():
        return
    config = tree(name, benchmark, data, runs)
    clock = Clock()
    finished = train.fit(parse(config, f"{benchmark} {name}"), watch=clock.watching)
    if not finished.result:
        raise KeyboardInterrupt
    seconds = clock.seconds
    row.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "test": finished.result["test"],
        "seconds": seconds,
        "peak_mib": peak_mib(config),
        "run": finished.folder.name,
    }
    row.write_text(json.dumps(told, indent=1))
    print(f"{benchmark} {name}: {told['test']['inductive']['accuracy']} in {seconds:.0f} s", flush=True)


def table(runs: Path) -> str:
    """All rows there are, as Markdown."""
    lines = []
    for benchmark, asked in BENCHMARKS.items():
        rows = [(name, _row(name, benchmark, runs)) for name in METHODS]
        found = [(name, json.loads(path.read_text())) for name, path in rows if path.exists()]
        if not found:
            continue
        episodes = asked.steps * asked.batch
        lines += [
            "",
            f"**{benchmark}**: {episodes:,} training episodes, test classes of `{asked.test}`, 15 queries, 600 episodes",
            "",
            "| method | inductive | transductive | training, CPU s | MiB an episode | published |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in found:
            scores = [row["test"][mode]["accuracy"] for mode in ("inductive", "transductive")]
            shown = " | ".join(f"{100 * s['mean']:.2f} ± {100 * s['interval']:.2f}" for s in scores)
            lines.append(
                f"| {name} | {shown} | {row['seconds']:.0f} | {row['peak_mib']:.1f} | {_published(name, benchmark)} |"
            )
    return "\n".join(lines)


def _published(name: str, benchmark: str) -> str:
    """The published figure of a cell; in brackets that of mini-ImageNet, with as many ways and shots."""
    method, asked = METHODS[name], BENCHMARKS[benchmark]
    if benchmark in method.published:
        return str(method.published[benchmark])
    of_shots = dict(zip((1, 5), method.mini, strict=False))
    return f"({of_shots[asked.shots]})" if asked.ways == 5 and asked.shots in of_shots else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="folder with omniglot/ and cifar_fs_trainval/ as they were downloaded"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="benchmarks, separated by commas")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, separated by commas")
    parser.add_argument("--table", action="store_true", help="print what there is and run nothing")
    arguments = parser.parse_args()
    asked, methods = arguments.only.split(","), arguments.methods.split(",")
    if unknown := [name for name in asked if name not in BENCHMARKS] + [
        name for name in methods if name not in METHODS
    ]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join([*BENCHMARKS, *METHODS])}")
    if not arguments.table and arguments.data is None:
        parser.error("--data is needed: the product never downloads data")
    if not arguments.table:
        for benchmark in asked:
            packed(BENCHMARKS[benchmark].data, arguments.data, Path("data"))
            for name in methods:
                try:
                    run(name, benchmark, Path("data").absolute(), arguments.runs.absolute())
                except (InputError, Diverged) as error:
                    print(f"{benchmark} {name}: no figure: {error}", flush=True)
    print(table(arguments.runs))


if __name__ == "__main__":
    main()
