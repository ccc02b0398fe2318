"""The option `evaluate --settings leave-one-out`: inner steps and pace chosen for every episode, against those of the config."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import adaptation, build, candidates, evaluate, restore
from pipeline.adaptation import Settings
from pipeline.candidates import LEAVE_ONE_OUT
from pipeline.compare import Row, paired
from pipeline.data.loader import frozen
from pipeline.data.shapes import Shaping
from pipeline.errors import InputError
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.learner import Learner
from pipeline.restore import Subject
from pipeline.schema.task import ClassificationConfig
from pipeline.side_by_side import on_all_threads

NAMES = (LEAVE_ONE_OUT,)


class Found(NamedTuple):
    """Accuracies by episode with the config's settings and with chosen ones, and how often which were chosen."""

    own: list[float]
    tuned: list[float]
    chosen: Counter[Settings]
    split: str
    shape: Shaping
    configured: Settings

    @property
    def rows(self) -> tuple[Row, Row]:
        """The config's settings, and the chosen ones with their difference on the same episodes."""
        return paired(self.own, self.own), paired(self.tuned, self.own)

    def as_json(self) -> dict[str, Any]:
        """Scores, the paired difference, and the settings from the most to the least often chosen."""
        own, tuned = self.rows
        chosen = [{**settings._asdict(), "episodes": count} for settings, count in self.chosen.most_common()]
        return {
            "split": self.split,
            **self.shape.told(),
            "episodes": len(self.own),
            "mode": "inductive",
            "configured": {**self.configured._asdict(), "mean": own.score.mean, "interval": own.score.interval},
            LEAVE_ONE_OUT: {
                "mean": tuned.score.mean,
                "interval": tuned.score.interval,
                "difference": tuned.difference.mean,
                "difference_interval": tuned.difference.interval,
                "excludes_zero": tuned.excludes_zero,
                "chosen": chosen,
            },
        }


def check(name: str, path: Path, subject: Subject) -> None:
    """Refuse a name of settings that is none, and a run that has none to choose.

    Raises:
        InputError: so it is.
    """
    if name not in NAMES:
        raise InputError(f"--settings {name}: there is no such way to choose them; give {LEAVE_ONE_OUT}")
    kind = subject.config["learner"]["kind"]
    if kind != "gradient" or subject.config["task"]["kind"] != "classification":
        raise InputError(
            f"--settings {name}: {path} has learner.kind = {kind}, task.kind = {subject.config['task']['kind']}; settings are "
            "chosen for learner.kind = gradient that classifies; leave it out"
        )


def evaluate_settings(path: Path, subject: Subject, name: str, *, split: str, episodes: int) -> Found:
    """Judge inductive predictions with the config's settings and with those chosen on each support, on the same frozen episodes.

    Raises:
        InputError: as `check`, or the run cannot be evaluated.
    """
    check(name, path, subject)
    evaluate.check(episodes=episodes, workers=1)
    config, index, learner, channels = restore.restored(subject)
    assert isinstance(config.task, ClassificationConfig) and isinstance(learner, GradientLearner)
    sampler, reader = build.sampler(config, index, split), build.reader(config, index, channels)

    def work(learner: Learner, numbers: Iterable[int]) -> list[tuple[int, list[candidates.Outcome]]]:
        read = frozen(sampler, reader, numbers)
        return [(number, candidates.outcomes(learner, candidates.placed(config, each))) for number, each in read]

    found = [own for _, own in sorted(on_all_threads(learner, work, list(range(episodes))), key=lambda pair: pair[0])]
    chosen = Counter(tuned.settings for _, tuned in found if tuned.settings is not None)
    values = [[own.accuracy for own in each] for each in zip(*found, strict=True)]
    return Found(values[0], values[1], chosen, split, sampler.shape, adaptation.own_settings(learner))
