"""Validation aside: the scores of checkpoints count one validation later, whatever happens in between."""

from pathlib import Path

import pytest
import torch
from gloo import work_here
from ranked import BATCH, Feed
from small import make, small_config

from pipeline import aside, checkpoint, train
from pipeline.config import dump
from pipeline.engine import Engine, Plan
from pipeline.errors import InputError
from pipeline.judging import Score
from pipeline.learners.learner import Mode
from pipeline.loop import ASKED, Budget, Hooks, Progress, meta_train
from pipeline.notices import Notices
from pipeline.restore import Subject
from pipeline.spool import history

SCORES = {2: 0.3, 4: 0.6, 6: 0.5, 8: 0.4, 9: 0.2}


class Aside:
    """Knows the score of every meta-step, and which it was asked for."""

    def __init__(self):
        self.begun: list[int] = []

    def begin(self, step: int) -> None:
        self.begun.append(step)

    def result(self) -> Score:
        return Score(SCORES[self.begun[-1]], 0.0, 2)


class Run:
    """A short run: what it recorded and saved, and where it ended."""

    def __init__(self, other: Aside | None, progress: Progress | None = None, *, stop_at: int = 0, patience: int = 0):
        learner = make("prototypes").float()
        self.progress, self.scores, self.saved = progress or Progress(), {}, []
        hooks = Hooks(
            place=lambda episode: episode,
            rate=lambda step: 1e-3,
            validate=lambda: Score(SCORES[self.progress.step], 0.0, 2),
            record=self.record,
            save=lambda reached: self.saved.append(reached.step),
            stop_asked=lambda: self.progress.step + 1 == stop_at,
            notices=Notices(frozenset),
            aside=other,
        )
        budget = Budget(9, BATCH, clip=10, skip_limit=3, validate_every=2, patience=patience, checkpoint_every=100)
        optimizer = torch.optim.SGD(learner.parameters(), 1e-3)
        engine, cpu = Engine(learner, Plan("loop", 1)), torch.device("cpu")
        meta_train(
            engine, optimizer, Feed(torch.float32), budget=budget, hooks=hooks, progress=self.progress, device=cpu
        )

    def record(self, step: int, values: dict[str, float]) -> None:
        if "validation/score" in values:
            self.scores[step] = values["validation/score"]


def test_the_same_scores_and_the_same_best_as_in_turn():
    other = Aside()
    turns, aside_of_it = Run(None), Run(other)
    assert turns.scores == aside_of_it.scores == SCORES
    assert turns.progress == aside_of_it.progress and turns.progress.best_step == 4
    assert other.begun == [2, 4, 6, 8]
    # What is validated aside is read from its checkpoint; in turn the best alone must be there.
    assert aside_of_it.saved == [2, 4, 6, 8, 9] and turns.saved == [2, 4, 9]


@pytest.mark.parametrize("stop_at", [3, 4, 8])
def test_a_run_that_was_stopped_asks_again_for_what_it_waited_for(stop_at):
    first = Run(Aside(), stop_at=stop_at)
    assert first.progress.stopped == ASKED and first.saved[-1] == stop_at
    other = Aside()
    second = Run(other, Progress(**{**first.progress.state(), "stopped": ""}))
    assert other.begun[0] == stop_at // 2 * 2
    assert {**first.scores, **second.scores} == SCORES and second.progress == Run(None).progress


def test_patience_ends_a_run_one_validation_later():
    run = Run(Aside(), patience=1)
    assert run.progress.step == 8 and run.progress.stopped == "no better validation in 1"
    assert run.progress.best_step == 4 and run.saved[-1] == 8


def test_a_checkpoint_is_measured_as_the_learner_was(tmp_path, glyphs_root):
    config = small_config(glyphs_root, tmp_path, meta={"steps": 4}, validation={"every": 2, "episodes": 6})
    work_here(dump(config), str(tmp_path / "run"))
    saved = checkpoint.path_of(
        tmp_path / "run" / "checkpoints", checkpoint.latest(tmp_path / "run" / "checkpoints").step
    )
    found = aside.measured(Subject(dump(config), ""), checkpoint.files_of(saved), "val", 6, Mode(config.evaluate.mode))
    series = history(tmp_path / "run").series
    assert found.mean == pytest.approx(series["validation/score"][4], abs=1e-6) and found.episodes == 6


def test_without_ray_nothing_is_validated_aside(tmp_path, glyphs_root):
    with pytest.raises(InputError, match=r"validation\.aside = true.*workers\.ray = always"):
        train.fit(small_config(glyphs_root, tmp_path, validation={"aside": True}))
    assert not list(Path(tmp_path).glob("*/config.yaml"))
