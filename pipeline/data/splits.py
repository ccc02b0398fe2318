"""Which class belongs to which split: from files of class names, or by a hash of the name."""

from __future__ import annotations

import bisect
import difflib
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import InputError

Splits = Mapping[str, Sequence[str]]


def read_files(folder: Path) -> dict[str, list[str]]:
    """Class names by split from `folder`'s text files: train.txt gives split "train", one name a line.

    Raises `InputError` for an absent folder or one without readable text files. `faults` judges the names.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder; --splits wants one with train.txt, val.txt and test.txt")
    splits = {path.stem: names_of(path) for path in sorted(folder.glob("*.txt"))}
    if not splits:
        raise InputError(f"{folder}: no text files here; --splits wants train.txt, val.txt and test.txt")
    return splits


def by_rule(rule: str, class_names: Sequence[str], *, seed: int) -> dict[str, list[str]]:
    """Split classes by the sha256 of seed and name, as in "train=0.64,val=0.16,test=0.2".

    A class keeps its split whatever other classes there are, so data may grow. Raises `InputError` for a rule that is
    no list of shares adding up to 1, and for a split left empty.
    """
    shares = parse_rule(rule)
    names, bounds = list(shares), list(itertools.accumulate(shares.values()))
    splits: dict[str, list[str]] = {name: [] for name in names}
    for class_name in sorted(class_names):
        place = int.from_bytes(hashlib.sha256(f"{seed}/{class_name}".encode()).digest()[:8], "big") / 2**64
        # The shares' sum may be rounded to just below 1; what lies beyond it belongs to the last split.
        splits[names[min(bisect.bisect_right(bounds, place), len(names) - 1)]].append(class_name)
    for name, members in splits.items():
        if not members:
            raise InputError(
                f"rule {rule!r} with seed {seed} leaves split {name!r} without any of the {len(class_names)} classes; "
                "raise its share, change --seed, or list the classes with --splits"
            )
    return splits


def parse_rule(rule: str) -> dict[str, float]:
    """Shares by split name of a rule as in "train=0.8,test=0.2"."""
    parts = [re.fullmatch(r"\s*([A-Za-z0-9_-]+)\s*=\s*(\d*\.?\d+)\s*", part) for part in rule.split(",")]
    shares = {part[1]: float(part[2]) for part in parts if part}
    if len(shares) != len(parts) or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise InputError(f"rule {rule!r} is no list of shares adding up to 1, such as train=0.64,val=0.16,test=0.2")
    return shares


def faults(splits: Splits, class_names: Sequence[str], where: str) -> list[str]:
    """A line for every empty split, every class listed twice, and every class that the data does not have."""
    found, home, known = [], {}, set(class_names)
    for split, names in splits.items():
        if not names:
            found.append(f"{where}: split {split!r} is empty; list at least one class or leave the split out")
        for name in names:
            if name in home:
                both = f"twice in split {split!r}" if home[name] == split else f"in splits {home[name]!r} and {split!r}"
                found.append(f"{where}: class {name!r} is {both}; a class belongs to one split")
            home[name] = split
            if name not in known:
                near = difflib.get_close_matches(name, class_names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "remove it from the list"
                found.append(f"{where}: split {split!r} lists class {name!r}, which the data has not; {hint}")
    return found


def check(splits: Splits, class_names: Sequence[str], where: str) -> None:
    """Raise `InputError` for the first of `faults`, with the number of the others."""
    if found := faults(splits, class_names, where):
        raise InputError(found[0] + (f" (and {len(found) - 1} more such faults)" if len(found) > 1 else ""))


def names_of(path: Path) -> list[str]:
    """The class names of a text file, one a line. Raises `InputError` if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); one class name a line") from None
    return [line.strip() for line in lines if line.strip()]
