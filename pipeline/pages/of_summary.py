"""The page of what several runs say together: a comparison, a table of runs by data sets, a summary of seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import compare, seeds, spool, table, tables
from pipeline.errors import InputError
from pipeline.judging import ranged
from pipeline.learners.learner import Mode
from pipeline.pages import told
from pipeline.pages.parts import Code, Facts, Note, Page, Part, Section, Table, picture
from pipeline.shipment import read_json
from pipeline.tables import Grid

SIZES = ("ways", "shots", "queries")


def page(folder: Path) -> Page:
    """The page of the folder that `compare`, `evaluate --table` or a summary of seeds has left.

    Raises:
        InputError: it is none of these, or has no result.
    """
    past = spool.history(folder)
    kind = past.tags.get(spool.KIND, "")
    match kind:
        case compare.NAME:
            result = _result(folder, compare.RESULT_FILE)
            title, parts, again = "Comparison of runs", _compared(folder, result), _compare(result)
        case table.NAME:
            result = _result(folder, table.RESULT_FILE)
            title, parts, again = "Table of runs by data sets", _by_data(result), _table(result)
        case seeds.NAME:
            result = _result(folder, seeds.RESULT_FILE)
            title, parts, again = "Summary of several seeds", _by_seed(result), _seeds(result)
        case _:
            raise InputError(
                f"{folder} is of kind {kind!r}, of which there is no page; name a run, a sweep or a comparison"
            )
    command = Code("Beside those runs, which must be there", told.command_line(["metashard", *again]))
    sections = [
        Section("Summary", [Facts({**told.times(folder, past), **past.params})]),
        Section("Warnings", told.warnings(folder, past)),
        Section("Results", parts),
        Section("Environment", told.environment(past)),
        Section("MLflow", told.tracked(folder, past)),
        Section(
            "Reproduce", [command, Note("Frozen episodes are the same on every machine, and so are these figures.")]
        ),
    ]
    return Page(folder.name, f"{title}.", sections)


def _result(folder: Path, name: str) -> dict[str, Any]:
    result = read_json(folder / name)
    if not result:
        raise InputError(f"{folder} has no whole {name}, so there is nothing to tell; measure again")
    return result


def _compared(folder: Path, result: Mapping[str, Any]) -> list[Part]:
    caption = f"{tables.comparison_title(result)}; differences from the first run on the same episodes, in points"
    alt = f"Differences of {result['metric']} from the first run with their 95 % intervals; the table has the figures."
    shown = picture(folder / compare.PICTURE_FILE, alt, "Differences from the first run, with 95 % intervals.")
    return [Table(caption, tables.comparison(result), numbers=3), shown]


def _by_seed(result: Mapping[str, Any]) -> list[Part]:
    caption = f"{tables.seeds_title(result)}; ± sd: how far a seed's value lies from the mean of all seeds"
    runs = Grid(("seed", "run", "checkpoint"), [(str(r["seed"]), r["run"], r["checkpoint"]) for r in result["runs"]])
    return [Table(caption, tables.seeds(result), numbers=2), Table("The runs", runs, numbers=3)]


def _by_data(result: Mapping[str, Any]) -> list[Part]:
    names = [data["name"] for data in result["data"]]
    found: list[Part] = []
    for mode in Mode:
        rows = []
        for run in result["runs"]:
            own = [run["data"][name] for name in names]
            rows.append((run["run"], *(ranged(each["metric"], each[mode.value][each["metric"]]) for each in own)))
        first = result["runs"][0]["data"][names[0]]
        caption = (
            f"{first['metric']} ± 95 %, {mode.value}, {first[mode.value][first['metric']]['episodes']} episodes a cell"
        )
        found.append(Table(caption, Grid(("run", *names), rows)))
    data = [(each["name"], each["root"], each["split"], each["data_fingerprint"]) for each in result["data"]]
    return [*found, Table("The data sets", Grid(("name", "root", "split", "fingerprint"), data), numbers=4)]


def _compare(result: Mapping[str, Any]) -> list[object]:
    modes = [mode for mode in Mode if mode.value in result]
    runs = [row["run"] for row in result[modes[0].value]]
    mode = "both" if len(modes) > 1 else modes[0].value
    return ["compare", *runs, *_measured(result), "--mode", mode]


def _seeds(result: Mapping[str, Any]) -> list[object]:
    return ["evaluate", *(run["run"] for run in result["runs"]), *_measured(result)]


def _table(result: Mapping[str, Any]) -> list[object]:
    first = result["data"][0]
    own = result["runs"][0]["data"][first["name"]]
    data = [word for each in result["data"] for word in ("--data", f"{each['root']}:{each['split']}")]
    episodes = own[Mode.INDUCTIVE.value][own["metric"]]["episodes"]
    words = _measured({**own, "episodes": episodes}, has_split=False)
    return ["evaluate", *(run["run"] for run in result["runs"]), "--table", *data, *words]


def _measured(result: Mapping[str, Any], *, has_split: bool = True) -> list[object]:
    """The options that say what was measured on."""
    words: list[object] = ["--split", result["split"]] if has_split else []
    words += ["--episodes", result["episodes"]]
    # Where sizes are drawn for every episode, those of the config are bounds.
    sizes = ("shape",) if "shape" in result else SIZES
    return [*words, *(word for name in sizes for word in (f"--{name}", result[name]))]
