"""One trial of a sweep as Ray Tune runs it: an ordinary run whose values of the sweep's metric are told to Tune.

With one worker the run trains inside the trial's actor, which then serves the next trial; with more it is a group of Ray Train,
and the actor only watches. Both are `worker.work`. The run's folder is on the driver's machine, where a keeper does what
is asked.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ray import tune
from ray.tune.result import DONE

from pipeline import build, checkpoint
from pipeline.build import MakeLearner
from pipeline.checkpoint import Files
from pipeline.config import parse
from pipeline.data.loader import frozen
from pipeline.distant import Distant
from pipeline.errors import InputError, RunFailed
from pipeline.failures import Failure
from pipeline.learners.learner import Mode
from pipeline.ray_groups import in_groups
from pipeline.restore import Subject, out_of, restored
from pipeline.schema.run import RunConfig
from pipeline.worker import Job, work

LOOK_EVERY_S = 0.05
STOP_S = 120.0
"""How long a run may take to save and end; what does not is ended with its process."""
TIMED_EPISODES = 10
STEP, VALUE, ENDED = "step", "value", "ended"
"""Keys of what Tune is told: meta-steps, the metric after them, and at the end that the run has come there."""
WHOSE = "whose.json"
"""Beside the files of a checkpoint that Tune hands on: its meta-step and its run."""


class Setting(NamedTuple):
    """What is alike in all trials of a sweep."""

    keeper: Any
    metric: str
    objectives: tuple[str, ...]
    make_learner: MakeLearner = build.learner
    every: int = 0
    """Meta-steps between two exchanges of a population; 0: there are none."""


class Trial(tune.Trainable):
    """A run under Tune. Its settings: the `folder` of the run, its `config` as JSON, and what `exchange` it comes from."""

    def setup(self, config: dict[str, Any], setting: Setting) -> None:
        self.setting = setting
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end_training()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._end_training()

    def step(self) -> dict[str, Any]:
        """Wait for the next value of the metric; the training has gone on meanwhile, and may be at its end."""
        try:
            return self._next()
        except (InputError, RunFailed) as error:
            # What failed in a meta-step its worker has written down; this nobody has.
            self._archive.note(Failure(max(self._told, 0), 0, str(error)))
            raise

    def _next(self) -> dict[str, Any]:
        if self._training is None:
            self._training = _Training(self._config, self._archive, self.setting.make_learner)
        while True:
            # Asked before looking: what was told before the end is then seen.
            is_over = self._training.is_over()
            fresh = self._archive.series(self.setting.metric, self._told)
            for step, value in sorted(fresh.items()):
                self._told = step
                if step >= self._config.meta.steps:
                    break
                if self.setting.every and step - self._since >= self.setting.every:
                    self._stand_still()
                return {STEP: step, VALUE: value}
            if fresh or is_over:
                return self._concluded()
            time.sleep(LOOK_EVERY_S)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The run's checkpoint of the last value, as its files, which may still be on its way to the disk."""
        limit = time.monotonic() + STOP_S
        while (newest := self._archive.newest()) is None or newest < self._told:
            if time.monotonic() > limit:
                raise RunFailed(f"{self._archive.run}: no checkpoint of meta-step {self._told} after {STOP_S:g} s")
            time.sleep(LOOK_EVERY_S)
        step, files = self._kept(newest)
        for name, content in files.items():
            Path(checkpoint_dir, name).write_bytes(content)
        Path(checkpoint_dir, WHOSE).write_text(
            json.dumps({"step": step, "told": self._told, "run": str(self._archive.run)})
        )

    def load_checkpoint(self, checkpoint_dir: str | dict[str, Any] | None) -> None:
        """Go on from another trial's state. Its own needs no loading: the run's folder has it, or a newer one whose values are
        still to be told."""
        assert isinstance(checkpoint_dir, str)
        told = json.loads(Path(checkpoint_dir, WHOSE).read_text())
        is_own = told["run"] == str(self._archive.run)
        if not is_own and self._exchange and self._archive.took_over() != self._exchange:
            files = {name: Path(checkpoint_dir, name).read_bytes() for name in (checkpoint.MANIFEST, *checkpoint.FILES)}
            self._archive.adopt(told["step"], files, self._exchange)
        self._told = self._since = told["told" if is_own else "step"]

    def _begin(self, config: Mapping[str, Any]) -> None:
        """What this actor works on from now on; it begins when Tune asks for the first value."""
        self._archive = Distant(self.setting.keeper, Path(config["folder"]))
        self._config = parse(json.loads(config["config"]), "trial")
        self._exchange = config["exchange"]
        self._training: _Training | None = None
        newest = self._archive.newest()
        # A run that goes on was judged before.
        self._told = -1 if newest is None else newest - 1
        self._since = 0
        """Where the last exchange was."""
        self._archive.ask_to_stop(False)

    def _kept(self, newest: int) -> tuple[int, Files]:
        """The checkpoint of the last value; the newest where none was kept then, as for a metric of every meta-step."""
        try:
            return self._told, self._archive.files(self._told)
        except InputError:
            return newest, self._archive.files(newest)

    def _stand_still(self) -> None:
        """Wait for the others, one of whom this actor may serve meanwhile: how far the run went on would be chance."""
        self._end_training()
        self._archive.ask_to_stop(False)

    def _end_training(self) -> None:
        if self._training is not None:
            self._training.end()
            self._training = None

    def _concluded(self) -> dict[str, Any]:
        """What Tune is told at the end."""
        assert self._training is not None
        self._training.join()
        self._training = None
        if said := self._archive.stubborn():
            raise RunFailed(said)
        newest = self._archive.newest()
        values = self._archive.series(self.setting.metric, -1)
        if not values:
            raise InputError(
                f"sweep.metric = {self.setting.metric} was never reported; see the run's spool.jsonl for what is"
            )
        last = max(values)
        is_whole = newest is not None and newest >= self._config.meta.steps or not self._archive.stop_asked()
        told = {STEP: last, VALUE: values[last], DONE: True, ENDED: is_whole}
        if is_whole and self.setting.objectives and newest is not None:
            told["objectives"] = json.dumps(self._costs())
        return told

    def _costs(self) -> dict[str, float]:
        """The objectives besides the metric, of the best checkpoint."""
        costs = costs_of(self._config, self._archive.best(), self.setting.make_learner)
        return {name: costs[name] for name in self.setting.objectives}


