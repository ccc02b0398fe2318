"""The page of one run: what it found, what it looked like, what it was, and how to do it again."""

from __future__ import annotations

import json
import math
import shlex
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import failures, spool, tables
from pipeline.archive import CONFIG_FILE, STACKS
from pipeline.conclude import RESULT_FILE
from pipeline.data.shapes import in_words
from pipeline.judging import ranged, shown
from pipeline.pages import told
from pipeline.pages.parts import Code, Facts, Note, Page, Part, Section, Table, picture
from pipeline.shipment import read_json
from pipeline.swept import SHARE

CAPTIONS = {
    "losses": "Training loss by meta-step with its running median; below it validation with 95 % intervals.",
    "adaptation": "The headline of test episodes against inner steps, with 95 % intervals, above the untrained learner.",
    "classes": "The figure of every test class with its 95 % interval, the best first.",
    "confusion": "How often queries of the class of a row were taken for that of a column.",
    "roc": "Genuine pairs that are accepted against impostors that are, by threshold.",
    "scores": "How scores of genuine trials and of impostors are spread, and the threshold with as many errors of both.",
    "precision-recall": "Precision over recall by threshold.",
}
"""What a picture shows, by its file's name, in the order of the page."""
EPISODE = "episode-"


def page(run: Path) -> Page:
    """The page of a run's folder, whatever became of it."""
    past, result = spool.history(run), result_of(run)
    config = told.text_of(run / CONFIG_FILE)
    sections = [
        Section("Summary", [Facts({**told.times(run, past), **_reached(past), **_what(past), **_headline(result)})]),
        Section("Warnings", [*_failures(run, past), *told.warnings(run, past)]),
        Section("Results", figures(run, result)),
        Section("Pictures", pictures(run, past)),
        Section("Time and memory", _costs(past, result)),
        Section("Config", [Code(CONFIG_FILE, config)] if config else []),
        Section("Environment", told.environment(past)),
        Section("MLflow", told.tracked(run, past)),
        Section("Reproduce", _again(run, past, config)),
    ]
    name = past.params.get("name", run.name)
    return Page(run.name, f"Run of {name}: {told.STATES[told.status_of(run, past)]}.", sections)


def figures(run: Path, result: Mapping[str, Any]) -> list[Part]:
    """The test figures of a run in both modes, by data set where there are several, and what was measured later."""
    parts: list[Part] = []
    if result:
        shape = f"{result['test']['split']} episodes, {in_words(result['test'])}"
        parts.append(Table(f"Of the checkpoint {result['checkpoint']}: {shape}", tables.results(result), numbers=2))
    if by_data := result.get("data"):
        parts.append(Table("By data set", tables.scores(by_data), numbers=4))
    later = {file.stem: read_json(file) for file in sorted((run / "evaluations").glob("*.json"))}
    later = {name: found for name, found in later.items() if found and "pairs" not in found}
    if later:
        parts.append(Table("Measured later, with metashard evaluate", tables.scores(later), numbers=4))
    return parts


def pictures(run: Path, past: spool.History) -> list[Part]:
    """The pictures that a run drew at its end; of one that has none its losses so far."""
    found = {file.stem: file for file in (run / "pictures").glob("*.png")}
    order = [*CAPTIONS, *sorted(found.keys() - CAPTIONS.keys())]
    parts: list[Part] = []
    for name in order:
        if name in found:
            alt, caption = _in_words(found[name], past)
            parts.append(picture(found[name], alt, caption))
        elif name == "losses" and past.series.get("train/loss"):
            parts.append(_losses_so_far(run, past))
    return parts


def _losses_so_far(run: Path, past: spool.History) -> Part:
    from pipeline import charts  # matplotlib takes a second

    try:
        with tempfile.TemporaryDirectory() as folder:
            path = charts.losses(Path(folder) / "losses.png", run, "score")[0]
            return picture(path, _alt_of_losses(past), CAPTIONS["losses"])
    # Whatever goes wrong here, the page has its figures.
    except Exception as error:
        return Note(f"The losses could not be drawn ({type(error).__name__}: {error})", is_warning=True)


def _in_words(file: Path, past: spool.History) -> tuple[str, str]:
    """What those hear who do not see a picture, and what stands below it."""
    name = file.stem
    if name == "losses":
        return _alt_of_losses(past), CAPTIONS[name]
    if name in CAPTIONS:
        return f"{CAPTIONS[name]} The numbers are in {name}.csv.", CAPTIONS[name]
    beside = read_json(file.with_suffix(".json"))
    if name.startswith(EPISODE) and isinstance(beside.get("classes"), list):
        classes = ", ".join(map(str, beside["classes"]))
        scores = [f"{key} {shown(key, v)}" for key, v in beside.items() if isinstance(v, float) and key != "episode"]
        told_of = f"The {name.removeprefix(EPISODE)} test episode, {', '.join(scores)}: {classes}."
        return f"{told_of} Support above, queries below, before and after adapting.", told_of
    words = name.replace("-", " ")
    return f"Picture: {words}.", f"{words[:1].upper()}{words[1:]}."


