"""The command line: one file a command.

Exit codes: 0 well, 1 unexpected, 2 the input was wrong, 3 the doctor found what it was told to fail on.
"""

import sys
from typing import Annotated

import typer

from twotower.cli import (
    compare,
    config,
    data,
    doctor,
    evaluate,
    explain,
    export,
    inspect,
    recommend,
    report,
    serve,
    similar,
    snapshot,
    train,
    tune,
)
from twotower.errors import TwoTowerError
from twotower.version import __version__

app = typer.Typer(
    help="Two-tower retrieval: from a table of interactions to a trained, evaluated model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
COMMANDS = (
    train,
    tune,
    evaluate,
    report,
    compare,
    doctor,
    recommend,
    similar,
    explain,
    serve,
    snapshot,
    export,
    inspect,
    data,
    config,
)
for module in COMMANDS:
    app.command(module.NAME)(module.command)

EXIT_INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"twotower {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Two-tower retrieval: from a table of interactions to a trained, evaluated model."""


def main() -> None:
    """Run the command line and exit."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except (TwoTowerError, ValueError) as error:
        message = str(error)
        # Settings come as a list of problems, filters with a line of carets.
        end = "" if message.endswith((".", "?", "^")) else "."
        typer.echo(f"twotower: {message}{end}", err=True)
        interrupted = type(error).__name__ == "NothingLearntError"
        sys.exit(EXIT_INTERRUPTED if interrupted else 2)
