"""A sweep at work: proposes trials, makes their runs, tells of their ends, and at its own what was best."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pipeline import checkpoint, failures, spool, swept, tracking
from pipeline.build import MakeLearner
from pipeline.conclude import RESULT_FILE, conclude, tell_end, tell_start
from pipeline.config import dump
from pipeline.data.index import Index
from pipeline.errors import RunFailed
from pipeline.evaluate import write
from pipeline.ledger import FAILED, FINISHED, STOPPED, Ledger, Trial
from pipeline.run_folder import new_run
from pipeline.schema.run import RunConfig
from pipeline.search import propose
from pipeline.shipment import Target, read_json
from pipeline.space import Point
from pipeline.start import provenance
from pipeline.sweep_plan import TRIALS, Plan
from pipeline.train import maker
from pipeline.warm import LIKENESS, POINT, SCORE, likeness, past_sweeps, warm_points

FILE, BEST_FILE, WARM_FILE = "sweep.yaml", "best.yaml", "warm.json"
INTERRUPTED = "interrupted"
"""The state of a trial that was begun and did not end, of a sweep that can go on."""
Tell = Callable[[str], None]


class Sweeping:
    """A sweep at work: proposes trials, makes their runs, tells of their ends."""

    def __init__(self, plan: Plan, folder: Path, ledger: Ledger, make_learner: MakeLearner, tell: Tell, target: Target):
        self.plan, self.folder, self.ledger, self.target = plan, folder, ledger, target
        self.is_asked = False
        """Whether somebody asked to stop."""
        self._make_learner, self._tell = make_learner, tell
        self._waiting = [n for n, trial in sorted(ledger.trials.items()) if not trial.is_over]
        self._told = sum(trial.is_over for trial in ledger.trials.values())
        self._first: list[tuple[Point, str]] = []
        """What is tried before the search, each with its origin."""

    def run(self, number: int) -> Path:
        """The folder of a trial's run."""
        return self.folder / TRIALS / f"{number:04d}"

    def begin(self, example: RunConfig) -> None:
        """Tell what is searched, and how, and on what data.

        Raises:
            InputError: what past sweeps say cannot be read.
        """
        asked, like = self.plan.sweep, likeness(example)
        self._first = [(dict(point), "start") for point in asked.start] + self._warm(like)
        told = spool.Spool(self.folder)
        budget = {key: getattr(asked, key) for key in ("trials", "meta_steps", "hours")}
        told.params(
            {
                "name": self.folder.name,
                "search": asked.search.kind,
                "scheduler": asked.scheduler.kind,
                "metric": asked.metric,
                "mode": asked.mode,
                "seed": str(asked.seed),
                **{key: str(value) for key, value in budget.items() if value is not None},
                **{f"space.{name}": said for name, said in self.plan.space.told().items()},
            }
        )
        told.tags({spool.KIND: swept.KIND, **({LIKENESS: json.dumps(like)} if like else {})})
        told.artifact(self.folder / FILE)
        told.status("RUNNING")
        told.close()

    def is_over(self) -> bool:
        """Whether somebody asked to stop or a budget is spent."""
        asked, trials = self.plan.sweep, self.ledger.trials.values()
        steps = sum(trial.steps for trial in trials)
        return (
            self.is_asked
            or (asked.meta_steps is not None and steps >= asked.meta_steps)
            or (asked.hours is not None and self.ledger.driven_s >= 3600 * asked.hours)
        )

    def next(self) -> tuple[int, RunConfig] | None:
        """The next trial: one that was begun and has not ended, else a new one."""
        if self._waiting:
            number = self._waiting.pop(0)
            return number, self._prepared(number)
        asked, number = self.plan.sweep, len(self.ledger.trials)
        if asked.trials is not None and number >= asked.trials:
            return None
        if number < len(self._first):
            point, origin = self._first[number]
        else:
            point, origin = propose(self.plan.space, asked, number, self.ledger.trials), "search"
        if point is None:
            return None
        self.ledger.proposed(number, point, origin)
        return number, self._prepared(number)

    def _warm(self, like: dict[str, float]) -> list[tuple[Point, str]]:
        """Points of past sweeps, asked for once: a sweep that goes on has them in a file."""
        asked, file = self.plan.sweep, self.folder / WARM_FILE
        if asked.warm is None:
            return []
        if not file.exists():
            pasts = past_sweeps(asked, asked.warm, self.target)
            found = warm_points(self.plan.space, pasts, like, asked.warm.points)
            self._tell(f"{len(found)} points of {len(pasts)} past sweeps are tried first")
            write({"points": found}, file)
        return [(point, origin) for point, origin in read_json(file)["points"]]

    def moved(self, number: int, source: int, step: int) -> RunConfig:
        """The config with which a trial goes on from another one's state."""
        scheduler, theirs = self.plan.sweep.scheduler, self.ledger.trials[source].point
        count = len(self.ledger.trials[number].exchanges)
        key = number * 1000 + count
        point = self.plan.space.moved(theirs, self.plan.sweep.seed, key, resample=getattr(scheduler, "resample", 0.0))
        self.ledger.exchanged(number, source, step, point)
        config = self._prepared(number)
        told = spool.Spool(self.run(number))
        told.tags({f"exchange.{count + 1}": f"after meta-step {step} from trial {source}"})
        told.close()
        self._tell(f"trial {number} goes on from trial {source} after meta-step {step}, with {in_words(point)}")
        return config

    def _prepared(self, number: int) -> RunConfig:
        """The run of a trial: its folder, its config, what is told at its start."""
        trial, run = self.ledger.trials[number], self.run(number)
        config = self.plan.trial(trial.point, self.folder)
        origins = {} if (run / "config.yaml").exists() else {**provenance(config), **maker(self._make_learner)}
        new_run(config, run.name)
        tell_start(run, config, Index.without_shards(config.data.root), origins)
        told = spool.Spool(run)
        told.tags({"sweep": self.folder.name, "trial": str(number), "origin": trial.origin})
        told.tags({POINT: json.dumps(trial.point)})
        told.close()
        name = f"{self.folder.name}-{number:04d}"
        tracking.write_target(run, self.target._replace(name=name, parent=os.path.relpath(self.folder, run)))
        failures.begin(run)
        return config

    def heard(self, number: int) -> None:
        """Something became of a trial."""
        trial = self.ledger.trials[number]
        if trial.is_over:
            self._ended(trial)
        elif trial.said:
            self._tell(f"trial {number} failed and is tried again: {trial.said}")

    def _ended(self, trial: Trial) -> None:
        """A trial came to its end: tell it, and what is best now."""
        asked = self.plan.sweep
        run, score = self.run(trial.number), trial.score(asked.mode)
        tell_end(run, "FAILED" if trial.state == FAILED else "FINISHED")
        told = spool.Spool(run)
        told.tags({"sweep.state": trial.state, **({"sweep.error": trial.said} if trial.said else {})})
        values = {f"objective/{name}": value for name, value in trial.objectives.items()}
        told.metrics(trial.steps, values | ({} if score is None else {SCORE: score}))
        told.close()
        self._told += 1
        best = winner(self.ledger, asked.mode)
        told = spool.Spool(self.folder)
        values = {"sweep/trial": trial.number, "sweep/meta_steps": trial.steps, "sweep/seconds": trial.seconds}
        values |= {} if score is None else {SCORE: score}
        values |= {} if best is None else {"sweep/best_score": best.score(asked.mode) or 0.0}
        told.metrics(self._told, values)
        told.close()
        self._tell(self._line(trial, best))

    def _line(self, trial: Trial, best: Trial | None) -> str:
        """A trial's end in a line."""
        mode, score = self.plan.sweep.mode, trial.score(self.plan.sweep.mode)
        of = "" if self.plan.sweep.trials is None else f"/{self.plan.sweep.trials}"
        start = f"[{self._told}{of}] trial {trial.number} {trial.state}"
        if trial.state == FAILED:
            return f"{start}: {trial.said}"
        found = "" if score is None else f": {score:.4f}"
        leads = "" if best is None else f"; best {best.score(mode):.4f} of trial {best.number}"
        return f"{start}{found} after {trial.steps} meta-steps, {trial.seconds:.0f} s ({in_words(trial.point)}){leads}"

    def settle(self) -> None:
        """What Tune left without an end: stopped with the budget, or to go on later."""
        for trial in self.ledger.trials.values():
            if trial.is_over or not trial.attempts:
                continue
            if self.is_asked:
                tell_end(self.run(trial.number), "KILLED")
            else:
                self.ledger.ended(trial.number, STOPPED)
                self._ended(trial)

    def conclude(self) -> dict[str, Any]:
        """Measure the best trial on test episodes, and keep what the sweep found.

        Raises:
            RunFailed: there is no best one.
        """
        trials, best = list(self.ledger.trials.values()), winner(self.ledger, self.plan.sweep.mode)
        if best is None:
            said = next((trial.said for trial in trials if trial.said), "no trial has a value")
            raise RunFailed(f"{self.folder}: all {len(trials)} trials failed; the first: {said}")
        run = self.run(best.number)
        config = self.plan.trial(best.point, self.folder)
        if not is_concluded(run):
            tracked = config.tracking.model_copy(update={"model": not maker(self._make_learner)})
            config = config.model_copy(update={"tracking": tracked})
            conclude(run, config, Index.open(config.data.root), self._make_learner)
        ready = self.plan.config(best.point).model_copy(update={"name": f"{self.folder.name}-best"})
        (self.folder / BEST_FILE).write_text(yaml.safe_dump(dump(ready), sort_keys=False))
        test = read_json(run / RESULT_FILE)
        from pipeline import sweep_charts  # matplotlib and scikit-learn, seconds without which a sweep starts

        found = swept.read(self.folder)
        shares = sweep_charts.importance_of(found).shares
        own = {"best": best.number, "importance": shares, "test": test["test"], "test_mode": test["mode"]}
        result = {**self._told_trials(), **own}
        write(result, self.folder / RESULT_FILE)
        drawn = sweep_charts.draw(found, self.folder / sweep_charts.FOLDER)
        told = spool.Spool(self.folder)
        measured = test["test"][test["mode"]][test["test"]["metric"]]
        told.metrics(self._told, {"best/test": measured["mean"], "best/test_interval": measured["interval"]})
        told.tags({"best.trial": str(best.number), "best.run": f"{TRIALS}/{run.name}"})
        for name in (BEST_FILE, RESULT_FILE):
            told.artifact(self.folder / name)
        for path in drawn:
            told.artifact(path, sweep_charts.FOLDER)
        told.close()
        return result

    def _told_trials(self) -> dict[str, Any]:
        """All trials as JSON values, by number."""
        asked = self.plan.sweep
        rows = []
        for trial in self.ledger.trials.values():
            rows.append(
                {
                    "number": trial.number,
                    "state": trial.state if trial.is_over else INTERRUPTED,
                    "point": trial.point,
                    "origin": trial.origin,
                    "score": trial.score(asked.mode),
                    "steps": trial.steps,
                    "seconds": trial.seconds,
                    "trained_s": trained_s(self.run(trial.number)),
                    "attempts": trial.attempts,
                    "objectives": trial.objectives,
                    "exchanges": trial.exchanges,
                    "run": f"{TRIALS}/{trial.number:04d}",
                    "said": trial.said,
                }
            )
        return {"metric": asked.metric, "mode": asked.mode, "trials": rows}


def winner(ledger: Ledger, mode: str) -> Trial | None:
    """The trial with the best score, the first of equal ones; None where none has any."""
    known = [trial for trial in ledger.trials.values() if trial.state in (FINISHED, STOPPED)]
    scored = [(score, trial) for trial in known if (score := trial.score(mode)) is not None]
    if not scored:
        return None
    best = (max if mode == "max" else min)(score for score, _ in scored)
    return next(trial for score, trial in scored if score == best)


def trained_s(run: Path) -> float:
    """Seconds that a run's meta-steps took."""
    return sum(spool.history(run).series.get("time/step_s", {}).values())


def is_concluded(run: Path) -> bool:
    """Whether a run's best checkpoint was measured."""
    return read_json(run / RESULT_FILE).get("checkpoint") == checkpoint.best(run).name


def in_words(point: dict[str, Any]) -> str:
    """A point in a line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in point.items()
    )
