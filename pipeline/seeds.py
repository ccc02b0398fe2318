"""Several seeds of one config: their runs one after another, and how far the figures of such runs lie apart."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline import build, evaluate, restore, session, spool, tracking, train
from pipeline.archive import CONFIG_FILE
from pipeline.build import MakeLearner
from pipeline.build_mixture import fingerprints
from pipeline.conclude import RESULT_FILE as RUN_RESULT_FILE
from pipeline.config import differences, dump, fingerprint, parse
from pipeline.data.index import Index
from pipeline.data.root import Root
from pipeline.errors import InputError
from pipeline.learners.learner import Mode
from pipeline.lineage import MAKER
from pipeline.restore import Subject
from pipeline.schema.run import RunConfig
from pipeline.shipment import read_json
from pipeline.start import provenance
from pipeline.tracking import SyncReport
from pipeline.train import Finished, Watch

NAME = "seeds"
RESULT_FILE, TABLE_FILE = "seeds.json", "seeds.csv"
SETTINGS = ("split", "ways", "shots", "queries", "inner_steps", "metric")
"""What of an evaluation's JSON is the same for all runs."""
SHAPED = ("shape", "least_ways", "support", "imbalance", "mean_ways", "mean_shots")
"""What more is, where episodes are not all of one shape."""
Progress = Callable[[int, int], None]


class Member(NamedTuple):
    """A run that takes part: its seed, what it is called, its checkpoint, and what `Evaluation.as_json` says of that."""

    seed: int
    name: str
    checkpoint: Path
    told: Mapping[str, Any]


class Spread(NamedTuple):
    """A figure of several runs: the mean over seeds and the standard deviation of one seed's value (n − 1 in the denominator).

    `within` is the mean of the runs' own intervals, which tell how well the episodes measure a run and nothing of how runs
    differ; None for a figure that has none.
    """

    mean: float
    deviation: float
    within: float | None
    values: list[float]


class Summary(NamedTuple):
    """The runs, all evaluated on the same frozen episodes, and the hash of the data set that these are drawn from."""

    members: Sequence[Member]
    fingerprint: str

    def spreads(self) -> dict[str, dict[str, Spread]]:
        """By mode and metric."""
        first = self.members[0].told
        return {
            mode.value: {name: spread([m.told[mode.value][name] for m in self.members]) for name in first[mode.value]}
            for mode in Mode
        }

    def as_json(self) -> dict[str, Any]:
        """The settings, the runs, and by mode and metric `mean`, `deviation`, `within` and the `values` of the runs in order."""
        first = self.members[0].told
        runs = [{"seed": m.seed, "run": m.name, "checkpoint": m.checkpoint.name} for m in self.members]
        spreads = {mode: {name: own._asdict() for name, own in by.items()} for mode, by in self.spreads().items()}
        episodes = first[Mode.INDUCTIVE.value][first["metric"]]["episodes"]
        settings = {key: first[key] for key in (*SETTINGS, *SHAPED) if key in first}
        return {**settings, "episodes": episodes, "data_fingerprint": self.fingerprint, "runs": runs, **spreads}


def spread(figures: Sequence[Mapping[str, float]]) -> Spread:
    """The spread of one figure, told as `mean` and (or not) `interval` for each of at least two runs."""
    values, widths = [f["mean"] for f in figures], [f["interval"] for f in figures if "interval" in f]
    return Spread(
        statistics.fmean(values), statistics.stdev(values), statistics.fmean(widths) if widths else None, values
    )


def train_all(
    config: RunConfig,
    count: int,
    *,
    make_learner: MakeLearner = build.learner,
    watch: Watch = lambda folder, steps: nullcontext(),
    tell: Callable[[str], None] = lambda text: None,
) -> list[Finished]:
    """Train with the config's seed and the `count` − 1 after it, each an ordinary run; `tell` hears how each of them ends.

    What is there under `runs` of the same config and data is not trained again: a finished run is taken as it is and an
    interrupted one goes on, so that the same call made again goes on where it was. Where somebody stops it, the last of
    what comes back has no result.

    Raises:
        InputError: as `train.fit`, or `count` is no number of seeds.
    """
    if count < 2:
        raise InputError(f"--seeds {count}: one run has no spread; give 2 or more, or leave it out")
    ended: list[Finished] = []
    for seed in range(config.seed, config.seed + count):
        own = parse({**dump(config), "seed": seed}, f"--seeds {count}")
        folder = earlier(own, make_learner)
        if folder is not None and (finished := _finished(folder)) is not None:
            tell(f"seed {seed}: {folder} is there and finished")
            ended.append(finished)
            continue
        tell(f"seed {seed}: " + ("a new run" if folder is None else f"going on with {folder}"))
        ended.append(train.fit(own, resume=folder, make_learner=make_learner, watch=watch))
        if not ended[-1].result:
            tell(f"stopped in the run of seed {seed}, {ended[-1].folder}; go on with the same command")
            break
        tell(ended[-1].text)
    return ended


def earlier(config: RunConfig, make_learner: MakeLearner) -> Path | None:
    """The newest run under `runs` with this very config, on these data, from these files, of this learner; None if none is."""
    origins = provenance(config)
    asked = {
        "config.fingerprint": fingerprint(config),
        **fingerprints(config, Index.without_shards(config.data.root)),
        **origins,
        **train.maker(make_learner),
    }
    found = []
    for file in config.runs.glob(f"*/{CONFIG_FILE}"):
        if not _is_config(file, config):
            continue
        past = spool.history(file.parent)
        if past.tags.items() >= asked.items() and (MAKER in past.tags) == (MAKER in asked):
            found.append((past.started_ms, file.parent))
    return max(found)[1] if found else None


