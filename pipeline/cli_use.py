"""The verbs that make models which people use, and use them: what each takes; their work lies in their own files."""

from __future__ import annotations

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


@app.command(epilog="Example: metashard page http://127.0.0.1:8000 --token-file token")
def page(
    url: Annotated[str, typer.Argument(help="URL of metashard serve")],
    token_file: Annotated[
        Path | None, typer.Option(help="file that holds the server's token; none: METASHARD_TOKEN of the environment")
    ] = None,
    port: Annotated[int, typer.Option(help="port of this machine; 0: any that is free")] = 7860,
) -> None:
    """Show a page on which people teach a server classes and ask it, until Ctrl-C."""
    from pipeline import page_server

    page_server.serve(url, token_file=token_file, port=port)
