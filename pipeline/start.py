"""Initial values out of a file: those of a run, of a checkpoint, or weights that others published."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import build, checkpoint, ranks
from pipeline.build import MakeLearner
from pipeline.data.index import Index
from pipeline.data.moments import moments
from pipeline.errors import InputError
from pipeline.faults import one_line
from pipeline.learners.learner import Learner
from pipeline.models.standard import Standard
from pipeline.schema.gradient import GradientConfig
from pipeline.schema.learner import LeoConfig
from pipeline.schema.run import RunConfig

ENCODER, STATISTICS, STANDARD = "model.encoder.", "running.", "model.standard."
BACKBONE = "backbone."
NAMED = 3
"""Faults that a message tells one by one; the others are counted."""


def started(config: RunConfig, index: Index, make_learner: MakeLearner) -> Learner:
    """The learner as its run begins: with random values, or those of `start`; images are normalised by what a start brings, by
    what the config gives, or by what is measured now, the same on all ranks.

    Raises:
        InputError: config, data and start do not fit each other.
    """
    learner = make_learner(config, index)
    own = standard_of(learner)
    if config.data.normalise != "none" and own is None:
        raise InputError(
            "data.normalise: the learner has no model that normalises; build its Network with pipeline.build_encoder.standard, "
            "or set data.normalise = none"
        )
    is_known = config.data.normalise != "measured"
    if config.start is not None:
        # Where nothing is trained, and where the config asks for them, nobody else would bring norm statistics.
        keeps = isinstance(config.learner, GradientConfig) or (
            isinstance(config.learner, LeoConfig) and config.learner.freeze
        )
        needs = config.meta.steps == 0 or keeps
        is_known |= begin(learner, config.start, needs_statistics=needs, normalise=config.data.normalise)
    if own is not None and not is_known:
        own.take(*ranks.told_by_first(moments(build.reader(config, index), config.data.train)))
    return learner


def standard_of(learner: nn.Module) -> Standard | None:
    """What normalises the images of a learner, if anything does."""
    return next((part for part in learner.modules() if isinstance(part, Standard)), None)


def begin(
    learner: nn.Module, path: Path, *, needs_statistics: bool, normalise: object = "none", key: str = "start"
) -> bool:
    """Put the values of a run, a checkpoint or a .safetensors file into a learner, by name and shape.

    All of the encoder, or of its backbone where it has one, must be there, and with `needs_statistics` all running norm
    statistics. What else fits is taken too;
    heads and learned rules that do not fit, or are not there, stay as they are. In a file that is not of a learner the names
    are those of an encoder, bare or after `encoder.`; an encoder with a method `translated` has that say what they mean.
    `normalise` is what the config says of the images; what they are normalised by comes with the values of a run and must be
    that. `key` is what the user named the file by. Gives whether such statistics came.

    Raises:
        InputError: the file cannot be read, or does not fit; the parameters are named.
    """
    own, found = learner.state_dict(), _named(dict(_values(path, key)), learner)
    is_brought = _check_standard(own, found, path, normalise, key)
    encoder = ENCODER
    if any(n.startswith(ENCODER + BACKBONE) for n in own) and not any(n.startswith(ENCODER + BACKBONE) for n in found):
        encoder += BACKBONE
        found = {n.replace(ENCODER, encoder, 1) if n.startswith(ENCODER) else n: value for n, value in found.items()}
    needed = [n for n in own if n.startswith(encoder) or (needs_statistics and n.startswith(STATISTICS))]
    faults = [fault for name in needed if (fault := _fault(name, own[name], found, path))]
    faults += [f"{path} has {_plain(n)}, the model has not" for n in found if n.startswith(ENCODER) and n not in own]
    fitting = {name: value for name, value in found.items() if name in own and value.shape == own[name].shape}
    if not (faults or fitting):
        faults = [f"{path} holds nothing that the learner has"]
    if faults:
        more = [f"{len(faults) - NAMED} more"] if len(faults) > NAMED else []
        way_out = "start from weights of this model, or change `model`"
        if all(STATISTICS in fault for fault in faults):
            way_out = "start from a run that keeps norm statistics, as learner.kind = supervised does"
        raise InputError(f"{key}: {'; '.join([*faults[:NAMED], *more])}; {way_out}")
    learner.load_state_dict(fitting, strict=False)
    return is_brought


def _check_standard(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, normalise: object, key: str
) -> bool:
    """Whether the statistics of images come with these values: weights mean something for images as they saw them alone."""
    theirs = {name: value for name, value in found.items() if name.startswith(STANDARD)}
    if not theirs:
        if path.is_dir() and normalise != "none":
            raise InputError(f"{key}: {path} was trained on images that are not normalised; set data.normalise = none")
        return False
    if normalise == "none":
        raise InputError(
            f"{key}: {path} was trained on normalised images; set data.normalise = measured, by which its statistics are taken"
        )
    for name, value in sorted(theirs.items()):
        if value.shape != own[name].shape:
            channels = f"{len(value)} channels, and these have {len(own[name])}"
            raise InputError(f"{key}: {path} was trained on images of {channels}; name data with as many")
        if normalise != "measured" and not torch.allclose(value.to(own[name]), own[name], rtol=1e-4, atol=1e-6):
            raise InputError(
                f"{key}: {path} has {_plain(name)} {_rounded(value)}, and data.normalise gives {_rounded(own[name])}; set "
                "data.normalise = measured, by which its statistics are taken"
            )
    return True


def _rounded(values: Tensor) -> str:
    return str([round(value, 4) for value in values.tolist()])


def _fault(name: str, own: Tensor, found: Mapping[str, Tensor], path: Path) -> str:
    """What is wrong with a value that is needed; empty if nothing is."""
    if name not in found:
        return f"{_plain(name)} is not in {path}"
    if found[name].shape != own.shape:
        return f"{_plain(name)} is {tuple(found[name].shape)} in {path}, the model needs {tuple(own.shape)}"
    return ""


def _plain(name: str) -> str:
    return name.removeprefix("model.")


def _named(values: dict[str, Tensor], learner: nn.Module) -> dict[str, Tensor]:
    """The values by the names that they have in a learner."""
    if any(name.startswith(ENCODER) for name in values):
        return values
    encoder = dict(learner.named_modules()).get(ENCODER.rstrip("."))
    translated = getattr(encoder, "translated", None)
    if translated is not None:
        values = translated(values)
    if any(name.startswith("encoder.") for name in values):
        return {f"model.{name}": value for name, value in values.items()}
    # The names of a bare backbone may have those of its old head among them.
    known = dict(encoder.named_parameters()) if encoder is not None else {}
    return {f"{ENCODER}{name}": value for name, value in values.items() if name in known}


def _values(path: Path, key: str) -> Mapping[str, Tensor]:
    if path.is_dir():
        return checkpoint.load(checkpoint_of(path, key)).learner
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(str(error))
        raise InputError(
            f"{key} = {path}: no safetensors file that can be read ({reason}); name a run's folder, a checkpoint's folder or "
            "a .safetensors file: pickled weights are never opened"
        ) from error


def checkpoint_of(path: Path, key: str) -> Path:
    """The checkpoint that a config's key means by a folder.

    Raises:
        InputError: it is neither a run's nor a checkpoint's, or no checkpoint of the run is whole.
    """
    found = checkpoint.meant(path)
    if found is None:
        raise InputError(f"{key} = {path}: neither a run's folder nor a checkpoint's; `metashard runs` lists the runs")
    return found


def provenance(config: RunConfig) -> dict[str, str]:
    """The files that a run's initial values and its teacher come from, with their sha256, as tags of the run."""
    origins = {}
    if config.start is not None:
        origins["start"] = config.start
    if config.teacher is not None:
        origins["teacher"] = config.teacher.start
    told = {}
    for key, path in origins.items():
        file = checkpoint_of(path, key) / checkpoint.FILES[0] if path.is_dir() else path
        with open(file, "rb") as opened:
            told |= {f"{key}.file": str(file), f"{key}.sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
    return told