def _alt_of_losses(past: spool.History) -> str:
    losses = [value for value in past.series.get("train/loss", {}).values() if math.isfinite(value)]
    scores = [value for value in past.series.get(SHARE, {}).values() if math.isfinite(value)]
    said = f"Training loss, {losses[0]:.3f} at first and {losses[-1]:.3f} at last" if losses else "Training loss"
    return said + (f"; validation from {100 * scores[0]:.1f} to {100 * scores[-1]:.1f} %." if scores else ".")


def result_of(run: Path) -> dict[str, Any]:
    """What `result.json` tells; empty where the run has none."""
    result = read_json(run / RESULT_FILE)
    return result if isinstance(result, dict) and "test" in result else {}


def _reached(past: spool.History) -> dict[str, str]:
    """How far training came, and the best validation."""
    steps = max(past.series.get("train/loss", {}), default=0)
    facts = {"Meta-steps": f"{steps} of {past.params.get('meta.steps', '?')}"}
    scores = {step: v for step, v in past.series.get(SHARE, {}).items() if math.isfinite(v)}
    if scores:
        best = max(scores, key=lambda step: scores[step])
        spread = past.series.get("validation/interval", {}).get(best, math.nan)
        within = f" ± {100 * spread:.2f}" if math.isfinite(spread) else ""
        facts["Best validation"] = f"{100 * scores[best]:.2f}{within} % at meta-step {best}"
    return facts


def _what(past: spool.History) -> dict[str, str]:
    """What learned what, in a few words."""
    params = past.params
    kinds = {"Task": "task.kind", "Model": "model.kind", "Learner": "learner.kind", "Data": "data.root", "Seed": "seed"}
    return {name: params[key] for name, key in kinds.items() if key in params}


def _headline(result: Mapping[str, Any]) -> dict[str, str]:
    if not result:
        return {"Test": "not measured: a run is when its training has ended"}
    test = result["test"]
    metric = test["metric"]
    return {f"Test {metric}, {mode}": f"{ranged(metric, test[mode][metric])}" for mode in ("inductive", "transductive")}


def _failures(run: Path, past: spool.History) -> list[Part]:
    """What went wrong in the workers, in all starts of the run, and meta-steps that were skipped."""
    said = [f"After meta-step {f.step}, rank {f.rank}: {f.said}" for f in failures.every(run)]
    skipped = sum(value for value in past.series.get("train/skipped", {}).values() if math.isfinite(value))
    if skipped:
        said.append(f"{skipped:.0f} meta-steps were skipped: their loss or gradient was not finite.")
    said += [f"{file.stem} stood still: {told.text_of(file).partition(chr(10))[0]}" for file in _stacks(run)]
    if told.status_of(run, past) not in ("RUNNING", "FINISHED"):
        said.append(f"The run has not ended; go on with: metashard train CONFIG --resume {shlex.quote(str(run))}")
    return [Note(text, is_warning=True) for text in said]


def _stacks(run: Path) -> list[Path]:
    return sorted((run / STACKS).glob("rank-*.txt"))


def _costs(past: spool.History, result: Mapping[str, Any]) -> list[Part]:
    """What the run took, as far as it was logged."""
    series = past.series
    facts = {}
    if steps := series.get("time/step_s"):
        facts["training"] = f"{sum(steps.values()):.1f} s in {len(steps)} meta-steps"
    if rates := series.get("time/episodes_per_s"):
        facts["episodes a second, median"] = f"{statistics.median(rates.values()):.2f}"
    if waits := series.get("time/data_wait_share"):
        facts["waiting for data, median"] = f"{100 * statistics.median(waits.values()):.1f} % of a meta-step"
    if held := series.get("system/process_memory_usage_megabytes"):
        facts["memory of the process, most"] = f"{max(held.values()):.0f} MB"
    if "evaluation_s" in result:
        facts["evaluation"] = f"{result['evaluation_s']:.1f} s"
    return [Facts(facts)] if facts else []


def _again(run: Path, past: spool.History, config: str) -> list[Part]:
    if not config:
        return [Note(f"{run} has no {CONFIG_FILE}, so it cannot be said how to do it again.", is_warning=True)]
    parts = [told.commands(past, "train", CONFIG_FILE, config), *told.data_hint(told.tree_of(config), past)]
    if maker := past.tags.get("make_learner"):
        parts.append(
            Note(f"The learner was made by {maker}, not by the config: call train.fit with it.", is_warning=True)
        )
    for part in ("start", "teacher"):
        if file := past.tags.get(f"{part}.file"):
            parts.append(Note(f"{part} was {file}, sha256 {json.dumps(past.tags.get(f'{part}.sha256', '?'))}."))
    exact = "With the same versions, threads, engine and CPU type it ends with the same parameters, bit for bit."
    return [*parts, Note(exact)]
