"""The verbs of `metashard choose`: what each takes and how its result is told; their work lies in their own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()
choose = typer.Typer(
    no_args_is_help=True, epilog="Example: metashard choose samples ~/unlabelled --run RUN --budget 25"
)
app.add_typer(choose, name="choose", help="Choose what to label, and by what to classify it.")

Runs = Annotated[Path, typer.Option("--runs", help="folder of the runs")]


@choose.command(
    epilog="Example: metashard choose samples ~/unlabelled --run birds-protonet-20260101-120000-ab12 --budget 25 --out label.csv"
)
def samples(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="unlabelled images at any depth; folders mean nothing")],
    run: Annotated[
        Path,
        typer.Option(help="run id, run folder or checkpoint folder; its encoder says what is alike", metavar="RUN"),
    ],
    budget: Annotated[int, typer.Option(help="how many images will be labelled")],
    strategy: Annotated[str, typer.Option(help="typicality, k_centre, herding or random")] = "typicality",
    seed: Annotated[int, typer.Option(help="of what is drawn: k-means' and k-centre's beginnings, random images")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="file for the list: a table if it ends in .csv, else a line each", metavar="FILE"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON instead of a line each")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Name the images to label as support, the most wanted first. The choice is a function of the images and the seed."""
    from pipeline import choose_samples as verb
    from pipeline.watch import counting

    asked = {"budget": budget, "strategy": verb.strategy_of(strategy), "seed": seed, "runs": runs}
    if out is not None:
        verb.check_place(out)
    with counting("looking at", "images") as progress:
        found = verb.choose_samples(folder, run, **asked, progress=progress)
    if out is not None:
        verb.write(found, out)
    print(found.as_json() if json else found.as_lines(), end="")
