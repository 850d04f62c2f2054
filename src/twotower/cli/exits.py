"""Exit codes: what each says, and which one an error gets."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from twotower.errors import ConfigError, NothingLearntError, TwoTowerError
from twotower.paths import is_utf8, shown
from twotower.version import __version__

DONE = 0
PIPE_CLOSED = 1
REFUSED = 2
FOUND = 3
STOPPED_EARLY = 4
BUG = 70
INTERRUPTED = 130
TERMINATED = 143

MEANINGS = {
    DONE: "The command did what it says.",
    PIPE_CLOSED: "The program that reads the output closed it, as head does.",
    REFUSED: "The input was wrong: an option, a setting, a table, a bundle. One sentence says why.",
    FOUND: "A check failed: doctor found what --fail-on names, or update or rerank refused the result.",
    STOPPED_EARLY: "Ctrl-C or --minutes ended the training. The bundle is written; --resume goes on.",
    BUG: "A bug in twotower. The standard error has the trace to report.",
    INTERRUPTED: "Ctrl-C ended the command before it wrote anything.",
    TERMINATED: "SIGTERM ended the command. train goes on when it is repeated, tune with --resume.",
}
"""Every exit code, in the order of the documentation."""

DEBUG = "TWOTOWER_DEBUG"
"""Environment variable: at 1, the trace of every error is printed, also of one that a sentence explains."""


def table() -> str:
    """Return the exit codes for the end of ``--help``."""
    codes = "\n\n".join(f"{code}  {text}" for code, text in MEANINGS.items())
    return f"Exit codes:\n\n{codes}\n\n{DEBUG}=1 prints the trace of an error, too."


def code_of(error: BaseException) -> int:
    """Print what a person must know of an error, and return the exit code for it.

    Only our own errors are mistakes in the input. Any other error is a bug, whatever its type.
    """
    if isinstance(error, BrokenPipeError):
        # Nobody reads what is left; Python would complain when it writes that at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return PIPE_CLOSED
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, TwoTowerError):
        if os.environ.get(DEBUG) == "1":
            traceback.print_exception(error)
        message = str(error)
        # Settings come as a list of problems, filters with a line of carets.
        end = "" if message.endswith((".", "?", "^")) else "."
        typer.echo(f"twotower: {message}{end}", err=True)
        return INTERRUPTED if isinstance(error, NothingLearntError) else REFUSED
    traceback.print_exception(error)
    typer.echo(
        f"twotower: this is a bug in twotower {__version__}, not a mistake in your input. Please report "
        "it to the project with the trace above, the command, and what the tables look like.",
        err=True,
    )
    return BUG


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments that are not UTF-8: no bundle, report or JSON could name them.

    Raises:
        ConfigError: One is not.
    """
    for argument in arguments:
        if not is_utf8(argument):
            raise ConfigError(
                f"arguments must be UTF-8, got {shown(argument)!r}; if it names a file, rename it."
            )


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as an exception does: temporary files are removed on the way."""
    if threading.current_thread() is not threading.main_thread():  # others cannot be told
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
