"""What a terminal shows of a training, and of a search of settings: decisions, a bar, lines, figures."""

from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.control import Control
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.segment import ControlType
from rich.table import Table

from twotower.caller import argument
from twotower.config import Config
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset
from twotower.evaluation.figures import Figures
from twotower.evaluation.screen import figures_table, footnotes
from twotower.features.schema import Feature
from twotower.toml import toml_value
from twotower.training.callbacks import STEPS_A_READING, Callback
from twotower.training.checkpoints import Progress as TrainingProgress
from twotower.training.study import Trial, changes

_BEST_SHOWN = 5

_ENDS = {"pruned": "worse than most", "cut": "not finished"}  # the others are said as they are


class ProgressBar(Callback):
    """Tells on a console how a training goes.

    Args:
        console: Where to; by default the standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._phase = ""
        self._is_waiting = False
        self._bar: Progress | None = None
        self._loss = float("nan")

    def on_data(
        self, dataset: Dataset, decisions: tuple[Decision, ...], features: tuple[Feature, ...]
    ) -> None:
        """Print which column is what, and why."""
        self._print(f"[bold]{escape(dataset.name)}[/]: {dataset.sizes}")
        self._print(columns_table(decisions))
        rows = [feature for feature in features if feature.meaning != "id"]
        if rows:
            table = Table(
                "feature", "side", "kind", "because", title="Features", title_justify="left"
            )
            for feature in rows:
                kind = "shown only" if feature.meaning == "shown" else feature.described
                table.add_row(escape(feature.name), feature.side, kind, escape(feature.reason))
            self._print(table)
        for note in dataset.notes:
            self._print(note, markup=False)

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:  # noqa: ARG002
        """Print what every ``auto`` became."""
        for choice in choices:
            self._print(f"  {choice}", markup=False)

    def on_phase(self, phase: str) -> None:
        """Name the phase: on a terminal, until something else is printed; else before its epochs."""
        self._phase = phase
        self._erase()
        if self.console.is_terminal:
            width = self.console.width - 2
            self.console.print(f"{phase}…"[:width], end="\r", markup=False, highlight=False)
            self._is_waiting = True

    def _erase(self) -> None:
        """Take the name of a phase away."""
        if self._is_waiting:
            self.console.control(Control((ControlType.ERASE_IN_LINE, 2)))
            self._is_waiting = False

    def _print(self, *said: Any, **style: Any) -> None:
        self._erase()
        self.console.print(*said, highlight=False, **style)

    def on_start(self, steps_per_epoch: int, progress: TrainingProgress) -> None:
        """Show the bar."""
        if self._phase not in ("", "training"):  # there are several
            self._print(f"{self._phase[:1].upper()}{self._phase[1:]}:", markup=False)
        self._erase()
        if progress.epoch:
            self._print(f"Going on after epoch {progress.epoch}.")
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]}"),
            console=self.console,
            transient=True,
            refresh_per_second=4,
        )
        self._bar.add_task(
            "", total=steps_per_epoch, epoch=progress.epoch + 1, loss=float("nan"), rate=""
        )
        self._examples = 0
        self._bar.start()

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        (task,) = self._bar.tasks
        self._examples += examples
        if step % STEPS_A_READING == 0:
            self._loss = loss()
            elapsed = task.elapsed or 0.0
            rate = f"{self._examples / elapsed:,.0f} examples/s" if elapsed > 0.5 else ""
            self._bar.update(task.id, loss=self._loss, rate=rate)
        self._bar.update(task.id, completed=step + 1)

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Print one line for the epoch."""
        found = (
            f"  validation {name.removeprefix('valid_')} {value:.4f}"
            for name, value in record.items()
            if name.startswith("valid_")
        )
        beside = record.get("closed_form")
        of_sum = "" if beside is None else f", sum {beside['metric']:.4f}"
        self._print(  # as wide as a terminal of 80 columns
            f"epoch {record['epoch']:>2}  loss {record['loss']:.4f}  "
            f"{record['examples_per_second']:>7,.0f} examples/s{next(found, '')}{of_sum}"
        )
        self._start_again(record)

    def _start_again(self, record: dict[str, Any]) -> None:
        """Empty the bar after an epoch."""
        if self._bar is not None:
            self._examples = 0
            (task,) = self._bar.task_ids
            self._bar.reset(task, epoch=record["epoch"] + 1, loss=self._loss, rate="")

    def on_end(self) -> None:
        """Take the bar and the name of a phase away."""
        self._erase()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_figures(self, figures: Figures, stopped_early: bool) -> None:
        """Print the model beside the baselines, and what that says."""
        if stopped_early:
            self._print("Interrupted: the best weights so far are kept.")
        self._print(figures_table(figures))
        for note in footnotes(figures):
            self._print(note, markup=False, soft_wrap=True)


