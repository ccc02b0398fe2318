"""A sweep's folder as a sweep leaves it, without training anything."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from pipeline.ledger import FILE, FORMAT
from pipeline.space import Space
from pipeline.spool import KIND, Spool

GRADIENT = {"kind": "gradient", "rule": {"kind": "sgd", "lr": {"loguniform": [0.01, 1]}}, "steps": {"int": [1, 5]}}
TREE = {
    "name": "found",
    "learner": {"choice": [GRADIENT, {"kind": "prototype"}, {"kind": "ridge"}]},
    "meta": {"optimizer": {"kind": "adam", "lr": {"loguniform": [0.0001, 0.1]}}, "batch": {"choice": [2, 4, 8]}},
    "sweep": {"trials": 12, "scheduler": {"kind": "asha", "grace": 10}},
}


def trials(many: int, *, seed: int = 0, failing: float = 0.15, objectives: bool = False) -> list[dict[str, Any]]:
    """Trials as a sweep's result tells them; the score follows from the outer rate and from the kind of learner."""
    draw = random.Random(seed)
    made = []
    for number in range(many):
        kind = draw.choice(["gradient", "prototype", "ridge"])
        point: dict[str, Any] = {"learner.kind": kind, "meta.optimizer.lr": 10 ** draw.uniform(-4, -1)}
        point["meta.batch"] = draw.choice([2, 4, 8])
        if kind == "gradient":
            point |= {"learner.rule.lr": 10 ** draw.uniform(-2, 0), "learner.steps": draw.randint(1, 5)}
        far = math.log10(point["meta.optimizer.lr"]) + 2.5
        score = 0.5 + 0.3 * math.exp(-far * far) + 0.1 * (kind == "gradient")
        state, said = draw.choice(["finished", "finished", "stopped"]), ""
        if draw.random() < failing:
            state, score, said = "failed", None, "the gradient is not finite <script>alert(1)</script>"
        told = {"parameters": 10 ** draw.uniform(4, 6)} if objectives else {}
        run = f"trials/{number:04d}"
        row = {
            "number": number,
            "state": state,
            "point": point,
            "score": score,
            "steps": 30 if state == "finished" else 10,
        }
        made.append({**row, "seconds": 12.3 + number, "run": run, "said": said, "objectives": told})
    return made


def make_sweep(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    status: str = "FINISHED",
    is_told: bool = True,
    has_ledger: bool = True,
    metric: str = "validation/score",
    mode: str = "max",
) -> Path:
    """Write a sweep's folder; without `is_told` it has no result yet, and is in its last trial."""
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(TREE, sort_keys=False))
    space = Space({key: value for key, value in TREE.items() if key != "sweep"}, "test").told()
    settings = {"name": "found", "trials": "12", "search": "random", "scheduler": "asha", "seed": "0"}
    told = Spool(folder)
    told.params({**settings, "metric": metric, "mode": mode, **{f"space.{key}": text for key, text in space.items()}})
    told.tags({KIND: "sweep", "data.fingerprint": "5eed" * 16, "python": "3.11.7"})
    events: list[dict[str, Any]] = [{"t": 0.0, "event": "driver", "format": FORMAT}]
    for row in rows:
        events += _events(row, is_over=is_told or row is not rows[-1])
        _make_trial(folder / row["run"], row)
    told.status(status)
    told.close()
    if has_ledger:
        (folder / FILE).write_text("".join(f"{json.dumps(event)}\n" for event in events))
    scored = [row for row in rows if row["score"] is not None]
    if is_told:
        pick = max if mode == "max" else min
        first = pick(scored, key=lambda row: row["score"])["number"] if scored else None
        result = {"metric": metric, "mode": mode, "trials": rows, "best": first}
        (folder / "result.json").write_text(json.dumps(result))
        if scored:
            (folder / "best.yaml").write_text(yaml.safe_dump({"name": "best-of-found", "meta": {"batch": 4}}))
    return folder


def _events(row: dict[str, Any], *, is_over: bool) -> list[dict[str, Any]]:
    """What the ledger says of a trial."""
    number, began = row["number"], 100.0 * row["number"]
    told: list[dict[str, Any]] = [
        {"t": began, "event": "proposed", "trial": number, "point": row["point"], "origin": "search"},
        {"t": began, "event": "begun", "trial": number, "node": "here"},
    ]
    if row["score"] is not None:
        told.append({"t": began + 5, "event": "value", "trial": number, "step": row["steps"], "value": row["score"]})
    if is_over:
        end = {key: row[key] for key in ("state", "said", "objectives")}
        told.append({"t": began + row["seconds"], "event": "ended", "trial": number, **end})
    return told


def _make_trial(folder: Path, row: dict[str, Any]) -> None:
    """An ordinary run."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: found\n")
    told = Spool(folder)
    told.params({"name": "found", "meta.steps": "30"})
    for step in range(1, row["steps"] + 1):
        told.metrics(step, {"train/loss": 1 / step, "time/step_s": 0.5})
    if row["score"] is not None:
        told.metrics(row["steps"], {"validation/score": row["score"], "validation/interval": 0.02})
    told.status("FAILED" if row["state"] == "failed" else "FINISHED")
    told.close()