class _Training:
    """A run that trains in a thread of its own."""

    def __init__(self, config: RunConfig, archive: Distant, make_learner: MakeLearner):
        self._archive, self._failed = archive, []
        self._thread = threading.Thread(target=self._run, args=(config, make_learner), name="trial", daemon=True)
        self._thread.start()

    def _run(self, config: RunConfig, make_learner: MakeLearner) -> None:
        job = Job(config.model_dump(mode="json"), self._archive, make_learner)
        try:
            if config.workers.is_alone:
                work(job, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            else:
                with tempfile.TemporaryDirectory(prefix="metashard-trial-") as notes:
                    in_groups(job, config, run=self._archive.run, storage=Path(notes))
        except BaseException as error:
            self._failed.append(error)

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait for its end, and raise what it raised."""
        self._thread.join()
        if self._failed:
            raise self._failed[0]

    def end(self) -> None:
        """Have it save and end; how it ends is of no interest any more."""
        if self.is_over():
            return
        self._archive.ask_to_stop(True)
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            raise RunFailed(f"{self._archive.run}: did not end within {STOP_S:g} s")


def costs_of(config: RunConfig, files: checkpoint.Files, make_learner: MakeLearner) -> dict[str, float]:
    """What a learner costs: its `parameters`, and seconds that it takes to adapt to an episode (median over the first ones)."""
    subject = Subject(config.model_dump(mode="json"), "", make_learner)
    with out_of(files, subject) as subject:
        found = restored(subject)
    learner = found.learner
    sampler, reader = build.validation(config, found.index)
    bring, seconds = build.place(config, torch.device("cpu")), []
    for _, episode in frozen(sampler, reader, range(TIMED_EPISODES)):
        support = bring(episode).support
        began = time.perf_counter()
        learner.adapt(support, episode.ways, mode=Mode(config.evaluate.mode))
        seconds.append(time.perf_counter() - began)
    return {
        "parameters": float(sum(value.numel() for value in learner.parameters())),
        "adaptation_s": statistics.median(seconds),
    }
