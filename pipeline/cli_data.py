"""The verbs of data sets: what each takes and how its result is told; their work lies in their own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import InputError

app = typer.Typer()

Runs = Annotated[Path, typer.Option("--runs", help="folder of the runs")]
Splits = Annotated[Path | None, typer.Option(help="folder of train.txt, val.txt, test.txt with a class name a line")]
Rule = Annotated[str | None, typer.Option(help="split classes by hash, as train=0.64,val=0.16,test=0.2")]
Modalities = Annotated[
    str | None, typer.Option(help="images that samples have, as image,depth: NAME.png and NAME.depth.png (or .npy)")
]
Workers = Annotated[int, typer.Option(help="Ray tasks; 1: this process")]


@app.command(epilog="Example: metashard pack ~/birds data/birds --size 84 --rule train=0.64,val=0.16,test=0.2")
def pack(
    source: Annotated[
        str, typer.Argument(help="folder or zip of images, or a CSV file of them; '-' for layouts that draw")
    ],
    dest: Annotated[Path, typer.Argument(help="folder of the packed data set")],
    layout: Annotated[
        str,
        typer.Option(
            help="folder; csv (file,label; also Ravi's mini-ImageNet); omniglot (Vinyals' split) or omniglot_lake; cifar_fs; "
            "masks, fss (FSS-1000); coco, voc, logos; identities; glyphs or scenes"
        ),
    ] = "folder",
    size: Annotated[int | None, typer.Option(help="make all images squares of this many pixels")] = None,
    store: Annotated[
        str, typer.Option(help="raw (arrays, one size, no decoding) or encoded (the original files)")
    ] = "raw",
    channels: Annotated[int | None, typer.Option(help="1: grey, 3: colour")] = None,
    splits: Splits = None,
    rule: Rule = None,
    shard_mib: Annotated[int, typer.Option(help="size of a tar, MiB")] = 64,
    seed: int = 0,
    min_area: Annotated[
        float | None,
        typer.Option(
            help="share of a picture that a class (masks: 0.01 if not said, fss: 0) or a box (coco, voc, logos: 0) must cover to "
            "be drawn for"
        ),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="of --layout identities: CSV file with the columns fold, image_a, image_b, same")
    ] = None,
    fold: Annotated[
        int | None, typer.Option(help="of --pairs: the fold whose persons are the test; --rule shares out the others")
    ] = None,
    modalities: Modalities = None,
    workers: Workers = 1,
) -> None:
    """Pack labelled images into tars, and index them."""
    from pipeline import prepare
    from pipeline.watch import counting

    with counting("packing", "tars") as progress:
        made = prepare.pack(
            source,
            dest,
            layout=layout,
            size=size,
            store=store,
            channels=channels,
            splits=splits,
            rule=rule,
            shard_mib=shard_mib,
            seed=seed,
            min_area=min_area,
            pairs=pairs,
            fold=fold,
            modalities=modalities,
            workers=workers,
            progress=progress,
        )
    print(prepare.described(made))


@app.command(epilog="Example: metashard index tars/ --rule train=0.8,val=0.1,test=0.1 --out data/birds")
def index(
    tars: Annotated[list[Path], typer.Argument(help="tars, or folders of them")],
    out: Annotated[Path | None, typer.Option(help="where the index goes, when not beside the tars")] = None,
    class_field: Annotated[str, typer.Option(help="field of the JSON member that names the class")] = "class",
    splits: Splits = None,
    rule: Rule = None,
    seed: int = 0,
    modalities: Modalities = None,
    workers: Workers = 1,
) -> None:
    """Index tars that someone else wrote, without changing them."""
    from pipeline import prepare
    from pipeline.watch import counting

    with counting("indexing", "tars") as progress:
        made = prepare.index(
            tars,
            out=out,
            class_field=class_field,
            splits=splits,
            rule=rule,
            seed=seed,
            modalities=modalities,
            workers=workers,
            progress=progress,
        )
    print(prepare.described(made))


@app.command(epilog="Example: metashard verify data/omniglot")
def verify(
    data: Annotated[str, typer.Argument(help="folder of a data set, or its URL")],
    splits: Splits = None,
    samples_per_class: Annotated[int, typer.Option(help="fewest samples that a class of a split may have")] = 2,
    workers: Workers = 1,
) -> None:
    """Check every hash, every sample and every split; list all faults."""
    from pipeline import prepare
    from pipeline.watch import counting

    with counting("verifying", "tars") as progress:
        faults = prepare.verify(
            data, splits=splits, samples_per_class=samples_per_class, workers=workers, progress=progress
        )
    for fault in faults:
        print(fault)
    if faults:
        raise InputError(f"{data}: {len(faults)} faults")
    print(f"{data}: no fault")


@app.command(
    epilog="Example: metashard embed birds-supervised-20260101-120000-ab12 data/birds-features --data data/birds"
)
def embed(
    target: Annotated[Path, typer.Argument(help="run id, run folder, checkpoint folder or .safetensors file")],
    out: Annotated[Path, typer.Argument(help="folder of the packed features")],
    data: Annotated[str | None, typer.Option(help="another packed data set than the run's, or its URL")] = None,
    config: Annotated[Path | None, typer.Option(help="for a .safetensors file: a run's YAML with its model")] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="means over an image and its mirror image")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Run a frozen encoder over every image once; its features are a data set for model.kind = features."""
    from pipeline import embed as verb
    from pipeline import prepare
    from pipeline.data.root import root_of
    from pipeline.watch import counting

    with counting("embedding", "samples") as progress:
        other = root_of(data) if data else None
        made = verb.embed(target, out, data=other, config=config, runs=runs, mirror=mirror, progress=progress)
    print(prepare.described(made))


@app.command(epilog="Example: metashard show data/glyphs --out episode.png")
def show(
    target: Annotated[str, typer.Argument(help="a data set or its URL, or a run")],
    out: Annotated[Path, typer.Option(help="PNG file (of a data set), or folder (of a run)")] = Path("episode.png"),
    redraw: Annotated[bool, typer.Option("--redraw", help="draw those of a run anew, by its best checkpoint")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Draw an episode of a data set, or name the pictures of a run."""
    from pipeline import show as verb
    from pipeline.data.root import root_of

    place = root_of(target)
    place = runs / place if isinstance(place, Path) and not place.exists() else place
    for path in verb.show(place, out, redraw=redraw):
        print(path)