class TuningBar(ProgressBar):
    """Tells on a console how a search goes.

    Args:
        console: Where to; by default the standard output.
    """

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:
        """Print what every ``auto`` became, and what is searched."""
        super().on_choices(choices, config)
        self._default = config

    def on_start(self, steps_per_epoch: int, progress: TrainingProgress) -> None:
        """Show the bar, where one can be taken away again."""
        self._erase()
        if self.console.is_terminal:
            self._phase = ""  # a trial has a line of its own when it ends
            super().on_start(steps_per_epoch, progress)

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Start the bar again; an epoch is not worth a line here."""
        self._start_again(record)

    def on_trial(self, trial: Trial) -> None:
        """Print one line for the trial."""
        found = "  none" if trial.metric is None else f"{trial.metric:.4f}"
        self._print(
            f"trial {trial.number:>3}  validation {self._default.training.metric} {found}  "
            f"{trial.epochs:>2} epochs, {_ENDS.get(trial.end, trial.end)}; {_others(trial, self._default)}",
            markup=False,
        )

    def on_trials(self, trials: tuple[Trial, ...], default: Config) -> None:
        """Print the best trials, and what the best has otherwise than the default."""
        table = Table("trial", default.training.metric, "epochs", "ended", "other than the default")
        table.title, table.title_justify = f"Best of {len(trials)} trials, on validation", "left"
        for trial in trials[:_BEST_SHOWN]:
            metric = "" if trial.metric is None else f"{trial.metric:.4f}"
            row = (str(trial.number), metric, str(trial.epochs), _ENDS.get(trial.end, trial.end))
            table.add_row(*row, _others(trial, default))
        self._print(table)
        changed = changes(trials[0], default)
        if not changed:
            said = "The default settings were the best."
            if len(trials) == 1:
                said = f"Only the default settings were tried; give it more {argument('minutes')}."
            self._print(said)
            return
        table = Table("setting", "default", "chosen", title="Chosen", title_justify="left")
        for name, (before, chosen) in changed.items():
            table.add_row(name, _say(before), _say(chosen))
        self._print(table)


def _others(trial: Trial, default: Config) -> str:
    """Return what a trial has otherwise than the default."""
    changed = changes(trial, default)
    said = (f"{name.partition('.')[2]} {_say(chosen)}" for name, (_, chosen) in changed.items())
    return ", ".join(said) or "the default settings"


def _say(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else toml_value(value).strip('"')


def columns_table(decisions: Iterable[Decision]) -> Table:
    """Return which column is what, and why, as a table for a terminal."""
    table = Table("column", "is the", "because", title="Columns", title_justify="left")
    for decision in decisions:
        if decision.column is not None:
            table.add_row(escape(decision.column), _role(decision), escape(decision.reason))
    return table


def _role(decision: Decision) -> str:
    if decision.role is None:
        return "[dim]not used[/]"
    return {"query": "query id", "item": "item id"}.get(decision.role.value, decision.role.value)
