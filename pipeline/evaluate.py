"""The verb `evaluate`: a learner's figures on frozen test episodes, the same for any number of workers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from pipeline import build, checkpoint, session, spool, tracking
from pipeline.build import MakeLearner
from pipeline.config import RunConfig, dump, parse
from pipeline.data.index import Index
from pipeline.data.loader import frozen
from pipeline.data.sampler import Shape
from pipeline.errors import InputError
from pipeline.judging import Score, judged, score
from pipeline.learners.learner import Learner, Mode

MODES = (Mode.INDUCTIVE, Mode.TRANSDUCTIVE)


class Subject(NamedTuple):
    """What is evaluated: a run's config with its checkpoint, or (empty path) the learner as it was before training."""

    config: dict[str, Any]
    checkpoint: str
    make_learner: MakeLearner = build.learner


class Evaluation(NamedTuple):
    """Scores by mode and metric, with what they were measured on."""

    scores: dict[Mode, dict[str, Score]]
    split: str
    shape: Shape
    step: int

    def as_json(self) -> dict[str, Any]:
        ways, shots, queries = self.shape
        scores = {mode.value: {n: s._asdict() for n, s in metrics.items()} for mode, metrics in self.scores.items()}
        return {"split": self.split, "ways": ways, "shots": shots, "queries": queries, "step": self.step, **scores}


def evaluate(subject: Subject, *, split: str, episodes: int, workers: int) -> Evaluation:
    """Evaluate in this process, or spread over `workers` Ray tasks; every episode is judged alone, on one thread.

    Raises:
        InputError: the checkpoint is damaged, or the data set has no such split or too few samples.
    """
    config = parse(dict(subject.config), "checkpoint")
    if episodes < 2:
        raise InputError(f"evaluate.episodes = {episodes}: an interval needs at least 2")
    build.sampler(config, Index.open(config.data.root), split)
    numbers = [list(range(episodes))[part::workers] for part in range(workers)]
    if workers == 1:
        parts = [_part(subject, split, numbers[0])]
    else:
        parts = session.each(_part, [(subject, split, own) for own in numbers], workers=workers)
    by_number = dict(pair for part in parts for pair in part)
    rows = [by_number[number] for number in range(episodes)]
    scores = {mode: {n: score([row[mode][n] for row in rows]) for n in rows[0][mode]} for mode in MODES}
    step = checkpoint.load(Path(subject.checkpoint)).step if subject.checkpoint else 0
    return Evaluation(scores, split, build.evaluation_shape(config), step)


def restored(subject: Subject) -> tuple[RunConfig, Index, Learner]:
    """The learner of a subject, ready to adapt on the CPU."""
    config = parse(dict(subject.config), "checkpoint")
    index = Index.open(config.data.root)
    learner = subject.make_learner(config, index)
    if subject.checkpoint:
        learner.load_state_dict(dict(checkpoint.load(Path(subject.checkpoint)).learner), strict=True)
    return config, index, learner


def _part(subject: Subject, split: str, numbers: Sequence[int]) -> list[tuple[int, dict[Mode, dict[str, float]]]]:
    config, index, learner = restored(subject)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner.to(device)
    episodes = frozen(build.sampler(config, index, split), build.reader(config, index), numbers)
    with one_thread():
        return list(judged(learner, episodes, modes=MODES, place=build.place(config, device)))


@contextmanager
def one_thread():
    """One torch thread: the thread count changes the last bits, and results must not depend on the number of workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def find(target: Path, runs: Path) -> Path:
    """The checkpoint that a person means by a run id, a run's folder (its best checkpoint) or a checkpoint's folder.

    Raises:
        InputError: there is none.
    """
    for folder in (target, runs / target):
        if (folder / "manifest.json").exists() and (folder / "state.json").exists():
            return folder
        if (folder / "checkpoints").is_dir():
            return best(folder)
    raise InputError(f"{target} is neither a run under {runs} nor a checkpoint; `metashard runs` lists the runs")


def best(run: Path) -> Path:
    """The best checkpoint of a run by validation; the newest whole one where the best is damaged."""
    newest = checkpoint.latest(run / "checkpoints")
    chosen = run / "checkpoints" / f"step-{newest.state['best_step']:08d}"
    try:
        checkpoint.load(chosen)
    except InputError:
        return run / "checkpoints" / f"step-{newest.step:08d}"
    return chosen


def subject_of(path: Path, *, data: Path | None = None, asked: Mapping[str, int] = MappingProxyType({})) -> Subject:
    """A checkpoint with the config it carries; on other data, or with other keys of `evaluate`, if asked."""
    tree = dict(checkpoint.load(path).config)
    tree["evaluate"] = {**tree["evaluate"], **asked}
    if data is not None:
        tree["data"] = {**tree["data"], "root": str(data)}
    return Subject(dump(parse(tree, str(path))), str(path.absolute()))


def keep(evaluation: Evaluation, path: Path) -> Path | None:
    """Log an evaluation to the run whose checkpoint this is, and send it to the run's MLflow; where it is kept, if anywhere."""
    run = path.parent.parent
    if path.parent.name != "checkpoints" or not (run / spool.FILE).exists():
        return None
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    kept = folder / f"{evaluation.split}-{path.name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    write(evaluation.as_json(), kept)
    told = spool.Spool(run)
    ways, shots, queries = evaluation.shape
    for mode, metrics in evaluation.scores.items():
        for name, found in metrics.items():
            # A series has one value per step: what is measured otherwise has another name.
            shape = f"{ways}way-{shots}shot-{queries}query-{found.episodes}episodes"
            key = f"evaluate/{evaluation.split}-{shape}/{mode.value}/{name}"
            told.metrics(evaluation.step, {key: found.mean})
    told.artifact(kept, "evaluations")
    told.close()
    tracking.sync(run, uri=tracking.target_uri(run))
    return kept


def write(result: dict[str, Any], path: Path) -> None:
    """Results as JSON, replaced in one move."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(path)
