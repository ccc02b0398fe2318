"""An adapted model as one module from images to scores, which other programs can run; and as torch.export or ONNX tells it."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from pipeline.errors import InputError, RunFailed
from pipeline.tasks.detection import candidates
from pipeline.teaching.adapted import FORMAT, Adapted

KEY = "metashard"
"""Of a file's metadata: what it is, as JSON."""
OUTPUTS = {
    "classification": ("scores", "probabilities", "likeness"),
    "verification": ("scores", "probabilities", "likeness"),
    "segmentation": ("scores",),
    "detection": ("scores", "boxes"),
}
"""What it says, by task: scores as the task has them; calibrated probabilities (samples, ways) and how like it is to anything
known (samples,), to be compared with the threshold; boxes (samples, 100, 6), as `candidates` has them."""
SURER = 1e-3
"""Score by which a box must be surer than others to be told before them by any program."""
ODD = 0.01
"""Share of boxes that may be others: of two boxes that are nearly alike a rounding decides whether both are told."""
TRIED = (1, 2, 5, 65)
"""Numbers of random images that an exported model is tried with, beside the support."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""By how much it may differ, as a share of the largest value: kernels sum in other orders."""

Run = Callable[[Tensor], list[Tensor]]
"""Images -> outputs in their order."""


@final
class Portable(nn.Module):
    """Images (samples, channels, height, width) in 0…1, as large as the learner sees them, to what `outputs` names. The support
    is in it: fast weights, prototypes or whatever the learner made of it are constants."""

    def __init__(self, model: Adapted):
        super().__init__()
        support, learner = model.support, model.learner
        # Its parameters are then known to be such.
        self.learner = learner.learner.requires_grad_(False)
        self.temperature, self.inverts = model.calibration.temperature, learner.inputs.reader.invert
        self._ask = learner.bare(support.batch, support.ways)
        self._outputs = outputs(model)
        self._embed = learner.bare_embedder(support.inputs) if "likeness" in self._outputs else None
        self.known = nn.Buffer(model.known) if self._embed else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        seen = 1 - images if self.inverts else images
        scores = self._ask(seen)
        if "boxes" in self._outputs:
            return scores, candidates(scores)
        if self._embed is None or self.known is None:
            return (scores,)
        return scores, (scores / self.temperature).softmax(1), (self._embed(seen) @ self.known.T).amax(1)


def outputs(model: Adapted) -> tuple[str, ...]:
    """What an exported model says, in this order."""
    return OUTPUTS[model.learner.config.task.kind]


def about(model: Adapted) -> dict[str, Any]:
    """What must be known to use it, as JSON values."""
    height, width, channels = model.learner.inputs.shape
    return {
        "format": FORMAT,
        "task": model.learner.config.task.kind,
        "learner": model.learner.config.learner.kind,
        "classes": list(model.support.classes),
        "temperature": model.calibration.temperature,
        "threshold": model.calibration.threshold,
        **({"score_thresholds": model.sure} if "boxes" in outputs(model) else {}),
        "size": [height, width, channels],
        "outputs": list(outputs(model)),
        "origin": model.origin,
    }


