"""The verb `report`: one self-contained HTML page of a run, a sweep, or what several runs say together."""

from __future__ import annotations

from pathlib import Path

from pipeline import report, spool, swept
from pipeline.errors import InputError
from pipeline.pages import of_run, of_summary, of_sweep
from pipeline.pages.parts import Page, write

FILE = "report.html"
ENDINGS = (".html", ".htm")


def tell(target: Path, runs: Path, out: Path | None = None) -> Path:
    """Write the page of the run or sweep that a person names, by its id under `runs` or its folder; the file written.

    `out` is a file or a folder; none: `report.html` in the run's own folder.

    Raises:
        InputError: there is no such run, it is of a kind of which there is no page, or the file cannot be written.
    """
    folder = report.find(target, runs)
    if out is None:
        path = folder / FILE
    elif out.is_dir():
        path = out / f"{folder.resolve().name}.html"
    elif out.suffix in ENDINGS:
        path = out
    else:
        raise InputError(f"--out {out}: pages are HTML; name a file that ends with .html, or a folder that is there")
    return write(made(folder), path)


def made(folder: Path) -> Page:
    """The page of a run's folder by its kind."""
    past = spool.history(folder)
    if spool.KIND not in past.tags:
        return of_run.page(folder)
    return of_sweep.page(folder) if swept.is_sweep(past) else of_summary.page(folder)
