"""A data set of a run as MLflow knows it: an input of the run, with its hash, where it lies, and what it is used for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.data.root import Url, root_of

DIGEST = 32
"""Characters of a hash that MLflow has room for; the whole is in the data set's profile."""


def ship(client: Any, run_id: str, name: str, values: Mapping[str, Any]) -> None:
    """Tell MLflow of a data set, by what `Spool.data` was told; a second time changes nothing. Raises whatever MLflow raises."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind, source = _source(values["source"])
    told = Dataset(
        name=name,
        digest=values["digest"][:DIGEST],
        source_type=kind,
        source=json.dumps(source),
        schema=_schema(**values["images"]),
        profile=json.dumps(values["profile"]),
    )
    client.log_inputs(run_id, [DatasetInput(told, [InputTag("mlflow.data.context", values["context"])])])


def _source(root: str) -> tuple[str, dict[str, str]]:
    """MLflow's name for where it lies, and the place."""
    place = root_of(root)
    if not isinstance(place, Url):
        return "local", {"uri": str(place)}
    kind = "http" if place.scheme in ("http", "https") else place.scheme
    return kind, {"url" if kind == "http" else "uri": str(place)}


def _schema(dtype: str, shape: list[int]) -> str:
    """Images of one type and form, with a class for each."""
    import numpy as np
    from mlflow.types import Schema, TensorSpec

    images = Schema([TensorSpec(np.dtype(dtype), (-1, *shape), "image")])
    classes = Schema([TensorSpec(np.dtype("int64"), (-1,), "class")])
    told = {"features": images.to_json(), "targets": classes.to_json()}
    return json.dumps({"mlflow_tensorspec": told})
