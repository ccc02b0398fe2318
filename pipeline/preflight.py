"""Before a run on several nodes: whether all of them have the same versions and the same data, and where results will go."""

from __future__ import annotations

import importlib.metadata
import platform
import secrets
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table

from pipeline import mirror
from pipeline.build_mixture import roots
from pipeline.data.index import Index
from pipeline.data.root import Root
from pipeline.errors import InputError
from pipeline.schema.run import RunConfig

Said = TypeVar("Said")
PACKAGES = ("torch", "ray", "metashard")
_LOOK_LIMIT_S = 120
_MLFLOW_LIMIT_S = 3


class Report(NamedTuple):
    """What a node says: its versions, the hash of the data it sees or why it sees none."""

    node: str
    versions: Mapping[str, str]
    data: str
    data_fault: str = ""


class Line(NamedTuple):
    """A row of the table: what was looked at, what was found, and what to do where it does not do."""

    what: str
    found: str
    remedy: str = ""
    is_warning: bool = False


def look(node: str, roots: Sequence[Root]) -> Report:
    """What is seen here."""
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
    data, data_fault = "", ""
    try:
        data = "+".join(Index.open(root).fingerprint for root in roots)
    except InputError as error:
        data_fault = str(error)
    return Report(node, versions, data, data_fault)


def lines(reports: Sequence[Report], config: RunConfig) -> list[Line]:
    """The table from what the nodes say."""
    found = []
    for name in reports[0].versions:
        by_version: dict[str, list[str]] = {}
        for report in reports:
            by_version.setdefault(report.versions[name], []).append(report.node)
        told = "; ".join(f"{version} on {_nodes(where)}" for version, where in by_version.items())
        told = told if len(by_version) > 1 else f"{next(iter(by_version))} everywhere"
        found.append(Line(name, told, f"install the same {name} on all nodes" if len(by_version) > 1 else ""))
    blind = [report for report in reports if report.data_fault]
    where = " and ".join(str(root) for root in roots(config))
    hashes = {report.data for report in reports if report.data}
    data = Line("data", f"{where}: hash {', '.join(sorted(map(_short, hashes))) or 'unknown'}")
    if blind:
        data = data._replace(
            remedy=f"data.root must be seen by every node, and {_nodes([r.node for r in blind])} say: {blind[0].data_fault}"
        )
    elif len(hashes) > 1:
        data = data._replace(remedy="nodes see different data under this name: copy the same to all")
    return [*found, data]


def _short(hashes: str) -> str:
    return "+".join(name[:12] for name in hashes.split("+"))


def _nodes(names: Sequence[str]) -> str:
    """Two of them by name, the others by number."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}"


def storage(config: RunConfig) -> list[Line]:
    """Whether results can be kept where they are to go: here, through which the nodes reach them, and in the mirror."""
    mark = config.runs / f".preflight-{secrets.token_hex(4)}"
    try:
        config.runs.mkdir(parents=True, exist_ok=True)
        mark.touch()
        mark.unlink()
    except OSError as error:
        return [Line("storage", f"{config.runs}: {error.strerror}", "name a folder in runs that this node can write")]
    found = [Line("storage", f"{config.runs.absolute()} of this node, through which the others reach it")]
    if config.mirror is None:
        return found
    try:
        mirror.check(config.mirror)
    except InputError as error:
        return [*found, Line("mirror", f"{config.mirror}: cannot be used", str(error))]
    return [*found, Line("mirror", f"{config.mirror}: written and read")]


def mlflow(uri: str) -> list[Line]:
    """Whether a server of MLflow answers; one that does not keeps nobody from training."""
    if not uri.startswith(("http://", "https://")):
        return []
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_MLFLOW_LIMIT_S):
            return [Line("MLflow", f"{uri} answers")]
    except OSError as error:
        said = f"training goes on without it; send what it missed with: metashard sync ({error})"
        return [Line("MLflow", f"{uri} does not answer", said, is_warning=True)]


def check(config: RunConfig, uri: str) -> None:
    """Ask every node of the Ray cluster this process is connected to, and print the table; one node has nothing to compare.

    Raises:
        InputError: a line failed, or a node did not answer.
    """
    reports = _everywhere(look, roots(config))
    if len(reports) < 2:
        return
    _judge([Line("nodes", str(len(reports))), *lines(reports, config), *storage(config), *mlflow(uri)])


def shared(folder: Path) -> None:
    """See that every node of the Ray cluster can write into a folder, and that it is the same one everywhere.

    Raises:
        InputError: a node cannot, or what it wrote is not seen here.
    """
    mark = f".preflight-{secrets.token_hex(4)}"
    for node, fault in _everywhere(_marked, folder, mark):
        here = folder / f"{mark}-{node}"
        if fault or not here.exists():
            said = fault or "it wrote there, and this machine sees nothing of it"
            raise InputError(
                f"{folder} cannot be used by the workers: node {node}: {said}; name a folder that all nodes share"
            )
        here.unlink()


def _marked(node: str, folder: Path, mark: str) -> tuple[str, str]:
    """Write a file; the node, and why it could not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{mark}-{node}").touch()
    except OSError as error:
        return node, error.strerror or str(error)
    return node, ""


def _everywhere(function: Callable[..., Said], *given: Any) -> list[Said]:
    """`function(node, *given)` on every node of the Ray cluster this process is connected to.

    Raises:
        InputError: a node did not answer.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) == 1:
        return [function(name, *given) for name in nodes.values()]
    try:
        remote: Any = ray.remote(num_cpus=0, max_retries=0)(function)
        asked = [
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(number, soft=False)).remote(
                f"{name}-{number[:6]}", *given
            )
            for number, name in nodes.items()
        ]
        return ray.get(asked, timeout=_LOOK_LIMIT_S)
    except (GetTimeoutError, RayError) as error:
        raise InputError(f"preflight: a node does not answer ({type(error).__name__}); see `ray status`") from error


def _judge(found: Sequence[Line]) -> None:
    table = Table("preflight", "found", "what to do", box=None, pad_edge=False)
    for line in found:
        mark = "✓" if not line.remedy else "!" if line.is_warning else "✗"
        table.add_row(f"{mark} {line.what}", line.found, line.remedy)
    Console(stderr=True, width=None if sys.stderr.isatty() else 200).print(table)
    if failed := [f"{line.what}: {line.remedy}" for line in found if line.remedy and not line.is_warning]:
        raise InputError(f"preflight: {'; '.join(failed)}; nothing was started")
