"""The verb `quickstart`: from class folders to a model of new classes, step by step, each with the command that does the same."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from pipeline import adapt, config, evaluate, prepare, recipe, restore, train
from pipeline.conclude import RESULT_FILE, finished_text
from pipeline.data import layouts
from pipeline.data.files import make_folder, write_file
from pipeline.data.images import encode_png
from pipeline.data.shapes import in_words
from pipeline.data.source import Sample, Source
from pipeline.errors import InputError
from pipeline.judging import ranged
from pipeline.recipe import Chosen, Machine
from pipeline.run_folder import found_run
from pipeline.session import cpus
from pipeline.shipment import read_json
from pipeline.survey import Survey, survey
from pipeline.tracking import target_uri
from pipeline.watch import counting, watching

DRAWN = "-"
"""In the place of a folder: the embedded drawings of characters."""
ASKED = "quickstart.json"
ASK_ABOUT = 5
"""Images of a class, beside those that are taught, that the model can be tried on."""
CONFIG = "train.yaml"
FEW = 20
"""Classes to learn from, up to which it is said that there are few."""
Tell = Callable[[str], None]


class Plan(NamedTuple):
    """What was decided: the source of images and how it looks, its classes, the side of packed images, and the run's config."""

    source: Source
    found: Survey
    chosen: Chosen
    side: int
    tree: dict[str, Any]

    @property
    def run(self) -> str:
        """The id of the run."""
        return self.tree["name"]

    @property
    def taught(self) -> Sequence[str]:
        """Test classes that the model will know: spread over their names, of which neighbours are often alike."""
        test = self.chosen.splits["test"]
        return test[:: max(1, len(test) // recipe.WAYS)][: recipe.WAYS]


class Step(NamedTuple):
    """A command line, and what does the same here; it gives an exit code where there is no going on, else None."""

    command: Sequence[object]
    work: Callable[[], int | None]


def quickstart(
    folder: str,
    out: Path,
    *,
    minutes: float,
    support: Path | None,
    overrides: Sequence[str],
    is_dry: bool,
    tell: Tell,
) -> int:
    """Pack class folders, choose a config that fits, train, evaluate, adapt to classes that were not learned from; the exit code.

    `folder` is a folder or zip of class folders, or `DRAWN`. Everything goes to `out`; the same call made again goes on where it
    was. The model that is made knows the classes of `support`, or some of the test classes. `overrides` are put on top of the
    config that was chosen. With `is_dry` nothing is done but to look and to tell.

    Raises:
        InputError: the folder or an option cannot be used, or `out` holds something else.
    """
    asked = {
        "folder": folder if folder == DRAWN else str(Path(folder).absolute()),
        "minutes": minutes,
        "support": support and str(support.absolute()),
        "overrides": list(overrides),
    }
    known = _known(out, asked)
    plan = _planned(folder, out, minutes, overrides, known)
    for line in _told(plan):
        tell(line)
    if is_dry:
        tell(f"\n# {out / CONFIG}\n{yaml.safe_dump(plan.tree, sort_keys=False).rstrip()}")
    elif not known:
        _lay_out(plan, out, asked)
    steps = _steps(plan, folder, out, support, tell)
    for number, step in enumerate(steps, 1):
        tell(f"\n[{number}/{len(steps)}] {commanded(step.command)}")
        if not is_dry and (code := step.work()) is not None:
            tell("the same metashard quickstart goes on from here")
            return code
    for line in _next(out, is_taught=support is None):
        tell(line)
    return 0


def commanded(command: Sequence[object]) -> str:
    """A command line of metashard, as it would be typed."""
    return shlex.join(["metashard", *map(str, command)])


def _known(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What was decided by the same call before; empty if there was none, or it did not get so far."""
    kept = read_json(out / ASKED)
    if not kept and out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: is not empty and holds no quickstart; choose another folder")
    for key, value in asked.items() if kept else ():
        if kept["asked"][key] != value:
            raise InputError(
                f"--out {out}: holds a quickstart with {key} {kept['asked'][key]}, and this one has {value}; choose another "
                "folder, or ask as then to go on"
            )
    return kept if "side" in kept else {}


def _planned(folder: str, out: Path, minutes: float, overrides: Sequence[str], known: dict[str, Any]) -> Plan:
    source = layouts.read(
        folder,
        "glyphs" if folder == DRAWN else "folder",
        size=recipe.INK_SIDE if folder == DRAWN else None,
        seed=0,
        min_area=None,
        pairs=None,
        modalities=(),
    )
    found = survey(source)
    chosen = recipe.classes(found, folder)
    if known:
        return Plan(source, found, chosen, known["side"], config.read(out / CONFIG))
    machine = Machine(cpus(), torch.cuda.device_count() if torch.cuda.is_available() else 0)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name).strip("-._") or "quickstart"
    side, tree = recipe.recipe(found, chosen, machine, minutes=minutes, name=name, place=out.absolute())
    for override in overrides:
        config.put(tree, override)
    config.parse(tree, str(out / CONFIG))
    return Plan(source, found, chosen, side, tree)


def _told(plan: Plan) -> Iterator[str]:
    """What was found and decided, in lines."""
    found, chosen, tree = plan.found, plan.chosen, plan.tree
    data, test = tree["data"], tree["evaluate"]
    train, val, held = (len(chosen.splits[split]) for split in ("train", "val", "test"))
    kind = "drawings" if found.is_ink else "grey" if found.channels == 1 else "colour"
    yield f"images     {sum(found.counts.values()):,} of {len(found.counts):,} classes, {kind}, {found.side} pixels"
    yield f"classes    {train:,} to learn from, {val:,} others to choose by, {held:,} others to test on"
    if chosen.left_out:
        names = ", ".join(chosen.left_out[:3]) + (", …" if len(chosen.left_out) > 3 else "")
        yield f"left out   {len(chosen.left_out):,} classes of fewer than {chosen.shots + chosen.queries} images: {names}"
    yield f"episodes   {data['ways']} ways, {data['shots']} shots; measured with {test['ways']} ways, {test['shots']} shots"
    yield f"model      {tree['model']['kind']} on {plan.side} × {plan.side} pixels, learner {tree['learner']['kind']}"
    yield f"training   {tree['meta']['steps']:,} meta-steps of {tree['meta']['batch']} episodes"
    if train < FEW:
        yield f"note       {train} classes are few to learn from: with more of them, new ones are told apart better"
    if data.get("augment", {}).get("flip"):
        yield "note       images are mirrored in training; where that makes another class of them: data.augment.flip=false"


def _lay_out(plan: Plan, out: Path, asked: dict[str, Any]) -> None:
    """Write what the steps begin from: the splits, the config, and images of test classes to teach and to ask about."""
    make_folder(out)
    write_file(out / ASKED, json.dumps({"asked": asked}).encode())
    make_folder(out / "splits")
    for split, names in plan.chosen.splits.items():
        write_file(out / "splits" / f"{split}.txt", "".join(f"{name}\n" for name in names).encode())
    write_file(out / CONFIG, yaml.safe_dump(plan.tree, sort_keys=False).encode())
    if asked["support"] is None:
        by_class: dict[str, list[Sample]] = {name: [] for name in plan.taught}
        for sample in sorted(plan.source.samples, key=lambda sample: sample.key):
            by_class.get(sample.label, []).append(sample)
        shots = plan.chosen.shots
        for name, samples in by_class.items():
            _write(samples[:shots], out / "support" / name)
            _write(samples[shots:][:ASK_ABOUT], out / "queries" / name)
    write_file(out / ASKED, json.dumps({"asked": asked, "side": plan.side}).encode())


def _write(samples: Sequence[Sample], folder: Path) -> None:
    make_folder(folder)
    for sample in samples:
        image = sample.image()
        data = image if isinstance(image, bytes) else encode_png(image)
        write_file(folder / f"{sample.key.rpartition('/')[2]}.{sample.extension}", data)


def _steps(plan: Plan, folder: str, out: Path, support: Path | None, tell: Tell) -> list[Step]:
    run, model, taught = out / "runs" / plan.run, out / "model.safetensors", support or out / "support"
    layout, channels = ("glyphs", None) if folder == DRAWN else ("folder", plan.found.channels)
    form = ["--layout", layout, "--size", plan.side, *(["--channels", channels] if channels else [])]
    episodes, shots = plan.tree["evaluate"]["episodes"], {"shots": 1} if plan.chosen.shots > 1 else {}
    asked = ["--episodes", episodes, *(["--shots", 1] if shots else [])]

    def pack() -> None:
        with counting("packing", "tars") as progress:
            made = prepare.pack(
                folder,
                out / "data",
                layout=layout,
                size=plan.side,
                channels=channels,
                splits=out / "splits",
                progress=progress,
            )
        tell(prepare.described(made))

    return [
        Step(["pack", folder, out / "data", *form, "--splits", out / "splits"], pack),
        Step(["train", out / CONFIG, "--run", plan.run], lambda: _train(plan.run, out, tell)),
        Step(["evaluate", run, *asked], lambda: tell(_evaluated(run, shots, episodes))),
        Step(
            ["adapt", run, "--support", taught, "--out", model],
            lambda: tell(adapt.text(adapt.adapt(str(run), taught, model, runs=out / "runs"), model)),
        ),
    ]


def _train(name: str, out: Path, tell: Tell) -> int | None:
    """Train, go on, or tell what came of it before; an exit code where somebody stopped it."""
    chosen = config.load(out / CONFIG)
    folder = chosen.runs / name
    if result := read_json(folder / RESULT_FILE):
        tell(finished_text(folder, result, target_uri(folder), is_sent=True))
        return None
    done = train.fit(chosen, resume=found_run(chosen, name), name=name, watch=watching)
    tell(done.text)
    return None if done.result else done.code


def _evaluated(run: Path, asked: dict[str, int], episodes: int) -> str:
    """The best checkpoint of a run on test episodes of so many shots; measured once, and kept by the run."""
    path = restore.find(run, run.parent)
    subject = restore.subject_of(path, asked=asked)
    shots = subject.config["evaluate"]["shots"]
    before = (read_json(file) for file in (run / "evaluations").glob(f"test-{path.name}-*.json"))
    told = next((own for own in before if own.get("shots") == shots and _episodes(own) == episodes), None)
    if told is None:
        found = evaluate.evaluate(subject, split="test", episodes=episodes, workers=1)
        evaluate.keep(found, path)
        told = found.as_json()
    metric = told["metric"]
    return "\n".join(
        f"{mode.value:<15}{in_words(told)}: {metric} {ranged(metric, told[mode.value][metric])}"
        for mode in evaluate.MODES
    )


def _episodes(told: dict[str, Any]) -> int:
    return told[evaluate.MODES[0].value][told["metric"]]["episodes"]


def _next(out: Path, *, is_taught: bool) -> Iterator[str]:
    """Where to go from here."""
    model, images = out / "model.safetensors", [out / "queries"] if is_taught else []
    more = "" if is_taught else " IMAGE…"
    yield "\nlook at the run      " + commanded(["ui", "--runs", out / "runs"])
    yield "ask the model        " + commanded(["predict", model, *images]) + more
    yield "serve it             " + commanded(["serve", model])
    yield "a page in front      " + commanded(["page", "http://127.0.0.1:8000"])
