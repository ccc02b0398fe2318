"""The verbs of `metashard choose`: what each takes and how its result is told; their work lies in their own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import InputError

app = typer.Typer()
choose = typer.Typer(
    no_args_is_help=True, epilog="Example: metashard choose model --from chooser --support ~/new-classes"
)
app.add_typer(choose, name="choose", help="Choose what to label, and by what to classify it.")

Runs = Annotated[Path, typer.Option("--runs", help="folder of the runs")]


@choose.command(
    epilog="Example: metashard choose model RUN RUN RUN --data data/glyphs:val --tasks 400 --out chooser; then: metashard choose "
    "model --from chooser --support ~/new-classes; how good it is: metashard choose model --from chooser --data data/glyphs:test"
)
def model(
    targets: Annotated[
        list[Path] | None,
        typer.Argument(help="run ids, run folders or checkpoint folders to choose from", show_default=False),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="DATA or DATA:SPLIT that tasks are drawn from; as often as there are, each as many tasks"),
    ] = None,
    split: Annotated[str, typer.Option(help="of a DATA that names no split")] = "val",
    tasks: Annotated[int, typer.Option(help="tasks to measure on, over all data")] = 400,
    ways: Annotated[str, typer.Option(help="classes of a task, as 5 or 2-20")] = "2-20",
    shots: Annotated[str, typer.Option(help="support images of a class, as 1 or 1-10")] = "1-10",
    queries: Annotated[int, typer.Option(help="query images of a class", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="of the tasks")] = 0,
    out: Annotated[Path | None, typer.Option(help="folder of the new chooser")] = None,
    chooser: Annotated[Path | None, typer.Option("--from", help="folder of a chooser that was made before")] = None,
    support: Annotated[
        Path | None,
        typer.Option(help="of --from: a folder of images for each new class; a run is recommended for them"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Recommend run, learner and adaptation settings for new classes from their support images alone.

    RUNs with --data and --out measure the runs on many tasks and fit a chooser to that. With --from it recommends for --support,
    or is judged on the tasks of --data, which must be other classes.
    """
    from pipeline import choice_report, shelf, table
    from pipeline import choose_model as verb
    from pipeline.task_family import Family, range_of
    from pipeline.watch import counting

    if chooser is None:
        if support is not None:
            raise InputError(f"--support {support}: nothing recommends without a chooser; name its folder with --from")
        if not data or out is None:
            raise InputError(
                "choose model RUN RUN … measures runs: say on what with --data DATA:val, and where to with --out DIR"
            )
        family = Family(range_of("--ways", ways, least=2), range_of("--shots", shots, least=1), queries)
        shelf.check_new(out)
        with counting("measuring", "runs × data") as progress:
            columns = table.columns(data, split)
            asked = {"tasks": tasks, "seed": seed, "progress": progress}
            made = shelf.shelve(targets or [], runs, columns, family, **asked)
        shelf.keep(made, out)
        choice_report.shelf_told(made, verb.fit(made), out, is_json=json)
        return
    if targets or out is not None:
        raise InputError(f"--from {chooser} brings its own runs; leave RUN and --out out, or --from")
    if (support is None) == (not data):
        raise InputError(
            f"--from {chooser}: give --support DIR to be recommended a run, or --data DATA:test to judge the chooser"
        )
    own = shelf.read(chooser)
    if support is not None:
        choice_report.recommendation_told(verb.recommend(own, support), is_json=json)
        return
    with counting("measuring", "runs × data") as progress:
        found = verb.judge(own, table.columns(data or [], split), tasks=tasks, seed=seed, progress=progress)
    verb.keep_judgement(found, chooser)
    choice_report.judgement_told(found, is_json=json)
