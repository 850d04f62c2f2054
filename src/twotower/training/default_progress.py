"""Which callback shows a training's progress: a bar in a terminal, a table in a notebook, or nothing."""

import sys
from typing import Literal

from twotower.errors import ArgumentError
from twotower.training.callbacks import Callback


def callback_of(
    progress: Callback | Literal["auto", "bar"] | None, *, tuning: bool = False
) -> Callback:
    """Return what is told how a training goes.

    Args:
        progress: ``"auto"`` is a bar in a terminal or a notebook, and nothing elsewhere; ``"bar"`` is a bar
            everywhere; None is nothing; a callback is itself.
        tuning: Whether it is a search of settings.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(progress, Callback):
        return progress
    if progress not in ("auto", "bar", None):
        raise ArgumentError(
            f"progress must be 'auto', 'bar', None or a twotower.Callback, got {progress!r}."
        )
    # rich is imported only where it is used: importing the library must stay quick
    if progress is not None and in_notebook():
        from twotower.training.notebook import NotebookProgress

        return NotebookProgress()
    if progress is None or (progress == "auto" and not sys.stdout.isatty()):
        return Callback()
    from twotower.training.progress import ProgressBar, TuningBar

    return TuningBar() if tuning else ProgressBar()


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, which shows HTML."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None