def _is_config(file: Path, config: RunConfig) -> bool:
    try:
        stored = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError):
        return False
    return isinstance(stored, dict) and not differences(stored, dump(config))


def _finished(folder: Path) -> Finished | None:
    """A run that has ended and been evaluated."""
    result = read_json(folder / RUN_RESULT_FILE)
    return Finished(folder, result, "") if result and spool.history(folder).status == "FINISHED" else None


def of_runs(ended: Sequence[Finished], config: RunConfig) -> Summary:
    """What the ends of runs of this config with one seed after another say together."""
    members = [
        Member(seed, run.folder.name, run.folder / "checkpoints" / run.result["checkpoint"], run.result["test"])
        for seed, run in enumerate(ended, config.seed)
    ]
    return Summary(members, Index.without_shards(config.data.root).fingerprint)


def evaluate_all(
    targets: Sequence[Path],
    runs: Path,
    *,
    split: str,
    episodes: int,
    workers: int,
    data: Root | None = None,
    asked: Mapping[str, Any] | None = None,
    test_steps: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Summary:
    """Evaluate runs (or checkpoints) that differ in the seed alone, each as `evaluate` does and kept as there.

    Raises:
        InputError: one of them is no run, they differ in more than the seed or not at all, or one cannot be evaluated.
    """
    evaluate.check(episodes=episodes, workers=workers)
    paths = [restore.find(target, runs) for target in targets]
    subjects = [restore.subject_of(path, data=data, asked=asked or {}, test_steps=test_steps) for path in paths]
    names = [_name(path, target) for path, target in zip(paths, targets, strict=True)]
    _check_alike(names, subjects)
    members = []
    with session.connected(workers) if workers > 1 else nullcontext():
        for number, (name, path, subject) in enumerate(zip(names, paths, subjects, strict=True)):
            progress(number, len(paths))
            found = evaluate.evaluate(subject, split=split, episodes=episodes, workers=workers)
            if data is None:
                evaluate.keep(found, path)
            members.append(Member(subject.config["seed"], name, path, found.as_json()))
        progress(len(paths), len(paths))
    root = subjects[0].data or subjects[0].config["data"]["root"]
    return Summary(members, Index.without_shards(root).fingerprint)


def _name(path: Path, target: Path) -> str:
    run = restore.run_of(path)
    return str(target) if run is None else run.name


def _check_alike(names: Sequence[str], subjects: Sequence[Subject]) -> None:
    """Refuse what would be a spread of something else than seeds."""
    seen: dict[int, str] = {}
    for name, subject in zip(names, subjects, strict=True):
        changed = [line for line in differences(subjects[0].config, subject.config) if not line.startswith("seed: ")]
        if changed:
            raise InputError(
                f"{name} differs from {names[0]} in more than the seed: {'; '.join(changed)}; "
                "name runs of one config, or see how they differ with metashard compare"
            )
        if (other := seen.setdefault(subject.config["seed"], name)) != name or names.count(name) > 1:
            raise InputError(f"{name} and {other} have the same seed, {subject.config['seed']}; name each seed once")


def keep(summary: Summary, runs: Path) -> tuple[Path, SyncReport]:
    """Keep a summary beside its first run, as a run of its own, and send it to that run's MLflow; its folder comes back.

    `runs` is where it goes when the first member is a checkpoint outside any run.

    Raises:
        InputError: the folder cannot be written.
    """
    folder, target = evaluate.new_beside(summary.members[0].checkpoint, runs, NAME)
    evaluate.write(summary.as_json(), folder / RESULT_FILE)
    _write_table(summary, folder / TABLE_FILE)
    _tell(summary, folder)
    tracking.write_target(folder, target)
    return folder, tracking.sync(folder, uri=target.uri)


def _write_table(summary: Summary, path: Path) -> None:
    """A row per mode and metric, a column per seed, for spreadsheets and MLflow's own viewer."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["mode", "metric", "mean", "deviation", "within", *(f"seed {m.seed}" for m in summary.members)])
        for mode, by_metric in summary.spreads().items():
            for metric, (mean, deviation, within, values) in by_metric.items():
                rows.writerow([mode, metric, mean, deviation, "" if within is None else within, *values])


def _tell(summary: Summary, folder: Path) -> None:
    told = spool.Spool(folder)
    whole = summary.as_json()
    settings = {key: str(whole[key]) for key in (*SETTINGS, *SHAPED, "episodes") if key in whole}
    members = {f"run.{n}": f"{m.name} {m.checkpoint.name}" for n, m in enumerate(summary.members)}
    seeds = {f"seed.{n}": str(m.seed) for n, m in enumerate(summary.members)}
    told.params({"name": NAME, **settings, **members, **seeds})
    found = [(n, restore.run_of(m.checkpoint)) for n, m in enumerate(summary.members)]
    sent = {f"run.{n}.mlflow": tracking.run_id_of(run) for n, run in found if run is not None}
    told.tags({spool.KIND: NAME, "data.fingerprint": summary.fingerprint, **{k: v for k, v in sent.items() if v}})
    for mode, by_metric in summary.spreads().items():
        for metric, (mean, deviation, within, values) in by_metric.items():
            figures = {"": mean, "_deviation": deviation, **({} if within is None else {"_within": within})}
            told.metrics(0, {f"{mode}/{metric}{suffix}": value for suffix, value in figures.items()})
            # A curve over seeds; the steps of a series only go up.
            for seed, value in sorted(zip([m.seed for m in summary.members], values, strict=True)):
                told.metrics(seed, {f"{mode}/{metric}_by_seed": value})
    for name in (RESULT_FILE, TABLE_FILE):
        told.artifact(folder / name)
    told.status("FINISHED")
    told.close()
