"""The teacher of a run: a learner out of another run's checkpoint, which must speak of the same things."""

from __future__ import annotations

from pipeline import build, checkpoint
from pipeline.build_shape import is_varied
from pipeline.config import parse
from pipeline.data.index import Index
from pipeline.data.modalities import IMAGE
from pipeline.data.sampler import classes_of
from pipeline.errors import InputError
from pipeline.learners.distil import DistilledLearner
from pipeline.learners.learner import Learner
from pipeline.restore import fill
from pipeline.schema.learner import SupervisedConfig
from pipeline.schema.run import RunConfig, TeacherConfig
from pipeline.start import checkpoint_of


def taught(config: RunConfig, index: Index, learner: Learner) -> Learner:
    """The learner under its teacher; itself where the config names none.

    Raises:
        InputError: the teacher's checkpoint is damaged, or it speaks of other tasks, images, ways or classes.
    """
    if config.teacher is None:
        return learner
    if config.meta.steps == 0:
        raise InputError("teacher: with meta.steps = 0 nothing is taught; leave the teacher out or train")
    return DistilledLearner(learner, _restored(config.teacher, config, index))


def _restored(chosen: TeacherConfig, config: RunConfig, index: Index) -> Learner:
    """The teacher as its own checkpoint says, in the student's precision."""
    path = checkpoint_of(chosen.start, "teacher.start")
    saved = checkpoint.load(path)
    theirs = parse(dict(saved.config), f"teacher.start = {path}")
    theirs = theirs.model_copy(update={"meta": theirs.meta.model_copy(update={"precision": config.meta.precision})})
    trained = build.trained_on(theirs, index, saved.state)
    if faults := _differences(theirs, trained, config, index):
        raise InputError(
            f"teacher.start = {path}: {'; '.join(faults)}; name a teacher of the same, or change the config"
        )
    teacher = build.learner(theirs, trained)
    fill(teacher, saved.learner, theirs, f"teacher.start = {path} holds no weights of its own learner")
    return teacher


def _differences(theirs: RunConfig, trained: Index, config: RunConfig, index: Index) -> list[str]:
    """A sentence for everything in which a teacher speaks of something else."""
    told = {"task": (theirs.task.kind, config.task.kind), "images": (_images(theirs, trained), _images(config, index))}
    if build.has_fixed_head(theirs):
        told["episodes"] = (
            f"{theirs.data.ways}-way",
            "of varied ways" if is_varied(config) else f"{config.data.ways}-way",
        )
    both = isinstance(config.learner, SupervisedConfig) and isinstance(theirs.learner, SupervisedConfig)
    if both:
        told["data.rotations"] = (str(theirs.data.rotations), str(config.data.rotations))
    faults = [f"its {what}: {a}, the student's: {b}" for what, (a, b) in told.items() if a != b]
    if both and (odd := sorted(_classes(theirs, trained) ^ _classes(config, index))):
        faults.append(f"its base classes are not the student's: only one of them has {odd[0]!r}")
    return faults


def _images(config: RunConfig, index: Index) -> str:
    height, width, channels = index.shape(0)
    if index.encoder:
        return f"{channels} features of encoder {index.encoder[:12]}…"
    ink = ", inverted" if config.data.invert else ""
    data = config.data
    more = f", read as {', '.join(data.modalities)} (missing: {data.missing})" if data.modalities != (IMAGE,) else ""
    return f"{config.data.size or height} × {config.data.size or width} pixels of {channels} channels{ink}{more}"


def _classes(config: RunConfig, index: Index) -> set[str]:
    """The base classes; their labels follow from their names, by order."""
    return {index.class_names[number] for number in classes_of(index, config.data.train)}
