"""What is drawn of a run at its end: episodes before and after adaptation, curves, classes; what cannot be drawn is a warning."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import build, charts, evaluate, restore
from pipeline.charts import Make, Measured
from pipeline.episode import Episode
from pipeline.judging import Judgement
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.learner import Learner, Mode
from pipeline.pictures.boxes import SURE, detection_picture
from pipeline.pictures.episodes import episode_picture
from pipeline.pictures.grid import Answer, Part
from pipeline.pictures.masks import segmentation_picture
from pipeline.restore import Restored, Subject
from pipeline.side_by_side import one_thread
from pipeline.tasks.classification import Classification
from pipeline.tasks.detection import Detection, detections
from pipeline.tasks.segmentation import Segmentation
from pipeline.tasks.verification import Verification

Untrained = Callable[[], Learner]
"""Makes the learner as its run began."""


class Moment(NamedTuple):
    """What a learner says of an episode's queries, (samples, …), and when: before or after it adapted."""

    when: str
    predictions: Tensor


def draw(
    run: Path, subject: Subject, found: Restored, rows: Sequence[Mapping[Mode, Judgement]], *, floor: float
) -> list[Path]:
    """Draw what there is to see of a run, by what each of its test episodes said; the files made.

    `floor` is the headline of the untrained learner. A picture that cannot be drawn is a warning.
    """
    config, learner, mode = found.config, found.learner, Mode(found.config.evaluate.mode)
    judgements = [row[mode] for row in rows]
    classes = [draw.classes for draw in evaluate.draws_of(found, config.data.test, len(rows))]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bring = build.place(config, device)
    measured = Measured(config, found.index, learner.to(device), bring, mode, judgements, classes)
    with one_thread():
        untrained = cache(lambda: restore.restored(subject._replace(checkpoint="")).learner.to(device))
        pictures = _pictures(run, untrained, measured, floor)
        return charts.drawn(pictures, run / charts.FOLDER, again=f"metashard show {run} --redraw")


def _pictures(run: Path, untrained: Untrained, measured: Measured, floor: float) -> Iterator[tuple[str, Make]]:
    """The name of every picture and what draws it."""
    learner = measured.learner
    # Features are no pictures.
    if not measured.index.encoder:
        for place, number in outstanding(measured).items():
            yield f"episode-{place}", partial(_episode, untrained, measured, place, number)
    if measured.config.meta.steps:
        yield "losses", partial(charts.losses, run=run, metric=learner.task.headline)
    if isinstance(learner, GradientLearner):
        yield "adaptation", partial(charts.adaptation, measured=measured, learner=learner, floor=floor)
    match learner.task:
        case Segmentation():
            yield "precision-recall", partial(charts.foreground, measured=measured)
            yield "classes", partial(charts.by_class, measured=measured, metric="IoU")
        case Detection():
            yield "precision-recall", partial(charts.detected, measured=measured)
            yield "classes", partial(charts.by_class, measured=measured, metric="AP50")
        case Verification():
            yield "roc", partial(charts.characteristic, measured=measured)
            yield "scores", partial(charts.scores, measured=measured)
        case Classification():
            yield "confusion", partial(charts.confused, measured=measured)
        case _:
            return


def outstanding(measured: Measured) -> dict[str, int]:
    """The numbers of the best, the median and the worst test episode by the task's headline; of equal ones the first."""
    scores = _scores(measured)
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    worst = min(order, key=lambda number: (scores[number], number))
    return {"best": order[0], "median": order[len(order) // 2], "worst": worst}


def _scores(measured: Measured) -> list[float]:
    headline = measured.learner.task.headline
    return [judgement.metrics[headline] for judgement in measured.judgements]


def _episode(untrained: Untrained, measured: Measured, place: str, number: int, path: Path) -> list[Path]:
    """An episode, with what the learner said of it before and after, and the same in JSON."""
    config, index, learner = measured.config, measured.index, measured.learner
    drawn = build.sampler(config, index, config.data.test).draw(0, number)
    plain = build.reader(config, index).episode(drawn)
    moments = said(measured, untrained, measured.bring(plain))
    names = [index.class_names[own] for own in drawn.classes]
    headline, value = learner.task.headline, _scores(measured)[number]
    title = f"{place} of {measured.title}: number {number}, {headline} {100 * value:.1f} %"
    # Of several modalities the first is shown.
    first = index.channels(config.data.modalities[0])
    support, query = (
        Part(side.inputs[:, :first].numpy(), side.targets.numpy()) for side in (plain.support, plain.query)
    )
    match learner.task:
        case Segmentation():
            paint, answers = segmentation_picture, [m.predictions.argmax(1) for m in moments]
        case Detection():
            paint, answers = detection_picture, [detections(m.predictions) for m in moments]
        case _:
            paint, answers = episode_picture, [m.predictions.argmax(-1) for m in moments]
    shown = [Answer(moment.when, told.cpu().numpy()) for moment, told in zip(moments, answers, strict=True)]
    told = {
        "episode": number,
        "mode": measured.mode.value,
        headline: value,
        "classes": names,
        "support": [index.key(int(row)) for row in np.concatenate(drawn.support)],
        "queries": [index.key(int(row)) for row in np.concatenate(drawn.query)],
        **{
            moment.when: _numbers(learner, moment, plain) | {headline: _verdict(learner, moment, plain)}
            for moment in moments
        },
    }
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps(told, indent=1, ensure_ascii=False))
    return [paint(path, support, query, shown, names, title=title), beside]


def said(measured: Measured, untrained: Untrained, episode: Episode) -> list[Moment]:
    """The predictions for the queries before and after adapting.

    A gradient learner: with no inner step and with all of them. Any other decides by the support alone and has no state
    without it; there `before` is the learner as its run began, which has seen the support too. Where nothing was trained that is
    the same, and told once.
    """
    (support, query, ways, _), learner, mode = episode, measured.learner, measured.mode
    if isinstance(learner, GradientLearner):
        first, *_, last = learner.predictors(support, ways, mode=mode)
        after = f"after {learner.test_steps} inner step" + ("s" if learner.test_steps > 1 else "")
        return [Moment("before adapting", first(query.inputs)), Moment(after, last(query.inputs))]
    trained = Moment("after training", learner.adapt(support, ways, mode=mode)(query.inputs))
    if not measured.config.meta.steps:
        return [trained._replace(when="nothing trained")]
    return [Moment("before training", untrained().adapt(support, ways, mode=mode)(query.inputs)), trained]


def _verdict(learner: Learner, moment: Moment, episode: Episode) -> float:
    return learner.task.verdict(moment.predictions.cpu(), episode.query.targets).item()


def _numbers(learner: Learner, moment: Moment, episode: Episode) -> dict[str, Any]:
    """What was said of each query, as JSON values: the class it was taken for and its scores, boxes, or areas."""
    predictions = moment.predictions.cpu()
    match learner.task:
        case Segmentation():
            taken = predictions.argmax(1)
            ways = range(1 + episode.ways)
            return {"pixels": [[int((each == way).sum()) for way in ways] for each in taken]}
        case Detection():
            return {"boxes": [each[each[:, 4] >= SURE].tolist() for each in detections(predictions)]}
        case _:
            return {"taken_for": predictions.argmax(-1).tolist(), "scores": predictions.tolist()}
