"""What is told of a run besides its metrics: settings at the start; at the end test scores, pictures, a summary."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import checkpoint, evaluate, lineage, machine, register, restore, spool, tracking
from pipeline.archive import CONFIG_FILE
from pipeline.build import MakeLearner
from pipeline.build_mixture import fingerprints
from pipeline.config import dump, fingerprint, flatten, parse
from pipeline.data.index import Index
from pipeline.data.shapes import in_words
from pipeline.errors import InputError
from pipeline.evaluate import Evaluation
from pipeline.judging import ranged, shown
from pipeline.learners.learner import Mode
from pipeline.restore import Subject
from pipeline.schema.run import RunConfig
from pipeline.shipment import read_json
from pipeline.spool import Spool

VERSIONS = ("metashard", "torch", "ray", "mlflow", "webdataset", "numpy")
RESULT_FILE = "result.json"
FLOOR_EPISODES = 100
"""Of the test episodes, how many the untrained learner is measured on: where a run began need not be known as well as its end."""


def tell_start(run: Path, config: RunConfig, index: Index, origins: Mapping[str, str]) -> None:
    """Settings, data sets and their hashes, git revision, versions and machine, what it begins from, the jobs that it runs in,
    and that it is running."""
    jobs = lineage.jobs(spool.history(run).tags)
    told = Spool(run)
    told.params({key: str(value) for key, value in flatten(dump(config)).items()})
    told.tags(
        {
            **fingerprints(config, index),
            "config.fingerprint": fingerprint(config),
            **origins,
            **jobs,
            "mlflow.source.git.commit": _revision(),
            "python": platform.python_version(),
            "machine": machine.described(),
            **{f"version.{name}": importlib.metadata.version(name) for name in VERSIONS},
        }
    )
    for name, values in lineage.data_sets(config, index):
        told.data(name, values)
    told.artifact(run / CONFIG_FILE)
    told.status("RUNNING")
    told.close()


def tell_end(run: Path, status: str) -> None:
    """How the run ended."""
    told = Spool(run)
    told.status(status)
    told.close()


def _revision() -> str:
    """The git revision of this code, with a mark if it was changed since; "unknown" outside a checkout."""
    where = Path(__file__).parent
    command = ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def conclude(run: Path, config: RunConfig, index: Index, make_learner: MakeLearner) -> dict[str, Any]:
    """Evaluate the best checkpoint on the test episodes and the untrained learner on the first of them, draw, keep it all."""
    best = checkpoint.best(run)
    subject = Subject(dump(config), str(best.absolute()), make_learner)
    asked = {"split": config.data.test, "workers": config.workers.least}
    episodes = config.evaluate.episodes
    began = time.monotonic()
    subjects = restore.subjects_by_data(subject)
    measured, rows = evaluate.measure(subject, episodes=episodes, **asked)
    trained = before = evaluate.summed(subject, measured, rows, split=config.data.test)
    by_data = {
        name: trained if own is subject else evaluate.evaluate(own, episodes=episodes, **asked)
        for name, own in subjects.items()
    }
    # Without a meta-step both are the same learner.
    if config.meta.steps:
        untrained = subject._replace(checkpoint="")
        before = evaluate.evaluate(untrained, episodes=min(episodes, FLOOR_EPISODES), **asked)
    result = {
        "test": trained.as_json(),
        "untrained": before.as_json(),
        "mode": config.evaluate.mode,
        "checkpoint": best.name,
        **({"data": {name: found.as_json() for name, found in by_data.items()}} if len(by_data) > 1 else {}),
        "evaluation_s": time.monotonic() - began,
    }
    evaluate.write(result, run / RESULT_FILE)
    from pipeline import drawing  # a second, without which a run starts

    floor = result["untrained"][config.evaluate.mode][trained.metric]["mean"]
    drawn = drawing.draw(run, subject, measured, rows, floor=floor)
    told = Spool(run)
    _tell_scores(told, "test", trained)
    for name, found in by_data.items() if len(by_data) > 1 else ():
        _tell_scores(told, f"test/{name}", found)
    told.artifact(run / RESULT_FILE)
    told.artifact(best / "manifest.json", "checkpoint")
    for path in drawn:
        told.artifact(path, "pictures")
    told.close()
    if config.tracking.is_model:
        _tell_model(run, config, best)
    return result


def _tell_model(run: Path, config: RunConfig, best: Path) -> None:
    """The best checkpoint as a model; what goes wrong with it costs the run nothing."""
    try:
        register.tell(run, config, best)
    except (InputError, OSError) as error:
        name = config.tracking.register_as
        options = f" {name}" if name else ""
        options += f" --alias {config.tracking.alias}" if config.tracking.alias else ""
        print(
            f"warning: no model was made of {best} ({error}); metashard register {run}{options} tries again",
            file=sys.stderr,
        )


def _tell_scores(told: Spool, start: str, evaluation: Evaluation) -> None:
    for mode, metrics in evaluation.scores.items():
        for name, found in metrics.items():
            told.metrics(
                evaluation.step,
                {f"{start}/{mode.value}/{name}": found.mean, f"{start}/{mode.value}/{name}_interval": found.interval},
            )
        for name, (mean, interval) in evaluation.pooled[mode].items():
            told.metrics(evaluation.step, {f"{start}/{mode.value}/{name}": mean})
            if interval is not None:
                told.metrics(evaluation.step, {f"{start}/{mode.value}/{name}_interval": interval})


def redraw(run: Path) -> list[Path]:
    """Draw a finished run anew and send that to its MLflow; its best checkpoint is measured again, in this process.

    Raises:
        InputError: the run has not ended, or its data are not there.
    """
    from pipeline import drawing  # a second

    result = read_json(run / RESULT_FILE)
    if not result:
        raise InputError(
            f"{run} has no {RESULT_FILE}, so its training has not ended; metashard train CONFIG --resume {run}"
        )
    subject = restore.subject_of(checkpoint.best(run))
    config = parse(dict(subject.config), str(run))
    found, rows = evaluate.measure(subject, split=config.data.test, episodes=config.evaluate.episodes, workers=1)
    floor = result["untrained"][result["mode"]][result["test"]["metric"]]["mean"]
    made = drawing.draw(run, subject, found, rows, floor=floor)
    told = Spool(run)
    for path in made:
        told.artifact(path, "pictures")
    told.close()
    tracking.sync(run, uri=tracking.target_uri(run))
    return made


def stopped_text(run: Path, step: int) -> str:
    """What to tell when somebody stopped the run."""
    return f"stopped after meta-step {step}; go on with: metashard train CONFIG --resume {run}"


def finished_text(run: Path, result: dict[str, Any], uri: str, *, is_sent: bool) -> str:
    """What to tell at the end: the task's headline in both modes, and what else was found in the run's own."""
    test, untrained = result["test"], result["untrained"]
    metric, chosen = test["metric"], test[result["mode"]]
    lines = [
        f"run        {run}",
        f"test       {in_words(test)}, {chosen[metric]['episodes']} episodes of classes never seen in training",
    ]
    for mode in Mode:
        found, floor = (ranged(metric, side[mode.value][metric]) for side in (test, untrained))
        lines.append(f"{mode.value:<15}{metric} {found}   (untrained {floor})")
    for name, found in result.get("data", {}).items():
        lines.append(f"on {name}: {metric} {ranged(metric, found[result['mode']][metric])}")
    others = [f"{n.replace('_', ' ')} {shown(n, found['mean'])}" for n, found in chosen.items() if n != metric]
    if others:
        lines.append(f"{result['mode'] + ':':<15}{', '.join(others)}")
    lines.append(f"MLflow     run {tracking.run_id_of(run) or 'not sent yet'} in {tracking.plain_uri(uri)}")
    lines.append(
        "open it    metashard ui" if is_sent else "MLflow has not got everything; send the rest: metashard sync"
    )
    return "\n".join(lines)
