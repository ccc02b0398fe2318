"""The verb `evaluate`: a learner's figures on frozen test episodes, the same for any number of workers."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from pipeline import build, checkpoint, session, spool, tracking
from pipeline.build import MakeLearner
from pipeline.build_mixture import indexes, names
from pipeline.config import dump, parse
from pipeline.data.index import Index
from pipeline.data.loader import frozen
from pipeline.data.modalities import IMAGE
from pipeline.data.root import Root
from pipeline.data.shapes import LongTailed, Shaping
from pipeline.errors import InputError
from pipeline.faults import one_line
from pipeline.frozen import frozen_encoder
from pipeline.judging import Judgement, Score, judged, pooled, score
from pipeline.learners.embedding import EmbeddingLearner
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.learner import Learner, Mode
from pipeline.models.features import Features
from pipeline.models.network import AS_THEY_ARE
from pipeline.schema.run import RunConfig
from pipeline.shipment import Target, read_json
from pipeline.side_by_side import on_all_threads
from pipeline.start import started
from pipeline.tasks.task import Pooled

MODES = (Mode.INDUCTIVE, Mode.TRANSDUCTIVE)


class Subject(NamedTuple):
    """What is evaluated: a run's config with its checkpoint, or (empty path) the learner as it was before training.

    `data` is the packed data set to measure on; empty: the one in the config.
    """

    config: dict[str, Any]
    checkpoint: str
    make_learner: MakeLearner = build.learner
    data: str = ""


class Restored(NamedTuple):
    """A learner ready to adapt on the CPU, and what its episodes are drawn from and how they are read.

    `channels` is how many the learner takes; the images of `index` may have others.
    """

    config: RunConfig
    index: Index
    learner: Learner
    channels: int


class Evaluation(NamedTuple):
    """Scores by mode and metric, with what they were measured on; `pooled` are figures that only all episodes together have.

    `drawn` are the ways of an episode and the shots of a class, on average. `inner_steps` is how many a gradient learner took on
    every episode, `metric` the task's headline.
    """

    scores: dict[Mode, dict[str, Score]]
    pooled: dict[Mode, dict[str, Pooled]]
    split: str
    shape: Shaping
    drawn: tuple[float, float]
    step: int
    inner_steps: int | None
    metric: str

    def as_json(self) -> dict[str, Any]:
        """The settings, and by mode and metric `mean`, `interval` (where there is one) and `episodes`."""
        told: dict[str, Any] = {"split": self.split, **self.shape.told()}
        if self.shape.cost is None:
            told |= dict(zip(("mean_ways", "mean_shots"), self.drawn, strict=True))
        told |= {"step": self.step, "inner_steps": self.inner_steps, "metric": self.metric}
        for mode, scores in self.scores.items():
            (episodes,) = {found.episodes for found in scores.values()}
            told[mode.value] = {name: found._asdict() for name, found in scores.items()}
            told[mode.value] |= {name: _told(found, episodes) for name, found in self.pooled[mode].items()}
        return told


def _told(found: Pooled, episodes: int) -> dict[str, Any]:
    told = {"mean": found.mean, "episodes": episodes}
    return told if found.interval is None else {**told, "interval": found.interval}


def evaluate(subject: Subject, *, split: str, episodes: int, workers: int) -> Evaluation:
    """Evaluate in both modes.

    Raises:
        InputError: as `measure`.
    """
    return summed(subject, *measure(subject, split=split, episodes=episodes, workers=workers), split=split)


def summed(subject: Subject, found: Restored, rows: Sequence[dict[Mode, Judgement]], *, split: str) -> Evaluation:
    """What the episodes that were measured say together."""
    by_mode = {mode: [row[mode] for row in rows] for mode in MODES}
    drawing = build.sampler(found.config, found.index, split)
    draws = [drawing.draw(0, number) for number in range(len(rows))]
    classes = [draw.classes for draw in draws]
    ways = [len(draw.classes) for draw in draws]
    shots = [fmean(len(own) for own in draw.support) for draw in draws]
    step = checkpoint.load(Path(subject.checkpoint)).step if subject.checkpoint else 0
    return Evaluation(
        {mode: _scores(own) for mode, own in by_mode.items()},
        {mode: pooled(found.learner.task, own, classes) for mode, own in by_mode.items()},
        split,
        drawing.shape,
        (fmean(ways), fmean(shots)),
        step,
        found.learner.test_steps if isinstance(found.learner, GradientLearner) else None,
        found.learner.task.headline,
    )


def subjects_by_data(subject: Subject) -> dict[str, Subject]:
    """The subject on every data set that its run was trained on, by name; the first is itself, on `data.root`.

    Raises:
        InputError: the data sets do not go together.
    """
    config = parse(dict(subject.config), "checkpoint")
    parts = indexes(config, Index.open(config.data.root))
    subjects = [subject, *(subject._replace(data=str(part.root)) for part in parts[1:])]
    return dict(zip(names(parts), subjects, strict=True))


def by_data(subject: Subject, *, split: str, episodes: int, workers: int) -> dict[str, Evaluation]:
    """As `evaluate`, on every data set that the run was trained on by itself, by name; the first is `data.root`.

    Raises:
        InputError: as `evaluate`, or they do not go together.
    """
    asked = {"split": split, "episodes": episodes, "workers": workers}
    return {name: evaluate(own, **asked) for name, own in subjects_by_data(subject).items()}


def classes_of(found: Restored, split: str, episodes: int) -> list[list[int]]:
    """The classes of the data set that each frozen episode is about."""
    drawing = build.sampler(found.config, found.index, split)
    return [[int(number) for number in drawing.draw(0, episode).classes] for episode in range(episodes)]


def _scores(judgements: Sequence[Judgement]) -> dict[str, Score]:
    names = judgements[0].metrics
    return {name: score([judgement.metrics[name] for judgement in judgements]) for name in names}


def measure(
    subject: Subject, *, split: str, episodes: int, workers: int, modes: Sequence[Mode] = MODES
) -> tuple[Restored, list[dict[Mode, Judgement]]]:
    """What the learner did on each frozen episode, in their order; on the threads of this process, or in `workers` Ray tasks.

    Every episode is judged alone, on one thread.

    Raises:
        InputError: the checkpoint is damaged, the data set has no such split or too few samples, or its images do not fit.
    """
    check(episodes=episodes, workers=workers)
    found = restored(subject)
    build.sampler(found.config, found.index, split)
    numbers = [list(range(episodes))[part::workers] for part in range(workers)]
    if workers == 1:
        parts = [_judged(found, split, modes, numbers[0])]
    else:
        # The nodes of the tasks need not have the folder of the checkpoint.
        files = checkpoint.files_of(Path(subject.checkpoint)) if subject.checkpoint else None
        parts = session.each(_part, [(subject, files, split, modes, own) for own in numbers], workers=workers)
    by_number = dict(pair for part in parts for pair in part)
    return found, [by_number[number] for number in range(episodes)]


def check(*, episodes: int, workers: int) -> None:
    """Refuse amounts with which nothing can be measured."""
    if episodes < 2:
        raise InputError(f"evaluate.episodes = {episodes}: an interval needs at least 2")
    if workers < 1:
        raise InputError(f"--workers {workers}: somebody must do the work; give 1 or more")


def restored(subject: Subject) -> Restored:
    """The learner of a subject, built for the images it was trained on, and the data to measure it on.

    Images of another size or number of channels are converted as they are read. Where the data it was trained on are
    gone, the checkpoint says what their images were.

    Raises:
        InputError: the checkpoint or the data are damaged, or do not fit each other.
    """
    config = parse(dict(subject.config), "checkpoint")
    index = Index.open(subject.data or config.data.root)
    saved = checkpoint.load(Path(subject.checkpoint)) if subject.checkpoint else None
    # Before it was trained, a learner is built for whatever images there are.
    state = {"images": index.shape(0)} if saved is None else saved.state
    trained = build.trained_on(config, index, state) if subject.data else index
    if saved is None:
        learner = started(config, trained, subject.make_learner)
    else:
        learner = subject.make_learner(config, trained)
        try:
            learner.load_state_dict(dict(saved.learner), strict=True)
        except RuntimeError as error:
            raise InputError(
                f"{subject.checkpoint} holds no weights of a learner for the images of {trained.root}: "
                f"{one_line(str(error))}; bring back {config.data.root}, on which it was trained"
            ) from error
    if index.encoder and not trained.encoder:
        return _on_features(config, trained, index, learner, Path(subject.checkpoint))
    channels = trained.shape(0)[2]
    return Restored(read_alike(config, trained, index), index, learner, channels)


def _on_features(config: RunConfig, trained: Index, index: Index, learner: Learner, path: Path) -> Restored:
    """A learner of images on features that its own encoder made of them: predictions are those for the images.

    Raises:
        InputError: another encoder made them, or the learner does more with its encoder than to ask for features.
    """
    if not isinstance(learner, EmbeddingLearner) or config.data.rotations:
        what = "data.rotations = true" if config.data.rotations else f"learner.kind = {config.learner.kind}"
        raise InputError(
            f"{index.root}: holds features, and with {what} the images themselves are needed; evaluate on images, or train "
            "with model.kind = features"
        )
    own = frozen_encoder(config, trained, path).sha256
    if own != index.encoder:
        raise InputError(
            f"{index.root}: features of encoder {index.encoder[:12]}…, and that of {path} is {own[:12]}…; "
            "make its own with metashard embed"
        )
    side, _, channels = index.shape(0)
    learner.model.encoder = Features(channels=channels, side=side, encoder=own)
    # Features are of images that were normalised.
    learner.model.standard = AS_THEY_ARE
    data = config.data.model_copy(update={"size": None, "invert": False, "modalities": (IMAGE,)})
    return Restored(config.model_copy(update={"data": data}), index, learner, channels)


def read_alike(config: RunConfig, trained: Index, index: Index) -> RunConfig:
    """The config by which images of `index` come in the size that a learner for those of `trained` takes.

    Raises:
        InputError: that cannot be had.
    """
    if trained is index:
        return config
    if trained.encoder != index.encoder:
        raise InputError(
            f"{index.root}: holds {_content(index)}, and the learner was trained on {_content(trained)}; name data of the same"
        )
    (height, width, channels), (other_height, other_width, others) = trained.shape(0), index.shape(0)
    if others not in (channels, 1) and (others, channels) != (3, 1):
        raise InputError(
            f"{index.root}: images have {others} channels and the model takes {channels}, into which they cannot be turned; "
            "name other data"
        )
    if config.data.size is None and height != width and (height, width) != (other_height, other_width):
        raise InputError(
            f"{index.root}: images are {other_height} × {other_width} pixels and the model takes {height} × {width}, but only "
            "squares are resized; name other data"
        )
    size = config.data.size or (height if height == width else None)
    # Of other data nothing was trained on, however their splits are called.
    return config.model_copy(update={"data": config.data.model_copy(update={"size": size, "train": ""})})


def _content(index: Index) -> str:
    return f"features of encoder {index.encoder[:12]}…" if index.encoder else "images"


@contextmanager
def out_of(files: checkpoint.Files, subject: Subject) -> Iterator[Subject]:
    """The subject on a machine that has its checkpoint only as files that came with a task, while the block runs."""
    with checkpoint.laid_out(files) as path:
        yield subject._replace(checkpoint=str(path))


def _part(
    subject: Subject, files: checkpoint.Files | None, split: str, modes: Sequence[Mode], numbers: Sequence[int]
) -> list[tuple[int, dict[Mode, Judgement]]]:
    if files is None:
        return _judged(restored(subject), split, modes, numbers)
    with out_of(files, subject) as subject:
        return _judged(restored(subject), split, modes, numbers)


def _judged(
    found: Restored, split: str, modes: Sequence[Mode], numbers: Sequence[int]
) -> list[tuple[int, dict[Mode, Judgement]]]:
    config, index, learner, channels = found
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner.to(device)
    bring = build.place(config, device)
    by_shots = isinstance(build.sampler(config, index, split).shape, LongTailed)

    def judge(learner: Learner, numbers: Iterable[int]) -> list[tuple[int, dict[Mode, Judgement]]]:
        episodes = frozen(build.sampler(config, index, split), build.reader(config, index, channels), numbers)
        return list(judged(learner, episodes, modes=modes, place=bring, by_shots=by_shots))

    return on_all_threads(learner, judge, numbers)


def find(target: Path, runs: Path) -> Path:
    """The checkpoint that a person means by a run id, a run's folder (its best checkpoint) or a checkpoint's folder.

    Raises:
        InputError: there is none.
    """
    for folder in (target, runs / target):
        if (found := checkpoint.meant(folder)) is not None:
            return found
    raise InputError(f"{target} is neither a run under {runs} nor a checkpoint; `metashard runs` lists the runs")


def subject_of(
    path: Path,
    *,
    data: Root | None = None,
    asked: Mapping[str, Any] = MappingProxyType({}),
    test_steps: int | None = None,
) -> Subject:
    """A checkpoint with the config it carries; on other data, with other keys of `evaluate` or other inner steps, if asked.

    Raises:
        InputError: the checkpoint is damaged, a value is not usable, or the learner takes no inner steps.
    """
    tree = dict(checkpoint.load(path).config)
    tree["evaluate"] = {**tree["evaluate"], **asked}
    if test_steps is not None:
        if "test_steps" not in tree["learner"]:
            raise InputError(
                f"--test-steps {test_steps}: learner.kind = {tree['learner']['kind']} of {path} takes no inner steps; "
                "leave it out"
            )
        tree["learner"] = {**tree["learner"], "test_steps": test_steps}
    other = "" if data is None else str(data.absolute())
    return Subject(dump(parse(tree, str(path))), str(path.absolute()), data=other)


def run_of(path: Path) -> Path | None:
    """The run's folder that a checkpoint lies in, if it lies in one."""
    run = path.absolute().parent.parent
    return run if path.absolute().parent.name == "checkpoints" and (run / spool.FILE).exists() else None


