"""How a config is read from YAML with overrides, checked, dumped and compared; `schema/` says what may stand in it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.data.root import Root
from pipeline.errors import InputError
from pipeline.faults import one_line, sentence, shown
from pipeline.schema.data import ScheduledConfig
from pipeline.schema.run import RunConfig

Model = TypeVar("Model", bound=BaseModel)


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, put `key.path=value` overrides on top (values are YAML) and check it all.

    Raises:
        InputError: the file, an override or a value is not usable; an unknown key is named with the nearest known one.
    """
    return settled(parse(read(path, overrides), str(path)))


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a YAML file with `key.path=value` overrides on top; nothing of what they mean is checked.

    Raises:
        InputError: the file or an override cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"config {path} cannot be read: {error.strerror}; name a YAML file, as configs/train/…"
        ) from error
    tree = _values(content, f"config {path} is not YAML")
    if not isinstance(tree, dict):
        raise InputError(f"config {path} holds {type(tree).__name__}, not keys with values")
    for override in overrides:
        put(tree, override)
    return tree


def settled(config: RunConfig) -> RunConfig:
    """With every path absolute: workers run in other directories, perhaps on other machines.

    Raises:
        InputError: a path begins with the home of somebody who is not there.
    """
    parts = tuple(part.model_copy(update={"root": _absolute(part.root)}) for part in config.data.mixture)
    data = config.data.model_copy(update={"root": _absolute(config.data.root), "mixture": parts})
    if isinstance(data.schedule, ScheduledConfig) and data.schedule.by is not None:
        schedule = data.schedule.model_copy(update={"by": _absolute(data.schedule.by)})
        data = data.model_copy(update={"schedule": schedule})
    fixed: dict[str, Any] = {"runs": _fixed(config.runs), "data": data}
    if config.start is not None:
        fixed["start"] = _fixed(config.start)
    if config.teacher is not None:
        fixed["teacher"] = config.teacher.model_copy(update={"start": _fixed(config.teacher.start)})
    return config.model_copy(update=fixed)


def _absolute(root: Root) -> Root:
    return _fixed(root) if isinstance(root, Path) else root


def _fixed(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no such user's home; write the path without ~") from error


def parse(tree: dict[str, Any], where: str) -> RunConfig:
    """A config from plain values; `where` names their origin in errors."""
    return checked(RunConfig, tree, where)


def checked(model: type[Model], tree: dict[str, Any], where: str) -> Model:
    """Plain values as a model of the schema; `where` names their origin in errors.

    Raises:
        InputError: a value is not usable, or a key is unknown.
    """
    try:
        _check_text(tree)
        return model.model_validate(tree)
    except InputError:
        raise
    except ValidationError as error:
        sentences = "; ".join(sentence(fault, model) for fault in error.errors(include_url=False))
        raise InputError(one_line(f"{where}: {sentences}")) from error
    except RecursionError as error:
        raise InputError(f"{where}: keys inside keys without end; a config is four deep at most") from error


def _check_text(tree: Any, path: str = "") -> None:
    """Keys are names, and texts fit JSON, file systems and a line of a message."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not isinstance(key, str):
                raise InputError(one_line(f"config key {path}{key!r} is a {type(key).__name__}, not a name"))
            if not key.isprintable():
                raise InputError(f"config key {path}{key!r} holds what cannot be printed; leave it out")
            _check_text(value, f"{path}{key}.")
    elif isinstance(tree, str) and not tree.isprintable():
        raise InputError(f"{path.rstrip('.')} = {shown(tree)} holds what cannot be printed; leave it out")


def dump(config: RunConfig) -> dict[str, Any]:
    """The resolved config as JSON values."""
    return config.model_dump(mode="json")


# What may differ between a run and its resumption: where results are told, and how many do the work.
FREE = ("workers", "tracking", "runs", "mirror", "checkpoint")


def fingerprint(config: RunConfig) -> str:
    """A hash of everything that decides the result of a run."""
    fixed = {key: value for key, value in dump(config).items() if key not in FREE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def without_rates(tree: Any) -> Any:
    """The values with every number that has a fraction as whether it is zero: how large it is changes no computation's size."""
    match tree:
        case dict():
            return {key: without_rates(value) for key, value in tree.items()}
        case list() | tuple():
            return [without_rates(value) for value in tree]
        case float():
            return bool(tree)
        case _:
            return tree


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as `a.b.c`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys outside `FREE` in which two dumped configs differ, as `key: old -> new`."""
    before, after = flatten(old), flatten(new)
    keys = [key for key in sorted(before | after) if key.split(".")[0] not in FREE]
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


class _OnceEach(yaml.SafeLoader):
    """YAML in which a key that stands twice in one place is an error; PyYAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise ValueError(f"key {key.value!r} stands twice, line {key.start_mark.line + 1}; keep one")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _values(text: str | bytes, fault: str) -> Any:
    try:
        return _OnceEach(text).get_single_data()
    except Exception as error:  # PyYAML lets through what its parts stumble over: ValueError for 2020-13-45, KeyError …
        raise InputError(f"{fault}: {one_line(str(error))}") from error


_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def put(tree: dict[str, Any], override: str) -> None:
    """Put the value of `key.path=value` at its place in plain values.

    Raises:
        InputError: it cannot be read, or a key on its path is a value.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {shown(override)} is not key=value, as in meta.steps=500")
    # YAML 1.1 reads 1e-3 as a string; a person means a number.
    number = _EXPONENT.fullmatch(text.strip())
    value = float(text) if number else _values(text, f"override {shown(override)}: the value is not YAML")
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise InputError(f"override {shown(override)}: {part!r} is a value, it has no key {last!r}")
    tree[last] = value