def traced(model: Adapted) -> torch.export.ExportedProgram:
    """The model as a program for any number of images.

    Raises:
        InputError: it takes more than images.
        RunFailed: torch cannot trace it.
    """
    if len(needed := model.learner.inputs.reader.modalities) > 1:
        raise InputError(
            f"this learner takes {', '.join(needed)} of every sample, and an exported model takes images; use metashard export "
            "CHECKPOINT --mlflow DIR, which takes all of them"
        )
    samples = torch.export.Dim("samples")
    # One is a size of its own to the tracer.
    some = torch.zeros(3, *model.support.inputs.shape[1:]).to(model.support.inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(Portable(model).eval(), (some,), dynamic_shapes=({0: samples},), strict=False)
    except Exception as error:  # the tracer raises whatever it stumbles over
        raise RunFailed(
            f"{_name(model)} cannot be traced by torch.export ({reason(error)}); use the model's own file with metashard "
            "predict, or metashard export CHECKPOINT --mlflow DIR"
        ) from error


def save_torch(program: torch.export.ExportedProgram, model: Adapted, path: Path) -> None:
    """Write a program as torch.export.load reads it; what must be known to use it is its extra file `metashard`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Given as a stream, since the format is not to be told by the file's name.
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={KEY: json.dumps(about(model))})
    path.write_bytes(buffer.getvalue())


def save_onnx(program: torch.export.ExportedProgram, model: Adapted, path: Path) -> None:
    """Write a program as ONNX, in one file.

    Raises:
        RunFailed: ONNX has no operation for something in it.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, input_names=["images"], output_names=outputs(model), dynamo=True, verbose=False
            )
            assert made is not None
            made.model.metadata_props[KEY] = json.dumps(about(model))
            made.save(str(path), external_data=False)
    except Exception as error:  # the converter raises whatever it stumbles over
        raise RunFailed(
            f"{_name(model)} cannot be converted to ONNX ({reason(error)}); use --torch, or metashard export "
            "CHECKPOINT --mlflow DIR"
        ) from error


def run_torch(path: Path) -> Run:
    """A written program, read again."""
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")
        module = torch.export.load(io.BytesIO(file.read())).module()
    return lambda images: list(module(images))


def run_onnx(path: Path) -> Run:
    """A written ONNX file in onnxruntime, on the CPU."""
    import onnxruntime  # an extra

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(value) for value in session.run(None, {"images": images.cpu().numpy()})]


@torch.no_grad()
def difference(model: Adapted, run: Run) -> float:
    """The largest difference between what the model says and what `run` does, of the support and of random images at several
    numbers of them, as a share of the largest value."""
    known = model.support.inputs
    generator = torch.Generator().manual_seed(0)
    random = [torch.rand(count, *known.shape[1:], generator=generator).to(known) for count in TRIED]
    worst = 0.0
    for seen in [known, *random]:
        images = 1 - seen if model.learner.inputs.reader.invert else seen
        given = run(images)
        for name, own, other in zip(outputs(model), _said(model, seen, given[0]), given, strict=True):
            worst = max(worst, _gap(own, other.cpu().double(), boxes=name == "boxes"))
    return worst


def _gap(own: Tensor, other: Tensor, *, boxes: bool) -> float:
    """The largest difference as a share of the largest value; of boxes that of sure ones to the nearest, but for odd ones."""
    if own.shape != other.shape or not other.isfinite().all():
        return torch.inf
    if not boxes:
        return ((own - other).abs().max() / own.abs().max().clamp(min=1)).item()
    apart = (own[:, :, None] - other[:, None]).abs().amax(-1)
    nearest = torch.cat([apart.amin(2)[_sure(own)], apart.amin(1)[_sure(other)]])
    return nearest.quantile(1 - ODD).item() if len(nearest) else 0.0


def _sure(boxes: Tensor) -> Tensor:
    """Which boxes (samples, boxes) are surer than the least sure of their image: of those as sure as that any may be told."""
    scores = boxes[..., 4]
    least = torch.where(scores > 0, scores, torch.inf).amin(1, keepdim=True)
    return scores > least + SURER


def _said(model: Adapted, inputs: Tensor, given: Tensor) -> list[Tensor]:
    """What the model says. Boxes are those of the `given` scores: where many cells are as sure as each other a rounding of scores
    makes other ones."""
    scores = model.scores(inputs)
    if "boxes" in outputs(model):
        return [scores, candidates(given.cpu()).double()]
    if "likeness" not in outputs(model):
        return [scores]
    return [scores, (scores / model.calibration.temperature).softmax(1), model.likeness(inputs)[0]]


def reason(error: BaseException) -> str:
    """What an exporter says at the bottom of its explanations, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _name(model: Adapted) -> str:
    config = model.learner.config
    return f"learner.kind = {config.learner.kind} with model.kind = {config.model.kind}"
