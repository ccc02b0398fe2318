"""The verb `export`: an adapted model as ONNX or a program of torch.export, tried beside the model before it is kept."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.data.files import make_folder
from pipeline.errors import InputError, RunFailed
from pipeline.teaching import adapted, portable
from pipeline.teaching.portable import TOLERANCE

NEEDED = ("onnx", "onnxscript", "onnxruntime")


class Exported(NamedTuple):
    """A file that was written, and by how much it differs from the model, as a share of the largest value."""

    path: Path
    difference: float


def export(place: Path, *, onnx: Path | None = None, program: Path | None = None) -> list[Exported]:
    """Write the model of a file as ONNX and as a program of torch.export, each of which is run beside the model first.

    Raises:
        InputError: it is no model, or what must be installed is not.
        RunFailed: it cannot be exported, or the file would say something else than the model.
    """
    wanted = [path for path in (onnx, program) if path is not None]
    if not wanted:
        raise InputError("nothing is to be written; give --onnx FILE, --torch FILE or --mlflow FOLDER")
    if onnx is not None and (missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]):
        raise InputError(f"--onnx takes {', '.join(missing)}; pip install 'metashard[export]'")
    _check(place, wanted)
    model = adapted.load(place)
    traced, found = portable.traced(model), []
    if onnx is not None:
        with _kept(onnx) as partial:
            portable.save_onnx(traced, model, partial)
            found.append(Exported(onnx, _tried(model, portable.run_onnx(partial), onnx)))
    if program is not None:
        with _kept(program) as partial:
            portable.save_torch(traced, model, partial)
            found.append(Exported(program, _tried(model, portable.run_torch(partial), program)))
    return found


def _check(place: Path, wanted: list[Path]) -> None:
    paths = [path.resolve() for path in (place, *wanted)]
    if len(set(paths)) < len(paths):
        raise InputError(f"{wanted[-1]}: two files would be one; choose another name")
    for path in wanted:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file in it")
        make_folder(path.parent)


@contextmanager
def _kept(path: Path) -> Iterator[Path]:
    """A file beside it that takes its place if all goes well, and else is gone."""
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _tried(model: adapted.Adapted, run: portable.Run, path: Path) -> float:
    most = TOLERANCE[model.support.inputs.dtype]
    found = portable.difference(model, run)
    if not found <= most:
        raise RunFailed(
            f"{path}: would differ from the model by {found:.1e} of the largest value, where {most:.0e} is allowed, and is not "
            "written; use the model's own file with metashard predict"
        )
    return found


def text(found: list[Exported]) -> str:
    """What to tell a person."""
    return "\n".join(f"{each.path}  differs by {each.difference:.1e} of the largest value" for each in found)
