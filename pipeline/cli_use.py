"""The verbs that make models which people use, and use them: what each takes; their work lies in their own files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_data import Runs

app = typer.Typer()


@app.command(epilog="Example: metashard adapt glyphs-20260101-120000-ab12 --support birds/ --out birds.safetensors")
def adapt(
    checkpoint: Annotated[
        str, typer.Argument(help="run id, run or checkpoint folder, models:/NAME@ALIAS, or the URL of a run in a store")
    ],
    support: Annotated[
        Path, typer.Option(help="folder of a folder for each class or person; or of images with masks or boxes")
    ],
    out: Annotated[Path, typer.Option(help="file of the model")],
    layout: Annotated[
        str, typer.Option(help="how the support lies there: folder; masks, fss; coco, voc, logos; empty: as it looks")
    ] = "",
    runs: Runs = Path("runs"),
) -> None:
    """Teach a trained learner new classes from a few labelled images, in seconds."""
    from pipeline import adapt as verb

    print(verb.text(verb.adapt(checkpoint, support, out, runs=runs, layout=layout), out))


@app.command(epilog="Example: metashard quickstart birds/ --minutes 10")
def quickstart(
    folder: Annotated[
        str,
        typer.Argument(help="folder or zip of a folder of images for each class; '-': drawn characters", metavar="DIR"),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value on top of the config that is chosen, as meta.steps=500", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of all that is made; the same call goes on there")] = Path(
        "quickstart"
    ),
    minutes: Annotated[float, typer.Option(help="about how long training and evaluating may take")] = 5.0,
    support: Annotated[
        Path | None,
        typer.Option(
            help="a few images of each class to teach in the end; none: of classes that were not learned from"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="tell the plan and its commands alone")] = False,
) -> None:
    """Your own class folders: pack, choose a config, train, evaluate, adapt; each step's own command is told."""
    from pipeline import quickstart as verb

    tell = partial(print, flush=True)
    code = verb.quickstart(
        folder, out, minutes=minutes, support=support, overrides=overrides or [], is_dry=dry_run, tell=tell
    )
    raise typer.Exit(code)