def keep(evaluation: Evaluation, path: Path, name: str = "") -> Path | None:
    """Log an evaluation to the run whose checkpoint this is, and send it to the run's MLflow; where it is kept, if anywhere.

    `name` says on which of several data sets it was made.
    """
    run = run_of(path)
    if run is None:
        return None
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    on = f"{name}-" if name else ""
    kept = folder / f"{on}{evaluation.split}-{path.name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    write(evaluation.as_json(), kept)
    told = spool.Spool(run)
    settings = evaluation.shape.told()
    kind = f"{settings.pop('shape')}-" if "shape" in settings else ""
    ways, shots, queries, *others = settings.values()
    tail = "".join(f"-{name}{value:g}" for name, value in zip(list(settings)[3:], others, strict=True))
    usual = checkpoint.load(path).config["learner"]
    is_usual = evaluation.inner_steps in (None, usual.get("test_steps") or usual.get("steps"))
    for mode, metrics in evaluation.scores.items():
        (episodes,) = {found.episodes for found in metrics.values()}
        # A series has one value per step: what is measured otherwise has another name.
        shape = f"{kind}{ways}way-{shots}shot-{queries}query{tail}-{episodes}episodes"
        shape += "" if is_usual else f"-{evaluation.inner_steps}steps"
        means = {name: found.mean for name, found in (metrics | evaluation.pooled[mode]).items()}
        start = f"evaluate/{on}{evaluation.split}-{shape}/{mode.value}"
        told.metrics(evaluation.step, {f"{start}/{name}": mean for name, mean in means.items()})
    told.artifact(kept, "evaluations")
    told.close()
    tracking.sync(run, uri=tracking.target_uri(run))
    return kept


def new_beside(path: Path, runs: Path, name: str) -> tuple[Path, Target]:
    """A fresh folder for what several runs say together, beside the run of the first one's checkpoint, and where it is tracked.

    `runs` is where it goes when that checkpoint lies in no run.

    Raises:
        InputError: the folder cannot be written.
    """
    first = run_of(path)
    root = runs if first is None else first.parent
    known = {} if first is None else read_json(first / tracking.TARGET_FILE)
    uri = known.get("uri") or tracking.default_uri(root)
    folder = root / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{root}: {error.strerror}; name a folder that can be written with --runs") from error
    return folder, Target(uri, known.get("experiment", tracking.EXPERIMENT), name)


def write(result: dict[str, Any], path: Path) -> None:
    """Results as JSON, replaced in one move."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(path)
