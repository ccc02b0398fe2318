"""The verbs that make models which people use, and use them: what each takes; their work lies in their own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_data import Runs
from pipeline.errors import InputError

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


@app.command(epilog="Example: metashard serve birds.safetensors --port 8000")
def serve(
    model: Annotated[str, typer.Argument(help="file of metashard adapt, or a checkpoint as adapt takes it")],
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine's own need a token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one")] = 8000,
    state: Annotated[
        Path | None,
        typer.Option(help="folder of taught classes; if not said, beside the model or in the folder of runs"),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="tokens that may ask, see metashard token; or set METASHARD_TOKEN to one")
    ] = None,
    max_mib: Annotated[int, typer.Option(min=1, help="size of a request, MiB")] = 64,
    max_files: Annotated[int, typer.Option(min=1, help="images of a request")] = 64,
    max_classes: Annotated[int, typer.Option(min=1, help="classes that may be taught")] = 1000,
    max_samples: Annotated[int, typer.Option(min=1, help="samples of a class")] = 100,
    threads: Annotated[int, typer.Option(min=1, help="threads of torch; more than one pay for large models alone")] = 1,
    runs: Runs = Path("runs"),
) -> None:
    """Teach classes to a model and ask it over HTTP (Ray Serve); what is taught outlives a restart. Ctrl-C ends it."""
    try:
        from pipeline import serve as verb
        from pipeline.serving.deployment import Address
        from pipeline.serving.limits import MIB, Limits
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs the package {error.name}: pip install 'metashard[serve]'") from error

    limits = Limits(
        body_bytes=max_mib * MIB,
        files=max_files,
        bytes_under_way=4 * max_mib * MIB,
        classes=max_classes,
        samples=max_samples,
    )
    served = verb.settled(
        model, runs=runs, state=state, token_file=token_file, host=host, limits=limits, threads=threads
    )
    print(f"state      {served.state}", flush=True)
    verb.serve(served, Address(host, port), told=lambda url: print(f"serving    {url}", flush=True))


@app.command(epilog="Example: metashard token tokens.jsonl --days 30")
def token(
    file: Annotated[Path, typer.Argument(help="file for metashard serve --token-file; it keeps a hash alone")],
    days: Annotated[float | None, typer.Option(min=0, help="until it expires; never, if not said")] = None,
) -> None:
    """Make a token with which a server may be asked, add it to a file, and tell it once."""
    from pipeline.serving import tokens

    print(tokens.add(file, days=days))
