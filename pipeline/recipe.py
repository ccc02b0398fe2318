"""From a first look at images, a machine and a time to a run that fits: which classes teach, how episodes are, which model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline import build
from pipeline.config import parse
from pipeline.data.outline import Outline, outlined
from pipeline.engine import Plan, measure
from pipeline.episode import Batch, Episode
from pipeline.errors import InputError
from pipeline.schema.run import RunConfig
from pipeline.survey import Survey

LEAST_CLASSES = 8
LEAST_MEASURED = 2
"""Classes to choose by, and to test on: with one there is nothing to tell apart."""
WAYS, SHOTS, QUERIES = 5, 5, 5
"""What is measured, where there is enough for it. How many queries there are does not change what accuracy is expected; more
episodes make it more certain than more queries."""
TRAINING_WAYS = 20
"""Harder episodes than those measured teach more (Snell et al. 2017, section 3.2)."""
SIDES = (84, 64, 48, 32)
INK_SIDE = 28
ENOUGH_STEPS, MOST_STEPS = 400, 6000
VALIDATIONS, VALIDATION_EPISODES = 4, 100
TEST_EPISODES = (600, 300, 100)
"""The first of these that takes no more than `MEASURING` of the time."""
MEASURING = 0.25
FLOOR_EPISODES = 100
FORWARD = 1 / 3
"""What looking at an image costs of learning from it."""
START_S = 15.0
"""Beginning and ending of a run."""


class Machine(NamedTuple):
    """What a run may use: CPU cores, and GPUs if there are any."""

    cores: int
    gpus: int


class Chosen(NamedTuple):
    """Classes by split, and those left out; and shots and queries that every class of a split has samples for."""

    splits: Mapping[str, Sequence[str]]
    left_out: Sequence[str]
    shots: int
    queries: int

    @property
    def ways(self) -> int:
        """Of the episodes that are measured."""
        return min(WAYS, len(self.splits["val"]), len(self.splits["test"]))


class Pace(NamedTuple):
    """How fast a run is: the plan of its engine, seconds of a meta-step, and of looking at an image."""

    plan: Plan
    step_s: float
    look_s: float


def classes(found: Survey, name: str) -> Chosen:
    """Which classes teach, which are chosen by and which are tested on, and how many samples of each an episode has.

    A tenth of the classes may have fewer samples than episodes need: these are left out. A class keeps its place whatever images
    it has.

    Raises:
        InputError: there are too few of them.
    """
    usual = sorted(found.counts.values())[len(found.counts) // 10]
    shots = min(SHOTS, max(2, usual) // 2)
    queries = min(QUERIES, max(2, usual) - shots)
    enough = [label for label, count in found.counts.items() if count >= shots + queries]
    if len(enough) < LEAST_CLASSES:
        raise InputError(
            f"{name}: {len(enough)} of {len(found.counts)} classes have {shots + queries} images or more, and "
            f"{LEAST_CLASSES} such classes are the least to meta-train on: {LEAST_CLASSES - 2 * LEAST_MEASURED} to learn from, "
            f"{LEAST_MEASURED} others to choose by, {LEAST_MEASURED} others to test on. Learn from a folder with more classes "
            f"and teach these to what was learned: metashard quickstart OTHER --support {name}; without one, from drawn "
            f"characters, which teach nothing about photographs: metashard quickstart - --support {name}"
        )
    if set(found.splits) == {"train", "val", "test"}:
        splits = {split: [label for label in own if label in set(enough)] for split, own in found.splits.items()}
        if short := [split for split, own in splits.items() if len(own) < LEAST_MEASURED]:
            raise InputError(
                f"{name}: its folder {short[0]!r} has fewer than {LEAST_MEASURED} classes of {shots + queries} images; move "
                "classes there, or put all of them beside each other to have them split"
            )
    else:
        splits = shared_out(enough)
    return Chosen(splits, [label for label in found.counts if label not in set(enough)], shots, queries)


def shared_out(names: Sequence[str]) -> dict[str, list[str]]:
    """About 64 % of the classes to learn from, 16 % to choose by, 20 % to test on, by the hashes of their names; more of the last
    two where `WAYS` would not be reached, but never most of all."""
    count = len(names)
    test, val = (
        max(LEAST_MEASURED, round(share * count), min(WAYS, count // part)) for share, part in ((0.2, 4), (0.16, 5))
    )
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    parts = {"test": ordered[:test], "val": ordered[test : test + val], "train": ordered[test + val :]}
    return {split: sorted(parts[split]) for split in ("train", "val", "test")}


def recipe(
    found: Survey, chosen: Chosen, machine: Machine, *, minutes: float, name: str, place: Path
) -> tuple[int, dict[str, Any]]:
    """To what size images are packed, and the config of a run on what is packed as `place`/data, as plain values: the largest
    images and model with which `ENOUGH_STEPS` meta-steps fit into the time, or the smallest.

    Raises:
        InputError: not one meta-step does.
    """
    side, tree = 0, {}
    for model, side in ladder(found, machine):
        plain = _tree(found, chosen, machine, model, name=name, place=place)
        form = Outline((side, side, found.channels), {}, "", len(chosen.splits["train"]))
        tree = _timed(plain, paced(parse(plain, "quickstart"), form, machine), chosen, minutes)
        if tree["meta"]["steps"] >= ENOUGH_STEPS:
            break
    if tree["meta"]["steps"] < 1:
        raise InputError(f"--minutes {minutes:g}: not one meta-step would fit into that; give more")
    return side, tree


def ladder(found: Survey, machine: Machine) -> Iterator[tuple[dict[str, Any], int]]:
    """Models with sides of images, the dearest first; images that are large enough for a model are never made larger."""
    own = {found.side} if min(SIDES) <= found.side <= max(SIDES) else set()
    sides = sorted({side for side in SIDES if side <= found.side} | own, reverse=True) or [min(SIDES)]
    if found.is_ink:
        sides = [INK_SIDE]
    small, usual = (
        {"kind": "conv4", "width": width, "downsample": "max_pool", "features": "flatten"} for width in (32, 64)
    )
    models = [{"kind": "resnet12"}, usual] if machine.gpus and not found.is_ink else [usual]
    yield from ((model, side) for model in models for side in sides)
    yield small, sides[-1]


def _tree(
    found: Survey, chosen: Chosen, machine: Machine, model: Mapping[str, Any], *, name: str, place: Path
) -> dict[str, Any]:
    """Everything that does not depend on how fast the machine is."""
    ways = min(TRAINING_WAYS, len(chosen.splits["train"]))
    data: dict[str, Any] = {"root": str(place / "data"), "ways": ways}
    data |= {"shots": chosen.shots, "queries": chosen.queries}
    if found.is_inverted:
        data["invert"] = True
    if found.channels == 3:
        data["augment"] = {"flip": True, "crop": 0.2, "colour": 0.2}
    workers = max(1, machine.gpus)
    return {
        "name": name,
        "runs": str(place / "runs"),
        "data": data,
        "model": dict(model),
        "learner": {"kind": "prototype"},
        "meta": {
            "steps": 1,
            "batch": max(2 if machine.cores < 4 else 4, workers),
            "optimizer": {"kind": "adam", "lr": 2e-3},
            "schedule": {"kind": "cosine", "floor": 0.01},
        },
        "evaluate": {"ways": chosen.ways, "shots": chosen.shots, "queries": chosen.queries, "mode": "inductive"},
        "workers": {"count": workers},
    }


def paced(config: RunConfig, form: Outline, machine: Machine) -> Pace:
    """How fast a run of this config would be on images of this form, measured here and now on noise."""
    learner = build.learner(config, outlined(form, config.data.root, config.data.train))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    episodes = [_noise(config, form, device) for _ in range(config.meta.batch // config.workers.count)]
    before = torch.get_num_threads()
    torch.set_num_threads(machine.cores)
    try:
        best = measure(learner.to(device), episodes)[0]
    finally:
        torch.set_num_threads(before)
    images = sum(len(part.inputs) for episode in episodes for part in (episode.support, episode.query))
    return Pace(best.plan, best.seconds, FORWARD * best.seconds / images)


def _noise(config: RunConfig, form: Outline, device: torch.device) -> Episode:
    height, width, channels = form.images
    ways = config.data.ways

    def batch(each: int) -> Batch:
        targets = torch.arange(ways).repeat_interleave(each)
        return Batch(torch.rand(len(targets), channels, height, width), targets)

    return Episode(batch(config.data.shots), batch(config.data.queries), ways).to(device, torch.float32)


def _timed(tree: Mapping[str, Any], pace: Pace, chosen: Chosen, minutes: float) -> dict[str, Any]:
    """A config with as many meta-steps and test episodes as fit into the time, and the plan that was the fastest."""
    budget_s = 60 * minutes - START_S
    look_s = pace.look_s * chosen.ways * (chosen.shots + chosen.queries)
    # Validation is in one mode. Test episodes are looked at in both, twice, and some of them before training.
    validating_s = look_s * VALIDATIONS * VALIDATION_EPISODES
    testing_s = {count: look_s * 2 * (2 * count + min(count, FLOOR_EPISODES)) for count in TEST_EPISODES}
    episodes = next((n for n, s in testing_s.items() if s + validating_s <= MEASURING * budget_s), TEST_EPISODES[-1])
    left_s = budget_s - testing_s[episodes] - validating_s
    steps = min(MOST_STEPS, _rounded(left_s / pace.step_s))
    every = max(1, math.ceil(steps / VALIDATIONS))
    mode, chunk, layout, abreast = pace.plan
    return {
        **tree,
        "meta": {**tree["meta"], "steps": steps},
        "validation": {"every": every, "episodes": VALIDATION_EPISODES},
        "evaluate": {**tree["evaluate"], "episodes": episodes},
        "checkpoint": {"every": every},
        "engine": {"mode": mode, "chunk": chunk, "layout": layout, "abreast": abreast},
    }


def _rounded(steps: float) -> int:
    """To two digits, downwards: more would say how busy the machine was."""
    if steps < 1:
        return 0
    unit = 10 ** max(0, math.floor(math.log10(steps)) - 1)
    return int(steps // unit * unit)
