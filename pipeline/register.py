"""The verb `register`: the best checkpoint of a run as a model that MLflow serves, as a version of a registered one if asked."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import build, checkpoint, servable, spool, tracking
from pipeline.config import parse
from pipeline.data.images import encode_png
from pipeline.data.index import Index
from pipeline.data.loader import Reader
from pipeline.data.outline import outline
from pipeline.data.sampler import Draw
from pipeline.data.shards import Shards
from pipeline.errors import InputError
from pipeline.lineage import MAKER
from pipeline.schema.run import RunConfig
from pipeline.shipment import read_json
from pipeline.shipped_model import ABOUT, EXAMPLE, WEIGHTS
from pipeline.spool import Spool
from pipeline.teaching import source
from pipeline.teaching.source import own_learner

FOLDER = "models"


class Registered(NamedTuple):
    """A run whose best checkpoint was handed to MLflow: where its files lie, and what was sent."""

    folder: Path
    sent: tracking.SyncReport


def register(run: Path, *, name: str = "", alias: str = "") -> Registered:
    """Make a model of the run's best checkpoint in the MLflow that the run goes to; with a name a version of that registered
    model, to which the alias then points.

    Raises:
        InputError: it is no run, or one whose learner others cannot build; or its data are not there.
    """
    if not (run / spool.FILE).exists():
        raise InputError(f"{run} has no {spool.FILE}, so it is no run; `metashard runs` lists the runs")
    best = checkpoint.best(run)
    tree = dict(checkpoint.load(best).config)
    asked = {"model": True, "register_as": name, "alias": alias}
    config = parse({**tree, "tracking": {**tree["tracking"], **asked}}, "metashard register")
    if maker := spool.history(run).tags.get(MAKER):
        raise own_learner(maker)
    told = tell(run, config, best)
    return Registered(told, tracking.sync(run, uri=tracking.target_uri(run) or tracking.default_uri(run.parent)))


def tell(run: Path, config: RunConfig, best: Path) -> Path:
    """Have a checkpoint of the run shown as a model of it, registered as `tracking` says; the folder of its files.

    Raises:
        InputError: as `lay_out`.
    """
    folder = lay_out(run / FOLDER / best.name, config, best)
    told = Spool(run)
    told.model(folder, register=config.tracking.register_as, alias=config.tracking.alias)
    told.close()
    return folder


def lay_out(folder: Path, config: RunConfig, best: Path) -> Path:
    """Write the files that a model is made of, replaced in one move: description, weights, and an episode as an example.

    Raises:
        InputError: the checkpoint or the data cannot be read, or the learner cannot be built.
    """
    saved, weights = checkpoint.load(best), (best / checkpoint.FILES[0]).read_bytes()
    index = Index.open(config.data.root)
    about = source.about(config, outline(index, config.data.train), weights, step=saved.step)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    asked = example(config, index)
    for name, values in ((ABOUT, about), (EXAMPLE, asked)):
        (partial / name).write_text(json.dumps(values))
    (partial / WEIGHTS).write_bytes(weights)
    # Whoever serves it later must not be the first to try.
    servable.opened(partial / ABOUT, partial / WEIGHTS).answer(asked)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def example(config: RunConfig, index: Index, *, number: int = 0, queries: int = 1) -> dict[str, list[Any]]:
    """A request: the support of a test episode, and so many queries of each of its classes."""
    drawn = build.sampler(config, index, config.data.test).draw(0, number)
    reader = build.reader(config, index)._replace(size=None)
    names = servable.columns(config.task)
    told: dict[str, list[Any]] = {name: [] for name in names}
    for way, own in enumerate(drawn.support):
        turns = int(drawn.turns[way])
        for row in map(int, own):
            told["support"].append(_files(config, reader.shards, row, turns))
            if "masks" in names:
                told["masks"].append(encoded(reader.mask_of(row, way, drawn)[..., None].astype(np.uint8)))
            if "boxes" in names:
                told["boxes"].append(_boxes(reader, row, way, drawn))
        told["labels"] += [_name(index, drawn, way)] * (1 if len(names) > len(servable.IMAGES) else len(own))
        told["queries"] += [_files(config, reader.shards, int(row), turns) for row in drawn.query[way][:queries]]
    return told


def _boxes(reader: Reader, row: int, way: int, drawn: Draw) -> list[list[float]]:
    """Left, top, right, bottom in pixels and value of the boxes of a support image."""
    height, width, _ = reader.shards.index.shape(row)
    found = reader.boxes_of(row, way, drawn, is_support=True)
    return (found[found[:, 4] != 0] * (width, height, width, height, 1)).tolist()


def _name(index: Index, drawn: Draw, way: int) -> str:
    turns = int(drawn.turns[way])
    return index.class_names[drawn.classes[way]] + (f" turned {90 * turns}°" if turns else "")


def _files(config: RunConfig, shards: Shards, row: int, turns: int) -> servable.Picture:
    """A sample in base64: a file for each modality, "" for what it lacks; of one modality that file."""
    files = [
        encoded(np.rot90(shards.plane(row, modality), turns)) if shards.index.has(row, modality) else ""
        for modality in config.data.modalities
    ]
    return files[0] if len(files) == 1 else files


def encoded(array: np.ndarray) -> str:
    """An image (height, width, channels) as a file in base64: PNG where that can be, else npy."""
    if array.dtype == np.uint8 and array.shape[2] in (1, 3):
        return base64.b64encode(encode_png(np.ascontiguousarray(array))).decode()
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode()


def registered_text(run: Path, done: Registered, *, name: str, alias: str) -> str:
    """What to tell a person."""
    uri = read_json(run / tracking.TARGET_FILE).get("uri", "")
    lines = [f"model      {done.folder}"]
    lines.append(f"MLflow     run {done.sent.run_id or 'not sent yet'} in {uri}")
    if name:
        which = f"@{alias}" if alias else "/latest"
        lines.append(
            f"serve it   MLFLOW_TRACKING_URI={uri} mlflow models serve -m 'models:/{name}{which}' --env-manager local"
        )
    return "\n".join(lines)
