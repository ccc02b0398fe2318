"""Claim: a chooser of runs beats the run that is best on average, on tasks of scripts and alphabets that nothing was fitted to.

A shelf of runs, each trained on the embedded glyphs or on Omniglot alone, is measured on tasks of validation classes; a chooser
is fitted to that and judged on test classes, for three seeds of the tasks. A second, harder shelf has `both-proto` too, which was
trained on both. Then inner steps and rate that leave-one-out chooses for a gradient learner, against those of its config on the
same tasks. Omniglot is split by alphabets: the evaluation set is the test; validation are the alphabets whose scripts are
validation or test scripts of the glyphs, so that no run has learned from drawings by hand a script that it is asked for in print.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline import candidates, choice_report, choose_model, prepare, restore, shelf, table, train
from pipeline.config import parse
from pipeline.data.importers.omniglot import omniglot
from pipeline.data.loader import frozen
from pipeline.judging import score
from pipeline.run_folder import found_run
from pipeline.session import silent
from pipeline.shelf import Shelf
from pipeline.task_family import Family, Range

SEEDS = (0, 1, 2)
FAMILY = Family(Range(2, 20), Range(1, 10), 5)
QUICK = Family(Range(2, 4), Range(1, 2), 2)
FITTED, JUDGED = 120, 160
"""Tasks of validation classes that a chooser is fitted to, of test classes that it is judged on; half of each data set."""
SETTLED = 40
"""Tasks of each data set and seed, on which settings are compared: the first of those that a chooser is judged on."""
VALIDATION = ("Armenian", "Asomtavruli_(Georgian)", "Hebrew", "Mkhedruli_(Georgian)", "N_Ko", "Tifinagh")
SHELF = ("glyphs-proto", "glyphs-ridge", "glyphs-protomaml", "omniglot-proto", "omniglot-supervised")
HARDER = (*SHELF, "both-proto")

MAX_POOL = {"kind": "conv4", "width": 32, "downsample": "max_pool", "features": "flatten"}
STRIDE = {"kind": "conv4", "width": 32, "downsample": "stride", "features": "mean"}
ONE_SHOT = {"ways": 20, "shots": 1, "queries": 5}
FIVE_SHOT = {"ways": 10, "shots": 5, "queries": 5}
PROTO = {"learner": {"kind": "prototype"}, "model": MAX_POOL, "data": ONE_SHOT, "meta": {"steps": 400, "batch": 4}}
PROTOMAML = {
    "learner": {
        "kind": "gradient",
        "initial": {"kind": "prototypes"},
        "rule": {"kind": "sgd", "lr": 0.05},
        "steps": 3,
        "estimate": {"kind": "unrolled"},
    },
    "model": STRIDE,
    "data": FIVE_SHOT,
    "meta": {"steps": 500, "batch": 4},
}
METHODS: dict[str, dict[str, Any]] = {
    "proto": PROTO,
    "ridge": {"learner": {"kind": "ridge"}, "model": MAX_POOL, "data": FIVE_SHOT, "meta": {"steps": 300, "batch": 4}},
    "supervised": {
        "learner": {"kind": "supervised", "samples": 64, "head": {"kind": "cosine"}},
        "model": MAX_POOL,
        "data": ONE_SHOT,
        "meta": {"steps": 800, "batch": 2},
    },
    "protomaml": PROTOMAML,
}


def tree(name: str, data: Path, runs: Path, *, quick: bool) -> dict[str, Any]:
    """The config of a run of the shelf, as a file would have it."""
    where, method = name.split("-")
    sections = METHODS[method]
    roots = {"root": str(data / "glyphs"), "mixture": [{"root": str(data / "omniglot")}]} if where == "both" else {}
    meta = {"optimizer": {"kind": "adam", "lr": 2e-3}, "schedule": {"kind": "cosine", "floor": 0.05}}
    meta |= sections["meta"] | ({"steps": 2} if quick else {})
    return {
        "name": name,
        "runs": str(runs),
        "data": {"root": str(data / where), **roots, **sections["data"]},
        "model": sections["model"],
        "learner": sections["learner"],
        "meta": meta,
        "validation": {"every": 2 if quick else 200, "episodes": 2 if quick else 100},
        "evaluate": {"ways": 5, "shots": 1, "queries": 5, "mode": "inductive", "episodes": 2 if quick else 100},
        "engine": {"mode": "loop"},
        "workers": {"count": 1, "threads": 1},
    }


def pack(data: Path, official: Path) -> None:
    """Both data sets, Omniglot by alphabets."""
    prepare.pack("-", data / "glyphs", layout="glyphs", size=28)
    source, folder = omniglot(official, is_lakes=True), data / "alphabets"
    folder.mkdir(parents=True, exist_ok=True)
    background = source.splits["train"]
    is_kept = {name: name.split("/")[0] in VALIDATION for name in background}
    (folder / "train.txt").write_text("\n".join(name for name in background if not is_kept[name]))
    (folder / "val.txt").write_text("\n".join(name for name in background if is_kept[name]))
    (folder / "test.txt").write_text("\n".join(source.splits["test"]))
    prepare.pack(str(official), data / "omniglot", layout="omniglot", size=28, splits=folder)


def trained(data: Path, runs: Path, *, quick: bool) -> None:
    """Every run of the harder shelf, unless it is there."""
    for name in HARDER:
        config = parse(tree(name, data, runs, quick=quick), name)
        if not (runs / name / "result.json").exists():
            print(train.fit(config, resume=found_run(config, name), name=name).text, flush=True)


def without(own: Shelf, names: tuple[str, ...]) -> Shelf:
    """The shelf with the candidates of these runs alone."""
    places = [place for place, candidate in enumerate(own.candidates) if candidate.run in names]
    tasks = [task._replace(outcomes=[task.outcomes[at] for at in places]) for task in own.tasks]
    return own._replace(candidates=[own.candidates[at] for at in places], tasks=tasks)


def judged(data: Path, runs: Path, seed: int, *, quick: bool) -> None:
    """Fit and judge a chooser for both shelves; what was measured is kept, and measured once."""
    folders = {split: data / f"{'quick-' if quick else ''}{split}-{seed}" for split in ("val", "test")}
    for (split, folder), tasks in zip(folders.items(), (20, 20) if quick else (FITTED, JUDGED), strict=True):
        if not (folder / shelf.FILE).exists():
            columns = table.columns([f"{data / name}:{split}" for name in ("glyphs", "omniglot")], split)
            family, asked = QUICK if quick else FAMILY, {"tasks": tasks, "seed": seed}
            made = shelf.shelve([Path(name) for name in HARDER], runs, columns, family, progress=silent, **asked)
            shelf.keep(made, folder)
    known, new = (shelf.read(folder) for folder in folders.values())
    for title, names in (("trained on one", SHELF), ("with both-proto", HARDER)):
        found = choose_model.judged(choose_model.fit(without(known, names)), without(new, names).tasks)
        print(f"\nseed {seed}, {title}: ", end="")
        choice_report.judgement_told(found, is_json=False)


def settings(data: Path, runs: Path, *, quick: bool) -> None:
    """Settings chosen by leave-one-out against those of the config, on tasks of the family that test classes are judged on."""
    path = restore.find(Path("glyphs-protomaml"), runs)
    print(f"\n{path}: accuracy with settings by leave-one-out less that with the config's, points", flush=True)
    for column in table.columns([f"{data / name}:test" for name in ("glyphs", "omniglot")], "test"):
        restored, every = candidates.opened(path, column.index), []
        reader = shelf.reader_of(restored)
        for seed in SEEDS:
            sampler = shelf.sampler_of(column, QUICK if quick else FAMILY, seed)
            gained = []
            for _, episode in frozen(sampler, reader, range(2 if quick else SETTLED)):
                own, tuned = candidates.outcomes(restored.learner, episode)
                gained.append(tuned.accuracy - own.accuracy)
            print(f"{column.name}, seed {seed}: {score(gained)}", flush=True)
            every += gained
        print(f"{column.name}, all seeds: {score(every)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", type=Path, help="folder of the packed data sets glyphs and omniglot, and of what is made"
    )
    parser.add_argument("--pack", type=Path, help="folder of Omniglot's zips, from which to pack them first")
    parser.add_argument("--seed", type=int, action="append", help="these seeds of the tasks alone, and no settings")
    parser.add_argument("--quick", action="store_true", help="a few meta-steps and tasks, to see that it works")
    asked = parser.parse_args()
    if asked.pack:
        pack(asked.data, asked.pack)
    runs = asked.data / "runs"
    trained(asked.data, runs, quick=asked.quick)
    for seed in asked.seed or SEEDS[: 1 if asked.quick else None]:
        judged(asked.data, runs, seed, quick=asked.quick)
    if not asked.seed:
        settings(asked.data, runs, quick=asked.quick)


if __name__ == "__main__":
    main()
