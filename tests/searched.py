"""A sweep's folder as a sweep leaves it, without training anything."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from pipeline.spool import KIND, Spool

SPACE = {
    "learner.kind": 'choice ["gradient", "prototype", "ridge"]',
    "meta.optimizer.lr": "loguniform [0.0001, 0.1]",
    "meta.batch": "choice [2, 4, 8]",
    "learner.rule.lr": "loguniform [0.01, 1.0] where learner.kind is gradient",
    "learner.steps": "int [1, 5] where learner.kind is gradient",
}
CONFIG = {
    "name": "found",
    "learner": {"choice": [{"kind": "gradient", "steps": {"int": [1, 5]}}, {"kind": "prototype"}]},
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
    metric: str = "validation/score",
    mode: str = "max",
    planned: int = 12,
) -> Path:
    """Write a sweep's folder; without `is_told` the sweep was killed before it wrote its result."""
    folder.mkdir(parents=True)
    settings = {"name": "found", "trials": str(planned), "search": "random", "scheduler": "asha", "seed": "0"}
    told = Spool(folder)
    told.params({**settings, "metric": metric, "mode": mode, **{f"space.{key}": text for key, text in SPACE.items()}})
    told.tags({KIND: "sweep", "data.fingerprint": "5eed" * 16, "python": "3.11.7"})
    best = None
    pick = max if mode == "max" else min
    for row in rows:
        values = {"sweep/meta_steps": row["steps"], "sweep/seconds": row["seconds"]}
        if row["score"] is not None:
            best = row["score"] if best is None else pick(best, row["score"])
            values |= {"sweep/score": row["score"], "sweep/best_score": best}
        told.metrics(row["number"], values)
        _make_trial(folder / row["run"], row)
    told.status(status)
    told.close()
    (folder / "sweep.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    scored = [row for row in rows if row["score"] is not None]
    if is_told:
        first = pick(scored, key=lambda row: row["score"])["number"] if scored else None
        result = {"metric": metric, "mode": mode, "trials": rows, "best": first, "importance": {}}
        (folder / "result.json").write_text(json.dumps(result))
        if scored:
            (folder / "best.yaml").write_text(yaml.safe_dump({"name": "best-of-found", "meta": {"batch": 4}}))
    return folder


def _make_trial(folder: Path, row: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    tree: dict[str, Any] = {"name": "found"}
    for key, value in row["point"].items():
        *path, last = key.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    told = Spool(folder)
    told.params({"name": "found", "meta.steps": "30"})
    for step in range(1, row["steps"] + 1):
        told.metrics(step, {"train/loss": 1 / step, "time/step_s": 0.5})
    if row["score"] is not None:
        told.metrics(row["steps"], {"validation/score": row["score"], "validation/interval": 0.02})
    told.status({"finished": "FINISHED", "failed": "FAILED"}.get(row["state"], "KILLED"))
    told.close()
