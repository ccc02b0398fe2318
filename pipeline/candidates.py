"""What a chooser chooses from: trained runs, those that take inner steps also with settings chosen anew for every task."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline import adaptation, build, checkpoint, restore
from pipeline.adaptation import Held, Settings
from pipeline.config import parse
from pipeline.data.index import Index
from pipeline.data.modalities import IMAGE
from pipeline.episode import Batch, Episode
from pipeline.errors import InputError
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.learner import Learner, Mode, Predictor
from pipeline.restore import Restored
from pipeline.schema.gradient import GradientConfig, SgdConfig
from pipeline.schema.model import FeaturesConfig
from pipeline.schema.run import RunConfig
from pipeline.schema.task import ClassificationConfig
from pipeline.task_family import Family

LEAVE_ONE_OUT = "leave-one-out"


class Candidate(NamedTuple):
    """A run's checkpoint; `is_tuned`: with inner steps and pace that leave-one-out chooses from a support set."""

    run: str
    checkpoint: Path
    sha256: str
    learner: str
    model: str
    rate: float | None
    is_tuned: bool = False

    @property
    def name(self) -> str:
        return f"{self.run}, {LEAVE_ONE_OUT}" if self.is_tuned else self.run

    def told(self, settings: Settings | None) -> dict[str, Any]:
        """Run, model, learner and settings as JSON values; of plain gradient descent the rate, else what updates are multiplied
        by."""
        found: dict[str, Any] = {
            "run": self.run,
            "checkpoint": str(self.checkpoint),
            "learner": self.learner,
            "model": self.model,
        }
        if settings is not None:
            found |= {"chosen_by": LEAVE_ONE_OUT if self.is_tuned else "config", "steps": settings.steps}
            found |= {"pace": settings.pace} if self.rate is None else {"rate": settings.pace * self.rate}
        return found


class Answer(NamedTuple):
    """A candidate's answer to a support set: how well it told samples left out, its settings if it takes inner steps, and what
    makes its predictor."""

    held: Held
    settings: Settings | None
    learn: Callable[[], Predictor]


class Outcome(NamedTuple):
    """What a candidate did on a task: from the support alone `held` and `settings`, and the accuracy on its queries."""

    held: Held
    settings: Settings | None
    accuracy: float


def candidates(targets: Sequence[Path], runs: Path, family: Family) -> list[Candidate]:
    """The candidates that runs (or checkpoints) give, in their order.

    Raises:
        InputError: there are fewer than two, two are called the same, or one cannot be asked to solve tasks of the family.
    """
    if len(targets) < 2:
        raise InputError(
            f"choose model {' '.join(map(str, targets))}: there is nothing to choose from; name two runs or more"
        )
    found: list[Candidate] = []
    for target in targets:
        path = restore.find(target, runs).absolute()
        config = parse(dict(checkpoint.load(path).config), str(path))
        _check(config, path, family)
        run = restore.run_of(path)
        learner, rate = config.learner, None
        if isinstance(learner, GradientConfig) and isinstance(learner.rule, SgdConfig):
            rate = learner.rule.lr
        own = Candidate(
            str(target) if run is None else run.name, path, identity(path), learner.kind, config.model.kind, rate
        )
        if own.run in {other.run for other in found}:
            raise InputError(
                f"{target}: another of the runs is called {own.run!r} too; name runs that are called differently"
            )
        found.append(own)
        if isinstance(learner, GradientConfig):
            found.append(own._replace(is_tuned=True))
    return found


def identity(path: Path) -> str:
    """The sha256 of a checkpoint's manifest, which holds those of its files."""
    return hashlib.sha256((path / checkpoint.MANIFEST).read_bytes()).hexdigest()


def _check(config: RunConfig, path: Path, family: Family) -> None:
    if not isinstance(config.task, ClassificationConfig):
        raise InputError(
            f"{path}: task.kind = {config.task.kind}; what is chosen from must classify images; leave it out"
        )
    if isinstance(config.model, FeaturesConfig) or config.data.modalities != (IMAGE,):
        raise InputError(f"{path}: it does not take images alone, of which support sets are made here; leave it out")
    ways = config.data.ways
    if not build.has_fixed_head(config):
        return
    if not isinstance(config.learner, GradientConfig):
        raise InputError(f"{path}: learner.kind = {config.learner.kind} knows tasks of {ways} ways alone; leave it out")
    if family.ways > ways:
        raise InputError(
            f"{path}: its head has {ways} outputs and tasks have {family.way_range} ways; give --ways 2-{ways}, or take a "
            "learner whose head is made in each task, as prototype, ridge or learner.initial.kind = prototypes"
        )


def opened(path: Path, index: Index) -> Restored:
    """The learner of a checkpoint, and how images of `index` are read for it.

    Raises:
        InputError: they cannot be turned into what it takes.
    """
    found = restore.restored(restore.subject_of(path, data=index.root))
    if found.index.encoder:
        raise InputError(f"{index.root} holds features; name data that hold images")
    return found


def answers(learner: Learner, support: Batch, ways: int) -> list[Answer]:
    """What a run's candidates, one or two, make of a support set of images (samples, channels, height, width)."""
    if isinstance(learner, GradientLearner):
        return _tuned(learner, support, ways)
    held = adaptation.held_out(learner, support, ways)
    assert held is not None, "of images something can always be left out"
    return [Answer(held, None, lambda: learner.adapt(support, ways, mode=Mode.INDUCTIVE))]


def _tuned(learner: GradientLearner, support: Batch, ways: int) -> list[Answer]:
    """With its own settings, and with those that leave-one-out chooses."""
    told, own = adaptation.by_settings(learner, support, ways), adaptation.own_settings(learner)
    return [
        Answer(told[each].held, each, partial(adaptation.adapted, learner, support, ways, each))
        for each in (own, adaptation.best(told, own))
    ]


def outcomes(learner: Learner, episode: Episode) -> list[Outcome]:
    """As `answers`, with accuracies on the queries; settings that are the same are tried once."""
    support, query, ways, _ = episode
    found: list[Outcome] = []
    known: dict[Settings | None, float] = {}
    for answer in answers(learner, support, ways):
        if answer.settings not in known:
            # A head may have more outputs than the task has classes.
            said = answer.learn()(query.inputs)[:, :ways].argmax(1)
            known[answer.settings] = (said == query.targets).double().mean().item()
        found.append(Outcome(answer.held, answer.settings, known[answer.settings]))
    return found


def by_run(found: Sequence[Candidate]) -> Iterator[tuple[Path, list[int]]]:
    """Every checkpoint once, with the places of its candidates."""
    for path in dict.fromkeys(candidate.checkpoint for candidate in found):
        yield path, [place for place, candidate in enumerate(found) if candidate.checkpoint == path]


def placed(config: RunConfig, episode: Episode) -> Episode:
    """An episode in the type that a run computes in, on the CPU."""
    return build.place(config, torch.device("cpu"))(episode)
