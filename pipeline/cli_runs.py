"""The verbs of runs: what each takes and how its result is told; their work lies in their own files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.data.root import Root
    from pipeline.restore import Subject
    from pipeline.seeds import Summary

app = typer.Typer()

Runs = Annotated[Path, typer.Option("--runs", help="folder of the runs")]
Workers = Annotated[int, typer.Option(help="Ray tasks; 1: this process")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, as meta.steps=500", show_default=False)]


@app.command(epilog="Example: metashard train configs/train/classification/glyphs.yaml meta.steps=500 workers.count=2")
def train(
    config: Annotated[Path, typer.Argument(help="YAML file of a run", show_default=False)],
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="run to go on with: its id or folder")] = None,
    run: Annotated[
        str | None,
        typer.Option(help="id of the run: made, or gone on with if it was begun; METASHARD_RUN says the same"),
    ] = None,
    allow_change: Annotated[bool, typer.Option("--allow-change", help="go on with another config than before")] = False,
    seeds: Annotated[
        int | None, typer.Option(help="so many runs, of the config's seed and those after it; again: goes on")
    ] = None,
) -> None:
    """Meta-train, keep the run in MLflow, evaluate on unseen classes."""
    from pipeline import config as configs
    from pipeline import seeds as several
    from pipeline import train as verb
    from pipeline.lineage import RUN_ENV
    from pipeline.run_folder import found_run
    from pipeline.watch import watching

    chosen = configs.load(config, overrides or [])
    if seeds is not None:
        if resume is not None or run is not None:
            raise InputError(
                f"--seeds {seeds} with --resume or --run: the same command with --seeds goes on; leave it out"
            )
        ended = several.train_all(chosen, seeds, watch=watching, tell=print)
        if ended[-1].result:
            _spread_told(several.of_runs(ended, chosen), chosen.runs, is_json=False)
        raise typer.Exit(ended[-1].code)
    if resume is not None and run is not None:
        raise InputError(f"--resume {resume} with --run {run}: one of them")
    name = "" if resume is not None else run or os.environ.get(RUN_ENV, "")
    if name:
        folder = found_run(chosen, name)
    else:
        folder = None if resume is None else resume if resume.exists() else chosen.runs / resume
    finished = verb.fit(chosen, resume=folder, name=name, allow_change=allow_change, watch=watching)
    print(finished.text)
    raise typer.Exit(finished.code)


@app.command(epilog="Example: metashard sweep configs/sweep/glyphs-maml.yaml sweep.trials=20")
def sweep(
    config: Annotated[Path, typer.Argument(help="YAML file of a sweep: a run with dimensions", show_default=False)],
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="sweep to go on with: its name or folder")] = None,
) -> None:
    """Search meta-hyperparameters: many trials, each a run, below one run in MLflow; then evaluate the best of them."""
    from pipeline import sweep as verb
    from pipeline import sweep_plan

    plan = sweep_plan.load(config, overrides or [])
    folder = None
    if resume is not None:
        folder = resume if resume.exists() else Path(plan.tree.get("runs", "runs")) / resume
    swept = verb.sweep(plan, resume=folder, tell=lambda text: print(text, flush=True))
    print(swept.text)
    raise typer.Exit(swept.code)


@app.command(epilog="Example: metashard evaluate glyphs-20260101-120000-ab12 --episodes 1000 --json")
def evaluate(
    targets: Annotated[
        list[Path],
        typer.Argument(
            help="run id, run folder or checkpoint folder; several: of one config, each of its own seed, or with --table any"
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="another packed data set, or its URL; of --table as often as there are columns, as DATA or DATA:SPLIT"
        ),
    ] = None,
    table: Annotated[
        bool,
        typer.Option("--table", help="a table of runs by the data sets of --data, none of which a run was trained on"),
    ] = False,
    split: Annotated[str, typer.Option(help="the split to draw from")] = "test",
    episodes: Annotated[int, typer.Option(help="frozen episodes; the same ones for every method")] = 600,
    ways: Annotated[int | None, typer.Option(help="classes per episode; none of these three: as in the config")] = None,
    shots: Annotated[int | None, typer.Option(help="support samples per class")] = None,
    queries: Annotated[int | None, typer.Option(help="query samples per class")] = None,
    shape: Annotated[
        str | None, typer.Option(help="fixed, varied or long_tailed ways and shots; none: as in the config")
    ] = None,
    test_steps: Annotated[
        int | None, typer.Option(help="inner steps of a gradient learner; none: as configured")
    ] = None,
    settings: Annotated[
        str | None,
        typer.Option(
            help="leave-one-out: inner steps and rate chosen for each episode from its support, against the config's"
        ),
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="judge the pairs that the data were packed with instead of episodes")
    ] = False,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="of --pairs: features are means over an image and its mirror image")
    ] = False,
    workers: Workers = 1,
    json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Measure a checkpoint on frozen episodes, inductively and transductively; of several seeds, how far they lie apart."""
    from pipeline import restore
    from pipeline.data.root import root_of

    named = data or []
    if settings is not None and (len(targets) > 1 or table or pairs or workers > 1 or test_steps is not None):
        raise InputError(
            f"--settings {settings} judges one run in this process; leave other RUNs, --table, --pairs, "
            "--workers and --test-steps out"
        )
    if len(named) > 1 and not table:
        raise InputError(f"--data {named[1]}: a second data set is for --table; add that, or name one")
    asked = _named(ways=ways, shots=shots, queries=queries, shape=shape and {"kind": shape})
    if table:
        if pairs or not named:
            raise InputError(
                "--table measures episodes of the data sets that --data names; give --data, and leave --pairs out"
            )
        _table_told(targets, runs, named, split, asked, test_steps, episodes=episodes, workers=workers, is_json=json)
        return
    other = root_of(named[0]) if named else None
    if mirror and not pairs:
        raise InputError("--mirror is for --pairs; leave it out, or ask for pairs")
    if pairs:
        if len(targets) > 1 or asked or test_steps is not None:
            raise InputError("--pairs judges one run, and knows no ways, shots, queries or inner steps; leave them out")
        _pairs_told(restore.find(targets[0], runs), other, mirror=mirror, is_json=json)
        return
    if len(targets) > 1:
        options = {"data": other, "asked": asked, "test_steps": test_steps, "split": split, "episodes": episodes}
        _seeds_told(targets, runs, is_json=json, workers=workers, **options)
        return
    path = restore.find(targets[0], runs)
    subject = restore.subject_of(path, data=other, asked=asked, test_steps=test_steps)
    if settings is not None:
        _settings_told(path, subject, settings, split, episodes=episodes, is_json=json)
        return
    _scores_told(subject, split, episodes=episodes, workers=workers, is_json=json)


