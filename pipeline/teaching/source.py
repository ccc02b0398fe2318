"""A learner as it lies somewhere, with what must be known to build it where its data are not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from pipeline.config import parse
from pipeline.data.outline import Outline
from pipeline.errors import InputError
from pipeline.schema.run import RunConfig
from pipeline.teaching.assembled import Assembled, assembled

FORMAT = 1


class Source(NamedTuple):
    """Config, the form of the data, and values of a learner; `told` says of which place and meta-step they are."""

    config: RunConfig
    data: Outline
    values: Mapping[str, Tensor]
    told: dict[str, Any]

    def assembled(self) -> Assembled:
        """The learner.

        Raises:
            InputError: it cannot be built of these values.
        """
        return assembled(
            self.config, self.data, self.values, f"{self.told['from']} holds no weights of its own learner"
        )


def own_learner(maker: str) -> InputError:
    """What is said of a learner that does not follow from its config."""
    return InputError(
        f"make_learner = {maker}: a model that others use builds its learner from the config alone; such a learner can be "
        "trained and evaluated, and neither registered nor adapted from the command line"
    )


def about(config: RunConfig, told: Outline, weights: bytes, *, step: int) -> dict[str, Any]:
    """What `of_files` needs beside the weights, as JSON values; where the run was tracked is nobody's business."""
    plain = config.model_dump(mode="json", exclude={"tracking", "mirror"})
    sha256 = hashlib.sha256(weights).hexdigest()
    return {"format": FORMAT, "step": step, "sha256": sha256, "data": told._asdict(), "config": plain}


def of_files(about: Path, weights: Path) -> Source:
    """The learner of a description and its weights, as they lie in MLflow.

    Raises:
        InputError: they are damaged, of another format, or do not belong together.
    """
    try:
        said, content = json.loads(about.read_text()), weights.read_bytes()
        number, sha256, step, told = said["format"], said["sha256"], said["step"], Outline(**said["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{about}: is no model's description ({error}); have the model made again") from error
    if number != FORMAT:
        raise InputError(f"{about}: format {number!r}, this version reads {FORMAT}; use the version that wrote it")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{weights}: is not what was written (sha256 differs); have the model made again")
    config = parse(said["config"], str(about))
    try:
        values = load_tensors(content)
    except SafetensorError as error:
        raise InputError(f"{weights}: no safetensors ({error}); have the model made again") from error
    return Source(config, told, values, {"from": str(weights), "step": step, "sha256": sha256})
