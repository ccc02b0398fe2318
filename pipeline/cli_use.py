"""The verbs that make models which people use, and use them: what each takes; their work lies in their own files."""

from __future__ import annotations

from functools import partial
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


@app.command(epilog="Example: metashard predict birds.safetensors photos/ 'more/**/*.jpg' --out answers.csv")
def predict(
    model: Annotated[Path, typer.Argument(help="file of metashard adapt")],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="files, folders (all images below them) and patterns as 'birds/**/*.jpg'", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="answers.json (of detection COCO's form), answers.csv, or a folder for both, masks and overlays"
        ),
    ] = None,
    table: Annotated[Path | None, typer.Option("--csv", help="a CSV file as well")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON instead of lines")] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="likeness below which an image is unknown, or score from which on an object is told; the model's own"
        ),
    ] = None,
    no_unknown: Annotated[bool, typer.Option("--no-unknown", help="every image is of one of the classes")] = False,
    pictures: Annotated[bool, typer.Option("--pictures", help="of detection: boxes drawn on the images too")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="say of two images whether they show one class")] = False,
    pairs: Annotated[
        Path | None,
        typer.Option(help="the same of every pair in a CSV file: two columns, or among others image_a and image_b"),
    ] = None,
) -> None:
    """Say what is in images: a class or unknown, masks, or boxes; or whether two show one class or person.

    An image that cannot be read is named at the end, with exit code 1; the others are answered.
    """
    import sys

    from pipeline import answer_files, predict_pairs
    from pipeline import predict as verb
    from pipeline.session import silent
    from pipeline.watch import counting

    wanted, named = verb.Wanted(out, table, json, pictures), images or []
    if (compare or pairs) and (no_unknown or pictures):
        raise InputError("--no-unknown and --pictures say nothing of pairs; leave them out")
    if pairs and (compare or named):
        raise InputError(f"--pairs {pairs}: names the images; leave --compare and others out")
    # Lines on a terminal are progress enough.
    is_shown = bool(wanted.files) or not sys.stdout.isatty()
    with counting("predicting", "images") as counted:
        progress = counted if is_shown else silent
        if compare or pairs:
            asked = predict_pairs.listed(pairs) if pairs else predict_pairs.named(named)
            done = predict_pairs.compare(model, asked, wanted, least=threshold, progress=progress)
        else:
            done = verb.predict(model, named, wanted, least=threshold, is_closed=no_unknown, progress=progress)
    if done.errors:
        answer_files.told_at_the_end(done.errors, done.total)
    if wanted.files and not json:
        print("answers    " + ", ".join(map(str, wanted.files)))
    if done.errors:
        raise typer.Exit(1)


@app.command(
    epilog="Example: metashard export birds.safetensors --onnx birds.onnx; metashard export RUN --mlflow learner/"
)
def export(
    target: Annotated[
        str, typer.Argument(help="file of metashard adapt; for --mlflow a checkpoint, as metashard adapt takes it")
    ],
    onnx: Annotated[Path | None, typer.Option(help="file for ONNX, from images in 0…1 to scores")] = None,
    program: Annotated[Path | None, typer.Option("--torch", help="file for torch.export, as birds.pt2")] = None,
    mlflow: Annotated[Path | None, typer.Option(help="folder for the learner itself as an MLflow model")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write an adapted model for programs that have no metashard, or a learner for MLflow, each tried before it is kept."""
    if mlflow is None:
        from pipeline import export as verb

        print(verb.text(verb.export(Path(target), onnx=onnx, program=program)))
    elif onnx or program:
        raise InputError(
            "--mlflow takes a checkpoint, and --onnx and --torch a model of metashard adapt; call it for each"
        )
    else:
        from pipeline import export_mlflow

        export_mlflow.export(target, mlflow, runs=runs)
        print(f"{mlflow}  serve it: mlflow models serve -m {mlflow} --env-manager local")


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
