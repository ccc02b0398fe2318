"""What a run knows: the data that it was trained on, and those whose values went into it before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline import checkpoint
from pipeline.build_mixture import roots
from pipeline.config import parse
from pipeline.data.index import Index
from pipeline.data.root import Root
from pipeline.errors import InputError
from pipeline.schema.run import RunConfig
from pipeline.start import checkpoint_of


class Trained(NamedTuple):
    """A split of a data set on which a run, called `name`, was trained."""

    name: str
    index: Index
    split: str

    def classes(self) -> set[str]:
        """The names of its classes."""
        return {self.index.class_names[number] for number in self.index.splits.get(self.split, ())}


def trained(config: RunConfig) -> Iterator[Trained]:
    """What a run, the one that it started from, its teacher and the encoder of its features were trained on.

    Raises:
        InputError: one of the data sets cannot be read, or a run has no checkpoint that is whole.
    """
    indexes = [_opened(root, config) for root in roots(config)]
    if config.meta.steps:
        yield from (Trained(config.name, index, config.data.train) for index in indexes)
    origins = {"start": config.start, "teacher": config.teacher and config.teacher.start}
    for index in indexes:
        if index.encoder:
            origins[f"{index.root}: encoder"] = Path(index.manifest["origin"]["encoder"]["from"])
    for key, path in origins.items():
        # A file of weights does not say on what they were trained.
        if path is not None and path.is_dir():
            found = checkpoint_of(path, key)
            yield from trained(parse(dict(checkpoint.load(found).config), str(found)))


def _opened(root: Root, config: RunConfig) -> Index:
    try:
        return Index.without_shards(root)
    except InputError as error:
        raise InputError(
            f"{root}, on which {config.name} was trained, cannot be read, and nobody can say which classes it knows; "
            f"bring it back ({error})"
        ) from error
