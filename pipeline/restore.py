"""A learner out of a checkpoint, and how data are read for it: what verbs measure, draw or embed with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from pipeline import build, checkpoint, spool
from pipeline.build import MakeLearner
from pipeline.build_mixture import indexes, names
from pipeline.config import dump, parse
from pipeline.data.index import Index
from pipeline.data.modalities import IMAGE
from pipeline.data.root import Root
from pipeline.errors import InputError
from pipeline.faults import one_line
from pipeline.frozen import frozen_encoder
from pipeline.learners.embedding import EmbeddingLearner
from pipeline.learners.learner import Learner
from pipeline.models.features import Features
from pipeline.models.network import AS_THEY_ARE
from pipeline.schema.run import RunConfig
from pipeline.start import started


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


def subjects_by_data(subject: Subject) -> dict[str, Subject]:
    """The subject on every data set that its run was trained on, by name; the first is itself, on `data.root`.

    Raises:
        InputError: the data sets do not go together.
    """
    config = parse(dict(subject.config), "checkpoint")
    parts = indexes(config, Index.open(config.data.root))
    subjects = [subject, *(subject._replace(data=str(part.root)) for part in parts[1:])]
    return dict(zip(names(parts), subjects, strict=True))


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
        fill(
            learner,
            saved.learner,
            config,
            f"{subject.checkpoint} holds no weights of a learner for the images of {trained.root}",
        )
    if index.encoder and not trained.encoder:
        return _on_features(config, trained, index, learner, Path(subject.checkpoint))
    channels = trained.shape(0)[2]
    return Restored(read_alike(config, trained, index), index, learner, channels)


def fill(learner: Learner, values: Mapping[str, Tensor], config: RunConfig, otherwise: str) -> None:
    """Give a learner, built as its config says, the values of its checkpoint.

    Raises:
        InputError: they are those of a learner for other data; `otherwise` says whose.
    """
    try:
        learner.load_state_dict(dict(values), strict=True)
    except RuntimeError as error:
        raise InputError(
            f"{otherwise}: {one_line(str(error))}; bring back {config.data.root}, on which it was trained"
        ) from error


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
