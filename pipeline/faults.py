"""Says in a sentence what is wrong with a config: the key as its writer knows it, the value, the nearest known key."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Annotated, Any

from pydantic import BaseModel

from pipeline.errors import InputError

LONGEST = 200
"""Characters of a value that a sentence shows."""


def sentence(fault: Any, root: type[BaseModel]) -> str:
    """One of pydantic's `ValidationError.errors()` on a model of type `root`."""
    location = [str(part) for part in fault["loc"]]
    key = ".".join(_without_kinds(location, root))
    if fault["type"] == "extra_forbidden":
        known = _known_keys(root)
        if key in known:
            kind = next(part for part in reversed(location[:-1]) if part not in key.split("."))
            return f"{key}: no such key where kind is {kind}"
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        return f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else "")
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] == "union_tag_not_found":
        return f"{key}.kind is missing"
    if fault["type"] == "union_tag_invalid":
        return f"{key}.kind = {fault['ctx']['tag']!r}: input should be one of {fault['ctx']['expected_tags']}"
    if isinstance(error := fault.get("ctx", {}).get("error"), InputError):
        return f"{key}: {error}"  # it says itself what of the value may be shown
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{key} = {shown(fault['input'])}: {message}"


def shown(value: Any) -> str:
    """A value as Python writes it, cut where it gets long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no integer of more than 4,300 digits
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def one_line(text: str) -> str:
    """The text with all white space as single blanks."""
    return " ".join(text.split())


def _without_kinds(location: list[str], root: type[BaseModel]) -> list[str]:
    """Drop the union members that pydantic puts into a location: `learner.gradient.steps` is the user's `learner.steps`."""
    kept: list[str] = []
    models: list[type[BaseModel]] = [root]
    for part in location:
        kinds = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part]
        if kinds and len(models) > 1:
            models = kinds
            continue
        kept.append(part)
        models = [sub for m in models if part in m.model_fields for sub in _models_in(m.model_fields[part].annotation)]
    return kept


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated, tuple):
        return [model for part in typing.get_args(annotation) for model in _models_in(part)]
    return []


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(f"{prefix}{name}")
        for sub in _models_in(field.annotation):
            keys += _known_keys(sub, f"{prefix}{name}.")
    return keys
