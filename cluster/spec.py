"""What a file of configs/cluster says: the target of a submission, checked before anything is sent."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from cluster.errors import SubmitError
from cluster.security import check_plain


def _plain(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        check_plain(name, value)
    return values


Environment = Annotated[dict[str, str], AfterValidator(_plain)]
"""Variables of the job. They are shown by every target, so that no secret may be among them."""


class Spec(BaseModel):
    """What all targets know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    env: Environment = {}
    grace_s: PositiveInt = 120
    """How long a job that was asked to stop may take to save and leave, before it is killed."""
    mlflow: str = ""
    """URI of the MLflow server, as seen from the cluster; empty: as the command says."""
    insecure: bool = False
    """Plain http to another machine is allowed."""


class LocalSpec(Spec):
    """This machine, several Ray nodes as processes."""

    kind: Literal["local"]
    nodes: PositiveInt = 2
    cpus: PositiveInt = 1
    """CPUs that each node says it has."""
    start_s: PositiveInt = 120
    """How long the nodes may take to come."""


class Needs(BaseModel):
    """What the cluster must have in all, for the smallest number of workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: PositiveFloat = 1
    gpus: Annotated[float, Field(ge=0)] = 0


class RaySpec(Spec):
    """An existing Ray cluster, through its Jobs API."""

    kind: Literal["ray"]
    address: str = "http://127.0.0.1:8265"
    working_dir: Path = Path(".")
    """The folder that is sent; .gitignore and .rayignore in it say what stays."""
    needs: Needs = Needs()


AnySpec = Annotated[LocalSpec | RaySpec, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[AnySpec] = TypeAdapter(AnySpec)
KINDS = {"local": LocalSpec, "ray": RaySpec}


def load(path: Path) -> AnySpec:
    """Read a cluster file.

    Raises:
        SubmitError: it cannot be read, names an unknown target or key, or holds a wrong value or a secret.
    """
    try:
        tree = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise SubmitError(
            f"--cluster {path}: {error.strerror}; name a file, as configs/cluster/local.yaml"
        ) from error
    except yaml.YAMLError as error:
        raise SubmitError(f"--cluster {path} is not YAML: {' '.join(str(error).split())}") from error
    return parse(tree, str(path))


def parse(tree: Any, where: str) -> AnySpec:
    """A spec from plain values; `where` names their origin in errors."""
    if not isinstance(tree, dict):
        raise SubmitError(f"{where} holds {type(tree).__name__}, not keys with values")
    if tree.get("kind") not in KINDS:
        raise SubmitError(f"{where}: kind = {tree.get('kind')!r} is no target; there are {', '.join(KINDS)}")
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        faults = [_sentence(fault, KINDS[tree["kind"]]) for fault in error.errors(include_url=False)]
        raise SubmitError(f"{where}: {'; '.join(faults)}") from error


def _sentence(fault: Any, model: type[BaseModel]) -> str:
    path = [str(part) for part in fault["loc"][1:]]
    where = ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = _keys(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        return f"unknown key {where!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}")
    if fault["type"] == "value_error":
        return f"{where}: {fault['ctx']['error']}"
    return f"{where} = {fault['input']!r}: {re.sub('^Input ', '', fault['msg'])}"


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        inner = model.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
