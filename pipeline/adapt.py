"""The verb `adapt`: a model that knows new classes, from a checkpoint and a few labelled images of each."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pipeline import checkpoint, mirror, restore, spool
from pipeline.config import parse
from pipeline.data.files import make_folder
from pipeline.data.index import Index
from pipeline.data.outline import Outline, outline
from pipeline.data.root import Url
from pipeline.errors import InputError
from pipeline.faults import one_line
from pipeline.lineage import MAKER
from pipeline.restore import run_of
from pipeline.shipped_model import ABOUT, WEIGHTS, quieten
from pipeline.teaching import adapted
from pipeline.teaching.adapted import Adapted
from pipeline.teaching.calibration import MEASURES
from pipeline.teaching.reading import support_of
from pipeline.teaching.source import Source, of_files, own_learner
from pipeline.tracking import default_uri

MLFLOW = "models:/"
ENOUGH = 20
"""Samples left out from which on their accuracy is told without a warning."""
BLURRED = 0.5
"""Errors of the threshold (`Calibration.errors`) from which on it is said that strangers are hardly told."""


class Made(NamedTuple):
    """A model that was written, and what is to be said of it."""

    model: Adapted
    warnings: list[str]


def adapt(target: str, folder: Path, out: Path, *, runs: Path, layout: str = "") -> Made:
    """Teach the learner of `target` the classes of a folder of labelled images, and write the model to the file `out`.

    Raises:
        InputError: the target is no checkpoint, or the folder is no support set for its learner.
    """
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file, as {out / 'model.safetensors'}")
    make_folder(out.parent)
    learner = (found := source_of(target, runs)).assembled()
    support, warnings = support_of(folder, learner, layout=layout)
    model = Adapted(learner, support, origin=found.told)
    adapted.save(model, out)
    return Made(model, warnings + doubts(model))


def source_of(target: str, runs: Path) -> Source:
    """The learner that a person means by a checkpoint's or a run's folder, a run's id, `models:/NAME@ALIAS` of MLflow, or the URL
    of a run's copy in a store.

    Raises:
        InputError: there is none.
    """
    if target.startswith(MLFLOW):
        return _of_mlflow(target, runs)
    if "://" in target:
        return of_checkpoint(restore.find(mirror.fetch(Url(target), runs), runs))
    return of_checkpoint(restore.find(Path(target), runs))


def of_checkpoint(path: Path) -> Source:
    """The learner of a checkpoint, whose data need not be there.

    Raises:
        InputError: the checkpoint is damaged, its learner is a user's own, or it is old and its data are gone.
    """
    saved = checkpoint.load(path)
    config, run = parse(dict(saved.config), str(path)), run_of(path)
    if run is not None and (maker := spool.history(run).tags.get(MAKER)):
        raise own_learner(maker)
    if "outline" in saved.state:
        told = Outline(**saved.state["outline"])
    else:
        told = outline(Index.without_shards(config.data.root), config.data.train)
    sha256 = hashlib.sha256((path / checkpoint.FILES[0]).read_bytes()).hexdigest()
    where = {"from": str(path), "step": saved.step, "sha256": sha256, **({"run": run.name} if run else {})}
    return Source(config, told, saved.learner, where)


def _of_mlflow(target: str, runs: Path) -> Source:
    """The learner of a model in MLflow: where the environment says, or the sqlite file under the runs folder."""
    quieten()
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    uri = os.environ.get("MLFLOW_TRACKING_URI") or default_uri(runs)
    with TemporaryDirectory(prefix="metashard-model-") as place:
        try:
            where = _artifacts(MlflowClient(tracking_uri=uri, registry_uri=uri), target)
            folder = Path(download_artifacts(where, dst_path=place, tracking_uri=uri))
        except (MlflowException, OSError) as error:
            raise InputError(
                f"{target}: cannot be had from {uri} ({one_line(str(error))}); name a registered model, or set "
                "MLFLOW_TRACKING_URI"
            ) from error
        files = [folder / "artifacts" / name for name in (ABOUT, WEIGHTS)]
        if not all(file.is_file() for file in files):
            raise InputError(f"{target}: is no model of metashard register; register a run, or name its checkpoint")
        found = of_files(*files)
    return found._replace(told={**found.told, "from": target})


def _artifacts(client: Any, target: str) -> str:
    """Where the files of `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/NAME/latest` or `models:/ID` lie. MLflow's own
    look-up takes the registry that the process was last set to."""
    named = target.removeprefix(MLFLOW)
    name, at, alias = named.partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias).source
    name, slash, version = named.partition("/")
    if not slash:
        return client.get_logged_model(name).artifact_location
    if version != "latest":
        return client.get_model_version(name, version).source
    versions = client.search_model_versions(f"name = '{name}'")
    if not versions:
        raise InputError(f"{target}: there is no registered model of this name; register a run")
    return max(versions, key=lambda each: int(each.version)).source


def doubts(model: Adapted) -> list[str]:
    """Why the figures of a model say little, if so."""
    found, told = model.calibration, []
    if found.accuracy is None:
        told.append(
            "nothing could be left out of the support, so that nobody knows how good the model is; give a second image of each "
            "class, or try images whose class you know"
        )
    elif found.copies:
        told.append(
            "every class has one sample: accuracy is of turned and moved copies of what was learned from, and says nothing of "
            "new images"
        )
    elif found.samples < ENOUGH:
        measure = MEASURES[model.learner.config.task.kind]
        moves = f"one more or less right moves it by {100 / found.samples:.0f} points"
        told.append(
            f"{measure} is of {found.samples} samples: {moves if measure == 'accuracy' else 'that says little'}"
        )
    if found.errors is not None and found.errors >= BLURRED:
        told.append("these classes look much alike to the learner: it can hardly tell what is of none of them")
    return told


def text(made: Made, out: Path) -> str:
    """What to tell a person."""
    model, found = made.model, made.model.calibration
    members = model.support.members().sum(0).tolist()
    names = ", ".join(f"{name} ({count})" for name, count in zip(model.support.classes, members, strict=True))
    lines = [f"classes    {names}"]
    if found.accuracy is not None:
        what = "turned and moved copies" if found.copies else "samples left out in turn"
        measure = MEASURES[model.learner.config.task.kind]
        lines.append(f"{measure:<10} {100 * found.accuracy:.1f} % of {found.samples} {what}")
    lines += [f"warning    {warning}" for warning in made.warnings]
    lines += [f"model      {out}", f"use it     metashard predict {out} IMAGE…"]
    return "\n".join(lines)
