"""What is told of a run besides its metrics: settings at the start; at the end test scores, pictures, a summary."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline import build, checkpoint, evaluate, spool, tracking
from pipeline.build import MakeLearner
from pipeline.config import dump, fingerprint, flatten
from pipeline.data.index import Index
from pipeline.data.loader import frozen
from pipeline.evaluate import Subject
from pipeline.judging import examine, ranged, score, shown
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.learner import Learner, Mode
from pipeline.schema import RunConfig
from pipeline.side_by_side import one_thread
from pipeline.spool import Spool
from pipeline.tasks import roc
from pipeline.tasks.detection import Detection, detections
from pipeline.tasks.segmentation import Segmentation
from pipeline.tasks.verification import Verification, trials

VERSIONS = ("metashard", "torch", "ray", "mlflow", "webdataset", "numpy")
RESULT_FILE = "result.json"
FLOOR_EPISODES = 100
"""Of the test episodes, how many the untrained learner is measured on: where a run began need not be known as well as its end."""
CURVE_EPISODES = 50
PICTURE_EPISODE = 0


def tell_start(run: Path, config: RunConfig, index: Index, origins: Mapping[str, str]) -> None:
    """Settings, data-set hash, git revision and versions, what it begins from, and that the run is running."""
    told = Spool(run)
    told.params({key: str(value) for key, value in flatten(dump(config)).items()})
    told.tags(
        {
            "data.fingerprint": index.fingerprint,
            "config.fingerprint": fingerprint(config),
            **origins,
            "mlflow.source.git.commit": _revision(),
            "python": platform.python_version(),
            **{f"version.{name}": importlib.metadata.version(name) for name in VERSIONS},
        }
    )
    told.artifact(run / "config.yaml")
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
    trained = before = evaluate.evaluate(subject, episodes=episodes, **asked)
    # Without a meta-step both are the same learner.
    if config.meta.steps:
        untrained = subject._replace(checkpoint="")
        before = evaluate.evaluate(untrained, episodes=min(episodes, FLOOR_EPISODES), **asked)
    result = {
        "test": trained.as_json(),
        "untrained": before.as_json(),
        "mode": config.evaluate.mode,
        "checkpoint": best.name,
        "evaluation_s": time.monotonic() - began,
    }
    evaluate.write(result, run / RESULT_FILE)
    floor = result["untrained"][config.evaluate.mode][trained.metric]["mean"]
    drawn = draw(run, subject, floor=floor)
    told = Spool(run)
    for mode, metrics in trained.scores.items():
        for name, found in metrics.items():
            told.metrics(
                trained.step,
                {f"test/{mode.value}/{name}": found.mean, f"test/{mode.value}/{name}_interval": found.interval},
            )
        for name, (mean, interval) in trained.pooled[mode].items():
            told.metrics(trained.step, {f"test/{mode.value}/{name}": mean})
            if interval is not None:
                told.metrics(trained.step, {f"test/{mode.value}/{name}_interval": interval})
    told.artifact(run / RESULT_FILE)
    told.artifact(best / "manifest.json", "checkpoint")
    for path in drawn:
        told.artifact(path, "pictures")
    told.close()
    return result


def draw(run: Path, subject: Subject, *, floor: float) -> list[Path]:
    """An episode of images with predictions, the loss curve of training, and for gradient learners the adaptation curve."""
    folder = run / "pictures"
    folder.mkdir(exist_ok=True)
    config, index, learner, _ = evaluate.restored(subject)
    with one_thread():
        # Features are no pictures.
        made = [] if index.encoder else [_draw_episode(folder / "episode.png", config, index, learner)]
        if config.meta.steps:
            made.append(_draw_losses(folder / "losses.png", run, learner.task.headline))
        if isinstance(learner, GradientLearner):
            made.append(_draw_adaptation(folder / "adaptation.png", config, index, learner, floor))
        if isinstance(learner.task, Verification):
            made.append(_draw_roc(folder / "roc.png", config, index, learner))
    return made


def _draw_episode(path: Path, config: RunConfig, index: Index, learner: Learner) -> Path:
    from pipeline.pictures import (
        detection_picture,
        episode_picture,
        segmentation_picture,
    )  # a second, without which a run starts

    sampler, reader = build.sampler(config, index, config.data.test), build.reader(config, index)
    drawn = sampler.draw(0, PICTURE_EPISODE)
    episode = build.place(config, torch.device("cpu"))(reader.episode(drawn))
    predict = learner.adapt(episode.support, episode.ways, mode=Mode(config.evaluate.mode))
    support, query = episode.support, episode.query
    # Of several modalities the first is shown.
    shown = index.channels(config.data.modalities[0])
    given, asked = (part.inputs[:, :shown].numpy() for part in (support, query))
    names = [index.class_names[number] for number in drawn.classes]
    if isinstance(learner.task, Segmentation):
        masks, truth = support.targets.numpy(), query.targets.numpy()
        said = predict(query.inputs).argmax(1).numpy()
        return segmentation_picture(path, given, masks, asked, truth, said, names)
    if isinstance(learner.task, Detection):
        boxes, truth = support.targets.numpy(), query.targets.numpy()
        return detection_picture(path, given, boxes, asked, truth, detections(predict(query.inputs)).numpy(), names)
    return episode_picture(
        path,
        given,
        support.targets.tolist(),
        asked,
        query.targets.tolist(),
        predict(query.inputs).argmax(-1).tolist(),
        names,
    )


def _draw_roc(path: Path, config: RunConfig, index: Index, learner: Learner) -> Path:
    """How well scores of the first test episodes tell persons apart, in the mode by which checkpoints are chosen."""
    from pipeline.pictures import roc_picture

    sampler, reader = build.sampler(config, index, config.data.test), build.reader(config, index)
    bring, mode = build.place(config, torch.device("cpu")), Mode(config.evaluate.mode)
    episodes = frozen(sampler, reader, range(min(CURVE_EPISODES, config.evaluate.episodes)))
    tallies = torch.stack([examine(learner, bring(plain), mode=mode).tally for _, plain in episodes])
    shape = build.evaluation_shape(config)
    title = f"{len(tallies)} episodes of {shape.ways} ways and {shape.shots} shots, {mode.value}"
    far, tar = roc.curve_of(trials(tallies))
    return roc_picture(path, (far.numpy(), tar.numpy()), title=title)


def _draw_losses(path: Path, run: Path, metric: str) -> Path:
    from pipeline.pictures import loss_curve

    series = spool.history(run).series
    losses, scores = series["train/loss"], series.get("validation/score", {})
    intervals = series.get("validation/interval", {})
    validation = list(scores), list(scores.values()), list(intervals.values())
    return loss_curve(path, list(losses), list(losses.values()), validation, metric=metric)


def _draw_adaptation(path: Path, config: RunConfig, index: Index, learner: GradientLearner, floor: float) -> Path:
    """The headline against inner steps on the first test episodes, in the mode by which checkpoints are chosen."""
    from pipeline.pictures import adaptation_curve

    sampler, reader = build.sampler(config, index, config.data.test), build.reader(config, index)
    bring, mode = build.place(config, torch.device("cpu")), Mode(config.evaluate.mode)
    rows = []
    for _, plain in frozen(sampler, reader, range(min(CURVE_EPISODES, config.evaluate.episodes))):
        episode = bring(plain)
        rows.append(
            [
                learner.task.verdict(predict(episode.query.inputs), episode.query.targets).item()
                for predict in learner.predictors(episode.support, episode.ways, mode=mode)
            ]
        )
    scores = [score(column) for column in zip(*rows, strict=True)]
    adaptation_curve(
        path,
        list(range(len(scores))),
        [found.mean for found in scores],
        [found.interval for found in scores],
        floor,
        metric=learner.task.headline,
    )
    return path


def stopped_text(run: Path, step: int) -> str:
    """What to tell when somebody stopped the run."""
    return f"stopped after meta-step {step}; go on with: metashard train CONFIG --resume {run}"


def finished_text(run: Path, result: dict[str, Any], uri: str, *, is_sent: bool) -> str:
    """What to tell at the end: the task's headline in both modes, and what else was found in the run's own."""
    test, untrained = result["test"], result["untrained"]
    metric, chosen = test["metric"], test[result["mode"]]
    lines = [
        f"run        {run}",
        f"test       {test['ways']}-way {test['shots']}-shot, {test['queries']} queries per class, "
        f"{chosen[metric]['episodes']} episodes of classes never seen in training",
    ]
    for mode in Mode:
        found, floor = (ranged(metric, side[mode.value][metric]) for side in (test, untrained))
        lines.append(f"{mode.value:<15}{metric} {found}   (untrained {floor})")
    others = [f"{n.replace('_', ' ')} {shown(n, found['mean'])}" for n, found in chosen.items() if n != metric]
    if others:
        lines.append(f"{result['mode'] + ':':<15}{', '.join(others)}")
    lines.append(f"MLflow     run {tracking.run_id_of(run) or 'not sent yet'} in {tracking.plain_uri(uri)}")
    lines.append(
        "open it    metashard ui" if is_sent else "MLflow has not got everything; send the rest: metashard sync"
    )
    return "\n".join(lines)
