"""The schemas of KubeRay's kinds, made strict: a key that they do not know is an error, as it is where they are applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).parents[2] / "shared" / "schemas"
# Kubernetes' own, not part of a kind's schema.
_OUTSIDE = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}


def validator(plural: str) -> Draft202012Validator:
    """Of `rayjobs` or `rayclusters`; skips where the schemas are not there."""
    path = SCHEMAS / f"ray.io_{plural}.yaml"
    if not path.exists():
        pytest.skip(f"{path} is not there: KubeRay's CRDs are not part of this repository")
    definition = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    version = next(each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"] |= _OUTSIDE
    return Draft202012Validator(schema)


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made:
        made["additionalProperties"] = False
    if made.get("x-kubernetes-int-or-string"):
        made = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    return made


def faults(plural: str, document: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator(plural).iter_errors(document)]
