"""Where a run comes from and where it runs: the runs whose values went into it, its data sets, the jobs of a cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import spool, tracking
from pipeline.build_mixture import indexes, names
from pipeline.data.index import Index
from pipeline.errors import InputError
from pipeline.restore import run_of
from pipeline.schema.run import RunConfig
from pipeline.start import checkpoint_of, provenance

MAKER = "make_learner"
"""The tag that says who made the learner, where it was not the config."""
RUN_ENV = "METASHARD_RUN"
"""The variable in which a cluster's job finds its run id."""
RAY_ENV = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The variable in which Ray tells a job what it was submitted as."""
JOBS = {
    "job.run": RUN_ENV,
    "job.slurm": "SLURM_JOB_ID",
    "job.slurm.cluster": "SLURM_CLUSTER_NAME",
    "job.slurm.nodes": "SLURM_JOB_NODELIST",
}
"""Tags of a run, and the variables of this process that they tell."""


def origins(config: RunConfig, index: Index) -> dict[str, str]:
    """Of what a run begins from, its teacher and the encoder of its features: file, sha256 and, of a run, what it is called in
    MLflow (`KEY.run`) and in its spool (`KEY.spool`, the tag `metashard.run` there), as tags.

    Raises:
        InputError: one of them is neither a file nor a run or checkpoint.
    """
    told = provenance(config)
    sources = {"start": config.start, "teacher": config.teacher and config.teacher.start}
    for key, path in sources.items():
        if path is not None and path.is_dir():
            told |= _run(key, checkpoint_of(path, key))
    if index.encoder:
        encoder = index.manifest["origin"]["encoder"]
        told |= {"encoder.file": str(encoder["from"]), "encoder.sha256": index.encoder}
        told |= _encoder_run(Path(encoder["from"]))
    return told


def _encoder_run(path: Path) -> dict[str, str]:
    """The run whose encoder made the features; nothing where it is not on this machine any more."""
    if not path.is_dir():
        return {}
    try:
        return _run("encoder", checkpoint_of(path, "encoder"))
    except InputError:
        return {}


def _run(key: str, checkpoint: Path) -> dict[str, str]:
    run = run_of(checkpoint)
    if run is None:
        return {}
    told = {f"{key}.spool": spool.history(run).id, f"{key}.run": tracking.run_id_of(run)}
    return {name: value for name, value in told.items() if value}


def jobs(past: Mapping[str, str]) -> dict[str, str]:
    """The jobs of a cluster that this process belongs to, as tags; after the ids of those that drove the run before, by its
    tags of the `past`."""
    told = {tag: os.environ.get(variable, "") for tag, variable in JOBS.items()}
    told["job.ray.submission"] = _submission()
    return {tag: _joined(past.get(tag, ""), value) for tag, value in told.items() if value}


def _submission() -> str:
    """By what id this process was submitted to Ray; empty if it was not."""
    try:
        return str(json.loads(os.environ.get(RAY_ENV, "{}"))["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return ""


def _joined(past: str, value: str) -> str:
    known = past.split(" ") if past else []
    return " ".join([*known, *([] if value in known else [value])])


def data_sets(config: RunConfig, index: Index) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and what there is to tell, as `Spool.data` takes it, of every split of every data set that the run reads."""
    data = config.data
    uses = {"training": data.train if config.meta.steps else "", "validation": data.validation, "test": data.test}
    parts = indexes(config, index)
    for name, part in zip(names(parts), parts, strict=True):
        for split in dict.fromkeys(filter(None, uses.values())):
            classes = part.splits[split]
            yield (
                f"{name}:{split}",
                {
                    "digest": part.fingerprint,
                    "source": str(part.root),
                    "context": ", ".join(use for use, own in uses.items() if own == split),
                    "images": {"dtype": part.dtype.str, "shape": list(part.shape(0))},
                    "profile": {
                        "split": split,
                        "classes": len(classes),
                        "samples": int(part.counts[classes].sum()),
                        "shards": len(part.shards),
                        "fingerprint": part.fingerprint,
                        **({"encoder": part.encoder} if part.encoder else {}),
                    },
                },
            )
