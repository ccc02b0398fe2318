"""A learner as a model of its run in MLflow: pyfunc from code, weights in safetensors, registered where that is asked for."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pipeline import spool
from pipeline.errors import InputError

QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_LOGGING_LEVEL": "WARNING"}
"""By which MLflow draws no bar for every file, also of this machine, and says nothing that went as it should."""
ABOUT, WEIGHTS, EXAMPLE = "model.json", "learner.safetensors", "example.json"
"""The files of a model's folder in its run: what it is, its values, a request to it."""
TAG = "metashard.model"
"""Of a model in MLflow the hash of that folder, of a registered version the model."""
KIND = "few-shot learner"
REQUIREMENTS = (
    "mlflow",
    "torch",
    "safetensors",
    "numpy",
    "pandas",
    "pyarrow",
    "pillow",
    "pydantic",
    "pyyaml",
)
"""The packages that serving a model takes; metashard itself travels with it as code."""


class Wanted(NamedTuple):
    """A model that is to be in MLflow: its folder in the run, as which version it is registered, and when that was asked for."""

    path: str
    register: str
    alias: str
    asked_ms: int


def ship(client: Any, run_dir: Path, run_id: str, experiment_id: str, wanted: Wanted) -> None:
    """Make it a model of the run, complete and ready, and register it. A second time changes nothing, and an alias that was given
    to another version meanwhile stays there.

    Raises:
        InputError: the folder is gone or damaged. Also whatever MLflow raises.
    """
    folder = run_dir / wanted.path
    try:
        about = json.loads((folder / ABOUT).read_text())
        digest, step, name = _digest(folder), int(about["step"]), str(about["config"]["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"model {wanted.path}: cannot be read ({error}); metashard register makes it again") from error
    model = _found(client, experiment_id, run_id, digest)
    if model is None:
        params = {key: about["config"][key]["kind"] for key in ("task", "model", "learner")}
        model = client.create_logged_model(
            experiment_id,
            re.sub(r"[/:.%\"']", "-", name),
            source_run_id=run_id,
            tags={TAG: digest},
            params={**params, "step": str(step)},
            model_type=KIND,
        )
    if not str(model.status).endswith("READY"):
        _fill(client, run_dir, run_id, folder, model, step)
    if wanted.register:
        _register(client, run_id, model, wanted)


def _found(client: Any, experiment_id: str, run_id: str, digest: str) -> Any:
    """The model of this run that was made of the same files, if there is one."""
    found = client.search_logged_models([experiment_id], f"tags.`{TAG}` = '{digest}' AND source_run_id = '{run_id}'")
    return found[0] if found else None


def _fill(client: Any, run_dir: Path, run_id: str, folder: Path, model: Any, step: int) -> None:
    """Give a model its files, its place among the run's outputs and its test scores."""
    from mlflow.entities import LoggedModelOutput, Metric

    outputs = client.get_run(run_id).outputs
    known = [each.model_id for each in outputs.model_outputs] if outputs else []
    if model.model_id not in known:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=step)])
    scores = [
        Metric(key, float(value), record["t"], step, model_id=model.model_id)
        for _, record in spool.records(run_dir)
        if record["kind"] == "metrics" and record["step"] == step
        for key, value in record["values"].items()
        if key.startswith("test/")
    ]
    if scores:
        client.log_batch(run_id, metrics=scores, synchronous=True)
    with TemporaryDirectory(prefix="metashard-model-") as place:
        package(folder, Path(place, "model"), model_id=model.model_id, run_id=run_id)
        client.log_model_artifacts(model.model_id, str(Path(place, "model")))
    client.finalize_logged_model(model.model_id, "READY")


def quieten() -> None:
    """`QUIET`, unless the environment says otherwise; before MLflow is imported."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)


def package(folder: Path, out: Path, *, model_id: str | None, run_id: str | None) -> None:
    """Write a complete MLflow model: code, JSON and safetensors, nothing pickled, nothing that it needs elsewhere."""
    quieten()
    from mlflow import pyfunc
    from mlflow.models import Model

    example = json.loads((folder / EXAMPLE).read_text())
    with warnings.catch_warnings():
        # MLflow's advice and what it asks of other packages is nothing that a user could change.
        warnings.simplefilter("ignore")
        pyfunc.save_model(
            str(out),
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"about": str(folder / ABOUT), "weights": str(folder / WEIGHTS)},
            code_paths=[str(Path(__file__).parent)],
            signature=_signature(example),
            input_example=example,
            pip_requirements=_requirements(folder),
            mlflow_model=Model(model_id=model_id, run_id=run_id),
        )


def _signature(example: dict[str, Any]) -> Any:
    """An episode a row: images in base64 (of several modalities a list each), names of classes, masks or boxes where the task has
    them; what `servable.Answer` says."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text, number = Array(DataType.string), Array(DataType.double)
    images = text if isinstance(example["support"][0], str) else Array(text)
    inputs, told = {"support": images, "labels": text, "queries": images}, {"classes": text}
    if "masks" in example:
        inputs, told = inputs | {"masks": text}, told | {"masks": text}
    elif "boxes" in example:
        inputs, told = inputs | {"boxes": Array(Array(number))}, told | {"boxes": Array(Array(number))}
    else:
        told |= {"labels": text, "probabilities": number, "scores": Array(number)}
    return ModelSignature(
        Schema([ColSpec(kind, name) for name, kind in inputs.items()]),
        Schema([ColSpec(kind, name) for name, kind in told.items()]),
        ParamSchema([ParamSpec("mode", DataType.string, "inductive")]),
    )


def _requirements(folder: Path) -> list[str]:
    """The versions that are installed here; of a build for one kind of machine the version that there is for all."""
    kind = json.loads((folder / ABOUT).read_text())["config"]["model"]["kind"]
    names = [*REQUIREMENTS, *(["timm"] if kind == "timm" else [])]
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]


def _register(client: Any, run_id: str, model: Any, wanted: Wanted) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(wanted.register)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.search_model_versions(f"name = '{wanted.register}'")
    version = next((each for each in known if each.tags.get(TAG) == model.model_id), None)
    if version is None:
        # Not models:/ID: that would be looked up in whatever store the process was last set to.
        place, tags = model.artifact_location, {TAG: model.model_id}
        version = client.create_model_version(
            wanted.register, place, run_id, tags=tags, await_creation_for=0, model_id=model.model_id
        )
    if not wanted.alias:
        return
    mark = f"metashard.alias.{wanted.alias}"
    if int(version.tags.get(mark, 0)) < wanted.asked_ms:
        client.set_registered_model_alias(wanted.register, wanted.alias, version.version)
        client.set_model_version_tag(wanted.register, version.version, mark, str(wanted.asked_ms))


def _digest(folder: Path) -> str:
    """A hash of the folder's files."""
    digest = hashlib.sha256()
    for name in (ABOUT, WEIGHTS, EXAMPLE):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