@app.command(
    epilog="Example: metashard compare glyphs-20260101-120000-ab12 glyphs-20260102-120000-cd34 --episodes 1000"
)
def compare(
    targets: Annotated[
        list[Path], typer.Argument(help="run ids, run folders or checkpoint folders; the first is the reference")
    ],
    split: Annotated[str, typer.Option(help="the split to draw from")] = "test",
    episodes: Annotated[int, typer.Option(help="frozen episodes; the same ones for every run")] = 600,
    mode: Annotated[str, typer.Option(help="inductive, transductive or both")] = "inductive",
    ways: Annotated[
        int | None, typer.Option(help="classes per episode; none of these three: as in the configs")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="support samples per class")] = None,
    queries: Annotated[int | None, typer.Option(help="query samples per class")] = None,
    shape: Annotated[
        str | None, typer.Option(help="fixed, varied or long_tailed ways and shots; none: as in the config")
    ] = None,
    workers: Workers = 1,
    json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Measure runs on the same frozen episodes, with the 95 % interval of their paired differences."""
    import json as format

    from pipeline import compare as verb
    from pipeline import report
    from pipeline.watch import counting

    modes = verb.modes_of(mode)
    rivals = verb.contenders(
        targets, runs, _named(ways=ways, shots=shots, queries=queries, shape=shape and {"kind": shape})
    )
    with counting("comparing", "runs") as progress:
        found = verb.compare(rivals, split=split, episodes=episodes, modes=modes, workers=workers, progress=progress)
    folder, sent = verb.keep(found, runs)
    if json:
        print(format.dumps(found.as_json(), indent=1))
    else:
        report.print_comparison(found.as_json())
        print(f"kept in {folder}")
    _warn_unless(sent.complete)


@app.command(epilog="Example: metashard register glyphs-20260101-120000-ab12 glyphs --alias champion")
def register(
    run: Annotated[Path, typer.Argument(help="run id or run folder; its best checkpoint is taken", show_default=False)],
    name: Annotated[
        str, typer.Argument(help="registered model; empty: the run has a model in MLflow, and nothing is registered")
    ] = "",
    alias: Annotated[str, typer.Option(help="what then points to this version, as champion")] = "",
    runs: Runs = Path("runs"),
) -> None:
    """Make a run's best checkpoint a model in MLflow, which `mlflow models serve` serves, and register it."""
    from pipeline import register as verb

    folder = run if run.exists() else runs / run
    done = verb.register(folder, name=name, alias=alias)
    print(verb.registered_text(folder, done, name=name, alias=alias))
    for reason in done.sent.refused:
        print(f"MLflow refuses {reason}", file=sys.stderr)
    _warn_unless(done.sent.complete)


