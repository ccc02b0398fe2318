"""Reads Omniglot as its authors publish it: two zips, which are one split, with that of Vinyals et al. beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from pipeline.data.importers.folder import read_zip, sample, zip_names
from pipeline.data.source import Source, keys_of
from pipeline.errors import InputError

ZIPS = ("images_background.zip", "images_evaluation.zip")
SPLITS = ("train", "val", "test")
TURNS = ("rot000", "rot090", "rot180", "rot270")


def omniglot(path: str | Path, *, is_lakes: bool = False) -> Source:
    """1,623 characters of 20 drawings each (Lake et al., Science 2015); class names are `Alphabet/characterNN`.

    Splits come from splits/vinyals_{train,val,test}.txt, whose lines name a character and a quarter turn. The four
    turns of a character are always in one split, so splits are of characters, and making classes of the turns is the
    sampler's part. Without these files the splits stay empty. With `is_lakes` they are Lake's own, of whole alphabets: the 30
    of the background set are the split "train", the 20 of the evaluation set "test"; nothing is kept for validation.
    Raises `InputError` for absent or damaged files.
    """
    path = Path(path)
    files: list[tuple[str, Path, str]] = []
    for name in ZIPS:
        if not (path / name).is_file():
            raise InputError(f"{path}: {name} is absent; layout omniglot wants the two official zips in one folder")
        files += [(_relative(entry, path / name), path / name, entry) for entry in _drawings(path / name)]
    files.sort()
    samples = [
        sample(key, str(PurePosixPath(shown).parent), partial(read_zip, str(zipped), entry), shown)
        for (shown, zipped, entry), key in zip(files, keys_of([shown for shown, _, _ in files]), strict=True)
    ]
    return Source("omniglot", samples, _lakes(files) if is_lakes else _splits(path / "splits"))


def _lakes(files: Sequence[tuple[str, Path, str]]) -> Mapping[str, Sequence[str]]:
    """The characters of each zip."""
    home = {str(PurePosixPath(shown).parent): zipped.name for shown, zipped, _ in files}
    return {
        split: [name for name, zipped in home.items() if zipped == wanted]
        for split, wanted in zip(("train", "test"), ZIPS, strict=True)
    }


def _drawings(path: Path) -> list[str]:
    return [name for name in zip_names(path) if name.endswith(".png") and not name.startswith("__MACOSX/")]


def _relative(entry: str, path: Path) -> str:
    parts = entry.split("/")
    if len(parts) != 4:
        raise InputError(f"{path}: {entry!r} is not {path.stem}/ALPHABET/CHARACTER/DRAWING.png; get the official zip")
    return "/".join(parts[1:])


def _splits(folder: Path) -> Mapping[str, Sequence[str]]:
    paths = {split: folder / f"vinyals_{split}.txt" for split in SPLITS}
    if not any(path.exists() for path in paths.values()):
        return {}
    home: dict[str, dict[str, str]] = {}
    for split, path in paths.items():
        if not path.is_file():
            raise InputError(f"{path} is absent though others of the split are there; bring it back or give --splits")
        for line in path.read_text(encoding="utf-8").split():
            name, _, turn = line.rpartition("/")
            if turn not in TURNS or name.count("/") != 1:
                raise InputError(f"{path}: {line!r} is not ALPHABET/CHARACTER/rotNNN; get the file again")
            if turn in home.setdefault(name, {}):
                raise InputError(f"{path}: {line!r} is listed twice; a class belongs to one split")
            home[name][turn] = split
    for name, turns in home.items():
        if len(turns) != len(TURNS) or len(set(turns.values())) != 1:
            raise InputError(f"{folder}: the four turns of {name} are not in one split but in {turns}; get it again")
    return {split: [name for name, turns in home.items() if turns["rot000"] == split] for split in SPLITS}
