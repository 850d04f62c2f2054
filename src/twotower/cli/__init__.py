"""The command line: one file a command, and ``exits`` for how each ends."""

import sys
from importlib import import_module
from typing import Annotated

import typer

from twotower.caller import called_from
from twotower.cli import exits, options
from twotower.processes.started import check_one_process
from twotower.version import __version__

app = typer.Typer(
    help="Two-tower retrieval: from a table of interactions to a trained, evaluated model.",
    epilog=exits.table(),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
COMMANDS = (
    "prepare",
    "train",
    "tune",
    "rerank",
    "update",
    "index",
    "evaluate",
    "report",
    "compare",
    "doctor",
    "recommend",
    "similar",
    "explain",
    "serve",
    "snapshot",
    "encode",
    "export",
    "inspect",
    "data",
    "config",
)
"""Each is a file in this folder, in the order of ``--help``."""
for name in COMMANDS:
    command = import_module(f"twotower.cli.{name}").command
    app.command(name)(options.with_options(command))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"twotower {__version__}")
        raise typer.Exit


@app.callback()
def before_any(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback shows it
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Two-tower retrieval: from a table of interactions to a trained, evaluated model."""
    context.with_resource(called_from("command line"))
    if context.invoked_subcommand != "train":
        check_one_process(str(context.invoked_subcommand))
    if context.invoked_subcommand != "serve":  # it finishes its requests first
        context.with_resource(exits.ends_on_sigterm())


def main() -> None:
    """Run the command line and exit; ``exits.MEANINGS`` lists the exit codes."""
    try:
        exits.check_arguments(sys.argv[1:])
        try:
            app()
        finally:
            sys.stdout.flush()  # a pipe that was closed shows here, and not after the end
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(exits.code_of(error))
