"""The verbs that make and check data sets: pack images, index tars, verify both."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from pipeline.data import fragments, layouts
from pipeline.data import pack as packing
from pipeline.data import pairs as pairing
from pipeline.data import splits as splitting
from pipeline.data import verify as verifying
from pipeline.data.claim import claim, release
from pipeline.data.files import make_folder
from pipeline.data.fragments import CLASS_FIELD
from pipeline.data.index import Index
from pipeline.data.merge import merge
from pipeline.data.modalities import named
from pipeline.data.root import Root, root_of
from pipeline.data.source import Sample, Source
from pipeline.errors import InputError
from pipeline.session import Progress, each, silent

STORES = ("raw", "encoded")
OTHERS_RULE = "train=0.9,val=0.1"
"""How the persons are split that do not occur in the fold that is held out."""


def pack(
    source: str,
    dest: str | Path,
    *,
    layout: str,
    size: int | None,
    store: str = "raw",
    channels: int | None = None,
    splits: Path | None = None,
    rule: str | None = None,
    shard_mib: int = 64,
    seed: int = 0,
    min_area: float | None = None,
    pairs: Path | None = None,
    fold: int | None = None,
    modalities: str | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> Index:
    """Pack images into tars of about `shard_mib` MiB under `dest`, index them, and open the index.

    `layout` says how `source` is read, as its importer tells (`data/layouts.py`); of "identities" are `pairs`, "glyphs" and
    "scenes" are drawn and read no `source`. `min_area` is of "masks" (1 % if not said), "fss" and the three with boxes (0), see
    there; `modalities`, as "image,depth", are of "folder" and "glyphs". `size` makes all images (size, size) pixels, `channels`
    (1 or 3) all grey or colour.
    Splits come from `splits` (a folder of text files with class names), else from `rule` (as in "train=0.8,test=0.2", by hash),
    else from the layout. With `fold` the classes in the pairs of that fold are the split "test", and `rule` shares out the
    others. The same call
    started again after a stop keeps the finished tars. `progress(done, total)` counts tars. With `workers` > 1 tars are
    Ray tasks, and `dest` must be a path that all nodes share. Raises `InputError` for anything the user can mend.
    """
    _check_options(store, size, channels, shard_mib, workers)
    dest = Path(dest).absolute()
    planes = () if modalities is None else named(modalities)
    asked = {"size": size, "seed": seed, "min_area": min_area, "pairs": pairs, "modalities": planes}
    data = layouts.read(source, layouts.named(layout), **asked)
    for note in data.notes:
        print(f"note: {source}: {note}", file=sys.stderr)
    packing.check(data)
    class_names = sorted({sample.label for sample in data.samples})
    if fold is None:
        chosen, origin = _splits(class_names, splits, rule, seed, data.splits, data.unsplit)
    else:
        chosen, origin = _held_out(data, fold, splits, rule, seed)
    form = {"store": store, "size": size, "channels": channels}
    mean = packing.mean_bytes(data.samples, **form)
    shards = packing.plan(data, shard_bytes=shard_mib << 20, sample_bytes=mean, seed=seed)
    claim(dest, packing.identity(shards, {**form, "name": data.name, **({"modalities": planes} if planes else {})}))
    names = [f"shard-{number:06d}.tar" for number in range(len(shards))]
    jobs = [(dest, name, samples, form, planes) for name, samples in zip(names, shards, strict=True)]
    try:
        each(_pack_shard, jobs, workers=workers, progress=progress)
    except InputError:
        release(dest)
        raise
    found = fragments.known(dest, names, CLASS_FIELD, planes)
    return merge(dest, found, name=data.name, splits=chosen, origin=origin, pairs=data.pairs)


def index(
    tars: Sequence[str | Path],
    *,
    out: Path | None,
    class_field: str = CLASS_FIELD,
    splits: Path | None = None,
    rule: str | None = None,
    seed: int = 0,
    modalities: str | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> Index:
    """Index tars that someone else wrote, without changing them, and open the index.

    `tars` are files, or folders of them. The index goes beside them, or under `out` for stores that cannot be written.
    Tars that have not changed since the last time are not read again, so data sets can grow. Splits as in `pack`. `modalities`,
    as "image,depth", are looked for as members `KEY.image.png` (or `KEY.png`) and `KEY.depth.png`.
    Raises `InputError` with the first fault of the tars; `verify` lists all.
    """
    _check_workers(workers)
    paths = _tars(tars)
    root = (out or Path(os.path.commonpath([path.parent for path in paths]))).absolute()
    names = [str(path) if out else str(path.relative_to(root)) for path in paths]
    if splits is None and rule is None:
        raise InputError("no splits: give --splits FOLDER or --rule train=0.64,val=0.16,test=0.2")
    planes = () if modalities is None else named(modalities)
    _refuse_others(root, planes)
    make_folder(root)
    jobs = [(root, name, class_field, planes) for name in names]
    results = each(fragments.faults, jobs, workers=workers, progress=progress)
    if faults := [fault for found in results for fault in found]:
        more = f" (and {len(faults) - 1} more faults; metashard verify lists them)" if len(faults) > 1 else ""
        raise InputError(faults[0] + more)
    found = fragments.known(root, names, class_field, planes)
    class_names = sorted({label for f in found for label in f.table["label"].unique().to_pylist()})
    chosen, origin = _splits(class_names, splits, rule, seed, {})
    return merge(root, found, name=root.name, splits=chosen, origin=origin)


def verify(
    root: str | Root,
    *,
    splits: Path | None = None,
    samples_per_class: int = 2,
    class_field: str = CLASS_FIELD,
    workers: int = 1,
    progress: Progress = silent,
) -> list[str]:
    """Every fault of the data set under `root` as one line each; an empty list means that it is good.

    Reads all shards, decodes all images and compares all hashes. Classes in splits should have `samples_per_class`.
    `splits` checks a folder of split files against the data too. A local folder of tars without an index is checked as well.
    """
    root = root_of(root)
    _check_workers(workers)
    if isinstance(root, Path) and not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of a data set")
    try:
        opened = Index.without_shards(root)
    except InputError as error:
        tars = sorted(root.glob("*.tar")) if isinstance(root, Path) else []
        return [str(error), *verifying.faults_without_index(tars, class_field=class_field)]
    faults = list(verifying.index_faults(opened, samples_per_class=samples_per_class))
    jobs = [(opened, number) for number in range(len(opened.shards))]
    for found in each(verifying.shard_faults, jobs, workers=workers, progress=progress):
        faults += found
    if splits is not None:
        faults += splitting.faults(splitting.read_files(splits), opened.class_names, str(splits))
    return faults


def described(made: Index) -> str:
    """A packed data set in a line."""
    splits = ", ".join(f"{name} {len(ids)}" for name, ids in made.splits.items())
    height, width, channels = made.shape(0)
    planes = "".join(f" and {name} {made.channels(name)}" for name in made.modalities[1:])
    form = f"features of encoder {made.encoder[:12]}…" if made.encoder else made.store
    return (
        f"{made.root}: {len(made):,} samples ({height} × {width} × {channels}{planes}, {form}), "
        f"{len(made.class_names):,} classes ({splits}), {len(made.shards):,} tars"
    )


def _check_options(store, size, channels, shard_mib, workers) -> None:
    if store not in STORES:
        raise InputError(f"--store {store!r} is not one of {', '.join(STORES)}")
    if size is not None and not 1 <= size <= 8192:
        raise InputError(f"--size {size} is out of range; choose 1 to 8192 pixels")
    if channels not in (None, 1, 3):
        raise InputError(f"--channels {channels} is not 1 (grey) or 3 (colour)")
    if shard_mib < 1:
        raise InputError(f"--shard-mib {shard_mib} is less than 1; 64 suits most disks")
    _check_workers(workers)


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise InputError(f"--workers {workers} is less than 1")


def _splits(
    class_names: Sequence[str],
    files: Path | None,
    rule: str | None,
    seed: int,
    own: splitting.Splits,
    unsplit: Set[str] = frozenset(),
) -> tuple[splitting.Splits, Mapping[str, object]]:
    """Classes by split, checked, and where they come from; `unsplit` are in none."""
    class_names = [name for name in class_names if name not in unsplit]
    match files, rule:
        case None, None if not own:
            raise InputError("no splits: give --splits FOLDER or --rule train=0.64,val=0.16,test=0.2")
        case None, None:
            chosen, origin, where = own, {"splits": "layout"}, "the layout's splits"
        case None, rule:
            chosen = splitting.by_rule(rule, class_names, seed=seed)
            origin, where = {"splits": "rule", "rule": rule, "seed": seed}, f"rule {rule!r}"
        case files, None:
            chosen, origin, where = splitting.read_files(files), {"splits": "files"}, str(files)
        case _:
            raise InputError(f"--splits {files} and --rule {rule} exclude each other; give one of them")
    for split, names in chosen.items():
        if lonely := sorted(unsplit & set(names)):
            raise InputError(
                f"{where}: split {split!r} lists {lonely[0]!r}, of whom there is one image, and an episode needs a support and a "
                "query; bring another image or take the name out"
            )
    splitting.check(chosen, class_names, where)
    return chosen, origin


def _held_out(
    data: Source, fold: int, files: Path | None, rule: str | None, seed: int
) -> tuple[splitting.Splits, Mapping[str, object]]:
    """Classes by split where those in the pairs of a fold are the test, and where they come from."""
    if not data.pairs:
        raise InputError(f"--fold {fold}: there are no pairs that would have folds; give --pairs FILE too")
    if files is not None:
        raise InputError(f"--splits {files} with --fold {fold}, which says what is held out; give one of them")
    labels = {sample.key: sample.label for sample in data.samples}
    held, rule = pairing.held_out(data.pairs, labels, fold), rule or OTHERS_RULE
    if pairing.TEST in splitting.parse_rule(rule):
        raise InputError(
            f"--rule {rule} with --fold {fold}: the fold is the split {pairing.TEST!r}; name the others alone"
        )
    episodic = set(labels.values()) - data.unsplit
    chosen = {**splitting.by_rule(rule, sorted(episodic - held), seed=seed), pairing.TEST: sorted(episodic & held)}
    splitting.check(chosen, sorted(episodic), f"fold {fold}")
    return chosen, {"splits": "pairs", "fold": fold, "rule": rule, "seed": seed}


def _refuse_others(root: Path, planes: Sequence[str]) -> None:
    """Tars do not say whose features they hold, so that an index made of them alone would take these for images; nor what pairs
    there are of their images. Modalities that the index has and nobody names would be lost."""
    try:
        known = Index.without_shards(root)
    except InputError:
        return
    if pairing.are_in(known):
        raise InputError(f"{root}: holds pairs, of which tars say nothing; run metashard pack again")
    if lost := [name for name in known.modalities[1:] if name not in planes]:
        raise InputError(f"{root}: holds {lost[0]} too; give --modalities {','.join(known.modalities)}")
    if known.encoder:
        raise InputError(f"{root}: holds features, whose index metashard embed makes; run that again")


def _tars(given: Sequence[str | Path]) -> list[Path]:
    paths: list[Path] = []
    for item in given:
        if "://" in str(item):
            raise InputError(f"{item}: only local files can be indexed; copy or mount the store")
        path = Path(item).absolute()
        if path.is_dir():
            paths += sorted(path.glob("*.tar"))
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"{path}: no such tar")
    if not paths:
        raise InputError(f"no tars in {', '.join(map(str, given)) or 'an empty list'}; give tars or a folder of them")
    return sorted(set(paths))


def _pack_shard(dest: Path, name: str, samples: Sequence[Sample], form: Mapping, planes: Sequence[str]) -> None:
    if fragments.current(dest, name, CLASS_FIELD, planes) is not None:
        return
    packing.write_shard(dest / name, samples, **form)
    if found := fragments.faults(dest, name, CLASS_FIELD, planes):
        raise InputError(found[0])
