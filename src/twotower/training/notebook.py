"""What a notebook shows of a training, and which progress is shown where: there, in a terminal, or none."""

import sys
import time
from collections.abc import Callable
from html import escape
from typing import Any, Literal

from twotower import html
from twotower.config import Config
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset
from twotower.errors import ArgumentError
from twotower.evaluation.figures import Figures, Measured
from twotower.features.schema import Feature
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.study import Trial

_SECONDS = 0.25
"""Between two writings within an epoch."""


class NotebookProgress(Callback):
    """Shows in a notebook how a training goes: each phase by its name, a bar, a line when it is done.

    It writes one piece of HTML again and again.
    """

    def __init__(self) -> None:
        self._head: list[str] = []
        self._decided: list[str] = []
        self._done: list[str] = []
        self._phase, self._now = "", ""
        self._handle: Any = None
        self._written = -_SECONDS
        self._steps = self._epoch = self._examples = 0
        self._metric, self._best, self._best_epoch = "", float("-inf"), 0
        self._started = self._began = time.monotonic()

    def on_data(
        self, dataset: Dataset, decisions: tuple[Decision, ...], features: tuple[Feature, ...]
    ) -> None:
        """Show the sizes, and folded which column is what, and why."""
        roles = [
            (d.column, "not used" if d.role is None else d.role.value, d.reason)
            for d in decisions
            if d.column is not None
        ]
        read = [
            (f.name, f"{f.side}, {f.described}", f.reason) for f in features if f.meaning != "id"
        ]
        self._head = [
            html.text(f"{dataset.name}: {dataset.sizes}", bold=True),
            html.fold(
                f"{len(roles)} columns and {len(read)} features",
                html.table([*roles, *read], header=("column", "is", "because")),
            ),
            *(html.text(note, quiet=True) for note in dataset.notes),
        ]
        self._write()

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:  # noqa: ARG002
        """Show, folded, what was decided."""
        self._decided += [html.text(choice) for choice in choices]
        self._write()

    def on_phase(self, phase: str) -> None:
        """Name the phase."""
        self._phase, self._now = phase, ""
        self._write()

    def on_start(self, steps_per_epoch: int, progress: Progress) -> None:
        """Show the bar."""
        self._steps, self._epoch, self._examples = steps_per_epoch, progress.epoch, 0
        self._metric, self._best, self._best_epoch = "", float("-inf"), 0
        self._started = self._began = time.monotonic()
        self._write()

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:
        """Move the bar, now and then."""
        self._examples += examples
        now = time.monotonic()
        if now - self._written < _SECONDS:
            return
        rate = self._examples / max(now - self._began, 1e-9)
        said = f"epoch {self._epoch + 1}, loss {loss():.4f}, {rate:,.0f} examples/s"
        self._now = f'<progress value="{step + 1}" max="{self._steps}"></progress> {escape(said)}'
        self._write()

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Show the epoch's figures."""
        name, value = next((k, v) for k, v in record.items() if k.startswith("valid_"))
        self._epoch, self._metric = int(record["epoch"]), name.removeprefix("valid_")
        said = f"validation {self._metric} {value:.4f}"
        if (beside := record.get("closed_form")) is not None:
            said += f", {beside['metric']:.4f} with a closed form"
            value = max(value, beside["metric"])
        if value > self._best:
            self._best, self._best_epoch = value, self._epoch
        self._now = escape(f"epoch {self._epoch}, loss {record['loss']:.4f}, {said}")
        self._examples, self._began = 0, time.monotonic()
        self._write()

    def on_end(self) -> None:
        """Leave a line about the training."""
        if self._metric:
            seconds = time.monotonic() - self._started
            self._done.append(
                html.text(
                    f"{self._phase}: {self._epoch} epochs in {seconds:.0f} s, validation {self._metric} "
                    f"{self._best:.4f} in epoch {self._best_epoch}"
                )
            )
        self._phase = self._now = ""
        self._write()

    def on_figures(self, figures: Figures, stopped_early: bool) -> None:
        """Show the model beside the baselines."""
        if stopped_early:
            self._done.append(html.text("Interrupted: the best weights so far are kept."))
        shown = Measured(figures)
        self._done += [html.text(shown["verdict"]), html.fold("the figures", shown._repr_html_())]
        self._phase = self._now = ""
        self._write()

    def on_trial(self, trial: Trial) -> None:
        """Leave a line about the trial, in place of that about its training."""
        found = "none" if trial.metric is None else f"{trial.metric:.4f}"
        said = f"trial {trial.number}: validation {found}, {trial.epochs} epochs, {trial.end}"
        self._done = [*self._done[:-1], html.text(said)] if self._metric else self._done
        self._metric = ""
        self._write()

    def page(self) -> str:
        """Return what is shown now."""
        parts = list(self._head)
        if self._decided:
            parts.append(html.fold(f"{len(self._decided)} settings decided", *self._decided))
        parts += self._done
        if self._phase:
            parts.append(f"<div><b>{escape(self._phase)}</b> {self._now or '…'}</div>")
        return html.block(*parts)

    def _write(self) -> None:
        from IPython import display as notebook  # it is there where a notebook is

        shown: Any = notebook

        self._written = time.monotonic()
        page = shown.HTML(self.page())
        if self._handle is None:
            self._handle = shown.display(page, display_id=True)
        else:
            self._handle.update(page)


def callback_of(
    progress: Callback | Literal["auto", "bar"] | None, *, tuning: bool = False
) -> Callback:
    """Return the callback that shows how a training goes.

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
