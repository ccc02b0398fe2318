"""The command line `metashard`: its verbs, those of clusters too, and how errors are told."""

from __future__ import annotations

import sys

import typer

from cluster import cli as cluster
from cluster.errors import SubmitError
from pipeline import cli_choose, cli_data, cli_runs, cli_told, cli_use
from pipeline.errors import InputError, RunFailed

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Meta-train few-shot vision models on a cluster. Exit codes: 0 done, 1 failed, 2 the input was wrong.",
)

for verbs in (cli_data.app, cli_runs.app, cli_told.app, cli_choose.app, cli_use.app, cluster.app):
    app.add_typer(verbs)

INTERRUPTED = 130
"""The code that typer ends with after Ctrl-C, without a word."""


def main() -> None:
    """Run the command line; a fault in the user's input is one line and exit code 2, anything else a traceback and 1."""
    try:
        app()
    except (InputError, SubmitError) as error:
        print(f"metashard: {error}", file=sys.stderr)
        sys.exit(2)
    except RunFailed as error:
        print(f"metashard: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as left:
        if left.code == INTERRUPTED:
            print("metashard: interrupted", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
