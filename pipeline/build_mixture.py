"""From a config to the data sets that its episodes come from, where there are several."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import permutations

from pipeline.build_schedule import compared_by
from pipeline.data.index import Index
from pipeline.data.mixture import seen
from pipeline.data.root import Root
from pipeline.errors import InputError
from pipeline.schema.learner import SupervisedConfig
from pipeline.schema.run import RunConfig


def roots(config: RunConfig) -> list[Root]:
    """Where all data sets of a run are, `data.root` first."""
    return [config.data.root, *(part.root for part in config.data.mixture)]


def weights(config: RunConfig) -> list[float]:
    """What share each of them has in training, not yet divided by their sum."""
    return [config.data.weight, *(part.weight for part in config.data.mixture)]


def indexes(config: RunConfig, first: Index) -> list[Index]:
    """The indexes of all data sets of a run, of which the first is open.

    Raises:
        InputError: a data set cannot be opened, they do not go together, or the config asks for what a mixture has not.
    """
    found = [first, *(Index.open(part.root) for part in config.data.mixture)]
    if len(found) > 1:
        _check_config(config)
        _check_alike(config, found)
    return found


def names(found: Sequence[Index]) -> list[str]:
    """What each of several data sets is called: its name, with its folder where two have the same; without what MLflow and file
    systems do not take."""
    often = Counter(index.name for index in found)
    folders = [str(index.root).rstrip("/").rpartition("/")[2] for index in found]
    labels = [
        index.name if often[index.name] == 1 else f"{index.name}.{folder}"
        for index, folder in zip(found, folders, strict=True)
    ]
    return [re.sub(r"[^\w.-]", "_", label) for label in labels]


def fingerprints(config: RunConfig, first: Index) -> dict[str, str]:
    """The hash of every data set of a run, and of the features that schedule its classes, by the tag that tells it."""
    others = [Index.without_shards(part.root).fingerprint for part in config.data.mixture]
    tags = {f"data.mixture.{place}.fingerprint": own for place, own in enumerate(others)}
    if (by := compared_by(config)) is not None:
        tags["data.schedule.fingerprint"] = Index.without_shards(by).fingerprint
    return {"data.fingerprint": first.fingerprint, **tags}


def _check_config(config: RunConfig) -> None:
    if config.data.lanes > 1:
        raise InputError(
            f"data.lanes = {config.data.lanes}: lanes are shares of the shards of one data set, and data.mixture has more; "
            "set data.lanes = 1"
        )
    if isinstance(config.learner, SupervisedConfig):
        raise InputError(
            "learner.kind = supervised learns from a stream of one data set; leave data.mixture out, or choose another learner"
        )
    if config.validation.aside:
        raise InputError("validation.aside = true measures one data set, and data.mixture has more; set it to false")


def _check_alike(config: RunConfig, found: Sequence[Index]) -> None:
    """Refuse data sets whose images one model cannot take, and those of which one's training knows another's test classes."""
    size = config.data.size
    first, *others = found
    for other in others:
        one, two = (
            (size or height, size or width, channels) for height, width, channels in (first.shape(0), other.shape(0))
        )
        if one != two or first.encoder != other.encoder:
            what = "features of other encoders" if one == two else f"{one} and {two} (height, width, channels)"
            raise InputError(
                f"data.mixture: {first.root} and {other.root} hold {what}; pack both with the same --size and --channels"
                f"{', or set data.size' if one[2] == two[2] else ''}"
            )
    for trained, other in permutations(found, 2):
        for split in sorted({config.data.validation, config.data.test} - {config.data.train}):
            if known := seen(trained, config.data.train, other, split):
                raise InputError(
                    f"data.mixture: {trained.root} and {other.root} are the same data set, and class {known[0]!r} of the "
                    f"split {split!r} of the one is trained on in the other; split both alike"
                )
    labels = names(found)
    if twice := [label for label, often in Counter(labels).items() if often > 1]:
        raise InputError(f"data.mixture: two data sets are called {twice[0]!r}; name each folder once")
