"""What a file of configs/cluster says: the target of a submission, checked before anything is sent."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

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
    gpus: NonNegativeInt = 0
    """GPUs of each node; the first node has the first of this machine, and so on."""
    start_s: PositiveInt = 120
    """How long the first node may take to answer."""


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


Line = Annotated[str, Field(pattern=r"^[^\r\n]*$")]
"""Text that stands in one line of a script."""
Option = Annotated[str, Field(pattern=r"^--[a-z][^\r\n]*$")]


class SlurmSpec(Spec):
    """A Slurm cluster: one job, Ray on each of its nodes. The folders of submissions must be seen by all nodes."""

    kind: Literal["slurm"]
    nodes: PositiveInt = 1
    cpus: PositiveInt = 1
    """Of each node, as are GPUs and memory."""
    gpus: NonNegativeInt = 0
    gpu_type: Line = ""
    memory: Annotated[str, Field(pattern=r"^([0-9]+[KMGT]?)?$")] = ""
    """As 64G; empty: what the partition gives."""
    time: Annotated[str, Field(pattern=r"^([0-9]+|([0-9]+-)?[0-9]{1,2}(:[0-9]{2}){1,2}|[0-9]+-[0-9]{1,2})$")] = (
        "1-00:00:00"
    )
    """Time limit as Slurm writes it; `grace_s` before it the job saves, leaves and is queued again."""
    partition: Line = ""
    account: Line = ""
    qos: Line = ""
    options: tuple[Option, ...] = ()
    """More options of sbatch, as --constraint=a100."""
    setup: tuple[Line, ...] = ()
    """Shell lines that the job runs first, as `module load cuda`; all its nodes inherit what they set."""
    bin: Line = ""
    """Folder of metashard, ray and python; empty: they are on the PATH once `setup` has run."""
    working_dir: Path = Path(".")
    """Where the command runs, on all nodes."""
    temp_dir: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/-]{0,20}$")] = "/tmp"
    """A node's own disk for Ray's sockets (their path must be short), logs and spilled objects."""
    interface: Line = ""
    """Network interface that the nodes speak over, as ib0; empty: the one that Slurm itself uses."""
    port: NonNegativeInt = 0
    """Of Ray on the first node; 0: a free one, so that jobs can share a node."""
    start_s: PositiveInt = 300
    """How long the nodes may take to join."""
    requeues: NonNegativeInt = 100
    """How often a job that saved and left is queued again: one whose `grace_s` is as long as its `time` would never end."""


Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$")]
Name = Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$")]


class Toleration(BaseModel):
    """A taint that pods may stand on, as that of spot nodes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class Pods(BaseModel):
    """What each pod of a group gets, and which nodes it may stand on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: PositiveInt = 2
    memory: Quantity = "8Gi"
    gpus: NonNegativeInt = 0
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()


class Workers(Pods):
    """The pods that train, from `min` to `max` of them."""

    min: NonNegativeInt = 1
    max: PositiveInt = 1

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is larger than max = {self.max}; raise the one or lower the other")
        return self


class Volume(BaseModel):
    """A PersistentVolumeClaim that is there, and where pods see it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: Annotated[Name, Field(min_length=1)]
    path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/-]+$")]
    read_only: bool = False


class KubeRaySpec(Spec):
    """A Kubernetes cluster with the KubeRay operator: one RayJob."""

    kind: Literal["kuberay"]
    image: Line
    """Has metashard and this version of Ray, as cluster/Dockerfile makes it."""
    ray: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")] = "2.60.0"
    pull_secret: Name = ""
    namespace: Name = "default"
    context: Line = ""
    """Of the kubeconfig; empty: its current one."""
    service_account: Name = ""
    """Gives pods access to an object store (IRSA, workload identity)."""
    token_secret: Name = ""
    """Secret with the key auth_token; empty: KubeRay makes one for the job."""
    env_secret: Name = ""
    """Secret whose keys are variables of the job, as the credentials of an object store."""
    head: Pods = Pods()
    workers: Workers = Workers()
    volumes: tuple[Volume, ...] = ()
    """Packed data, and where the head writes runs; every pod mounts them all."""
    cache: Quantity = "50Gi"
    """Limit of a pod's disk for /cache and /tmp each."""
    start_s: PositiveInt = 1800
    """How long the pods may take to come."""
    deadline_s: NonNegativeInt = 0
    """How long the whole job may take; 0: no limit."""
    retries: NonNegativeInt = 3
    """How often KubeRay starts a failed or drained job again, which then goes on from its checkpoint."""
    ttl_s: NonNegativeInt = 3600
    """How long a finished job and its log are kept."""


AnySpec = Annotated[LocalSpec | RaySpec | SlurmSpec | KubeRaySpec, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[AnySpec] = TypeAdapter(AnySpec)
KINDS = {"local": LocalSpec, "ray": RaySpec, "slurm": SlurmSpec, "kuberay": KubeRaySpec}


def load(path: Path) -> AnySpec:
    """Read a cluster file.

    Raises:
        SubmitError: it cannot be read, names an unknown target or key, or holds a wrong value or a secret.
    """
    try:
        tree = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise SubmitError(f"--cluster {path}: {error.strerror}; name a file, as configs/cluster/local.yaml") from error
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
        if part.isdigit():
            continue
        annotation = model.model_fields[part].annotation
        inner = next(iter(get_args(annotation)), annotation)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