def _scores_told(subject: Subject, split: str, *, episodes: int, workers: int, is_json: bool) -> None:
    """Measure one checkpoint, on the data sets of its run one by one or on the one that was named, and keep what its own say."""
    import json

    from pipeline import evaluate as verb
    from pipeline import report

    path, asked = Path(subject.checkpoint), {"split": split, "episodes": episodes, "workers": workers}
    by_data = {"": verb.evaluate(subject, **asked)} if subject.data else verb.by_data(subject, **asked)
    names = list(by_data) if len(by_data) > 1 else [""]
    told = {}
    for name, found in zip(names, by_data.values(), strict=True):
        told[name] = found.as_json()
        if not subject.data:
            verb.keep(found, path, name)
    if is_json:
        print(json.dumps(told.get("", told), indent=1))
    else:
        report.print_scores({f"{path.name} {name}".rstrip(): own for name, own in told.items()})


def _settings_told(path: Path, subject: Subject, settings: str, split: str, *, episodes: int, is_json: bool) -> None:
    """Measure settings chosen for each episode against the config's, and print both."""
    from pipeline import choice_report, evaluate_settings

    found = evaluate_settings.evaluate_settings(path, subject, settings, split=split, episodes=episodes)
    choice_report.settings_told(found, is_json=is_json)


def _pairs_told(path: Path, data: Root | None, *, mirror: bool, is_json: bool) -> None:
    """Judge pairs, keep what was found of a run's own data, and print it."""
    import json

    from pipeline import pair_protocol, report

    found = pair_protocol.evaluate_pairs(path, data=data, mirror=mirror)
    if data is None:
        pair_protocol.keep(found)
    if is_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        report.print_pairs(found.as_json())


def _table_told(
    targets: list[Path],
    runs: Path,
    named: list[str],
    split: str,
    asked: dict[str, Any],
    test_steps: int | None,
    *,
    episodes: int,
    workers: int,
    is_json: bool,
) -> None:
    """Measure runs on several data sets, keep the table and print it."""
    import json

    from pipeline import table as verb
    from pipeline.watch import counting

    options = {"asked": asked, "test_steps": test_steps, "episodes": episodes, "workers": workers}
    data = verb.columns(named, split)
    with counting("evaluating", "cells") as progress:
        found = verb.table(targets, runs, data=data, progress=progress, **options)
    folder, sent = verb.keep(found, runs)
    if is_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print(found.as_markdown())
        print(f"kept in {folder}")
    _warn_unless(sent.complete)


def _seeds_told(targets: list[Path], runs: Path, *, is_json: bool, **asked: Any) -> None:
    """Measure several seeds of one config, keep how far they lie apart and print it."""
    from pipeline import seeds
    from pipeline.watch import counting

    with counting("evaluating", "runs") as progress:
        summary = seeds.evaluate_all(targets, runs, progress=progress, **asked)
    _spread_told(summary, runs, is_json=is_json)


def _spread_told(summary: Summary, runs: Path, *, is_json: bool) -> None:
    """Keep a summary of several seeds and print it."""
    import json

    from pipeline import report, seeds

    folder, sent = seeds.keep(summary, runs)
    if is_json:
        print(json.dumps(summary.as_json(), indent=1))
    else:
        report.print_seeds(summary.as_json())
        print(f"kept in {folder}")
    _warn_unless(sent.complete)


def _warn_unless(is_sent: bool) -> None:
    if not is_sent:
        print("MLflow has not got everything; send the rest: metashard sync", file=sys.stderr)


def _named(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None}
