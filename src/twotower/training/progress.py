"""What a person sees while a model is trained: the decisions, a bar, an epoch a line, the figures."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from twotower.config import Config
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset
from twotower.evaluation.figures import Figures
from twotower.evaluation.screen import figures_table, footnotes
from twotower.features.schema import Feature
from twotower.training.checkpoints import Progress as TrainingProgress

_STEPS_A_READING = 20  # reading the loss waits for the device


class ProgressBar:
    """Tells on a console, in a terminal or in a notebook, how a training goes.

    Args:
        console: Where to; by default the standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._loss = float("nan")

    def on_data(
        self, dataset: Dataset, decisions: tuple[Decision, ...], features: tuple[Feature, ...]
    ) -> None:
        """Print which column is what, and why."""
        self.console.print(
            f"[bold]{escape(dataset.name)}[/]: {len(dataset.interactions):,} events, "
            f"{len(dataset.queries):,} queries, {len(dataset.items):,} items",
            highlight=False,
        )
        table = Table("column", "is the", "because", title="Columns", title_justify="left")
        for decision in decisions:
            if decision.column is not None:
                table.add_row(escape(decision.column), _role(decision), escape(decision.reason))
        self.console.print(table)
        rows = [feature for feature in features if feature.kind != "id"]
        if rows:
            table = Table(
                "feature", "side", "kind", "because", title="Features", title_justify="left"
            )
            for feature in rows:
                kind = "shown only" if feature.kind == "shown" else feature.described
                table.add_row(escape(feature.name), feature.side, kind, escape(feature.reason))
            self.console.print(table)
        for note in dataset.notes:
            self.console.print(note, highlight=False, markup=False)

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:  # noqa: ARG002
        """Print what every ``auto`` became."""
        for choice in choices:
            self.console.print(f"  {choice}", highlight=False, markup=False)

    def on_start(self, steps_per_epoch: int, progress: TrainingProgress) -> None:
        """Show the bar."""
        if progress.epoch:
            self.console.print(f"Going on after epoch {progress.epoch}.", highlight=False)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]}"),
            console=self.console,
            transient=True,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(
            "", total=steps_per_epoch, epoch=progress.epoch + 1, loss=float("nan"), rate=""
        )
        self._examples = 0
        self._bar.start()

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:
        """Move the bar."""
        if self._bar is None or self._task is None:
            return
        self._examples += examples
        if step % _STEPS_A_READING == 0:
            self._loss = loss()
            elapsed = self._bar.tasks[0].elapsed or 0.0
            rate = f"{self._examples / elapsed:,.0f} examples/s" if elapsed > 0.5 else ""
            self._bar.update(self._task, loss=self._loss, rate=rate)
        self._bar.update(self._task, completed=step + 1)

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Print one line for the epoch."""
        found = (
            f"  validation {name.removeprefix('valid_')} {value:.4f}"
            for name, value in record.items()
            if name.startswith("valid_")
        )
        self.console.print(
            f"epoch {record['epoch']:>3}  loss {record['loss']:.4f}  "
            f"{record['examples_per_second']:>9,.0f} examples/s{next(found, '')}",
            highlight=False,
        )
        if self._bar is not None and self._task is not None:
            self._examples = 0
            self._bar.reset(self._task, epoch=record["epoch"] + 1, loss=self._loss, rate="")

    def on_end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_figures(self, figures: Figures, stopped_early: bool) -> None:
        """Print the model beside the baselines, and what that says."""
        if stopped_early:
            self.console.print("Interrupted: the best weights so far are kept.")
        self.console.print(figures_table(figures))
        for note in footnotes(figures):
            self.console.print(note, highlight=False, markup=False, soft_wrap=True)


def _role(decision: Decision) -> str:
    if decision.role is None:
        return "[dim]not used[/]"
    return {"query": "query id", "item": "item id"}.get(decision.role.value, decision.role.value)
