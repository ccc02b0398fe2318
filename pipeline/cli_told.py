"""The verbs that tell what runs there are: what each takes; their work lies in their own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_runs import Runs

app = typer.Typer()


@app.command(name="runs", epilog="Example: metashard runs sweep-20260101-120000-ab12")
def list_runs(
    sweep: Annotated[Path | None, typer.Argument(help="a sweep, for its trials; none: all runs and sweeps")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """List the runs and sweeps with their key figures, or the trials of a sweep."""
    from pipeline import report, swept

    if sweep is None:
        report.print_runs(report.runs(runs))
    else:
        report.print_trials(swept.read(report.find(sweep, runs)))


@app.command(name="report", epilog="Example: metashard report glyphs-20260101-120000-ab12 --out glyphs.html")
def write_report(
    target: Annotated[Path, typer.Argument(help="id or folder of a run, a sweep, a comparison, a table or a summary")],
    out: Annotated[
        Path | None, typer.Option(help="HTML file, or a folder for it; none: report.html in the run's folder")
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write one self-contained HTML page: figures, pictures, config, environment, and the command to do it again."""
    from pipeline import page

    print(page.tell(target, runs, out))


@app.command(epilog="Example: metashard ui --port 5000")
def ui(
    runs: Runs = Path("runs"),
    uri: Annotated[str, typer.Option(help="MLflow tracking URI; empty: sqlite under the runs folder")] = "",
    port: Annotated[int, typer.Option(help="0: a free one")] = 0,
) -> None:
    """Open MLflow's pages on this machine until Ctrl-C."""
    from pipeline import report

    report.ui(runs, uri, port)


@app.command(epilog="Example: metashard fetch s3://bucket/runs/glyphs-20260101-120000-ab12")
def fetch(
    run: Annotated[str, typer.Argument(help="URL of a run in the store that its config names as mirror")],
    runs: Runs = Path("runs"),
) -> None:
    """Bring a run out of a store, to evaluate it here or to go on with it."""
    from pipeline import mirror
    from pipeline.data.root import Url

    print(mirror.fetch(Url(run), runs))


@app.command(epilog="Example: metashard sync")
def sync(
    run: Annotated[Path | None, typer.Argument(help="a run; none: all of them")] = None,
    uri: Annotated[str, typer.Option(help="MLflow tracking URI; empty: the one each run was started with")] = "",
    runs: Runs = Path("runs"),
) -> None:
    """Send MLflow, and the run's copy in a store, what they have not got yet, as after an outage."""
    from pipeline import report

    for line in report.sync(runs, run, uri):
        print(line)
