"""What a person sees while settings are searched: a bar, a trial a line, the best trials."""

from typing import Any

from rich.table import Table

from twotower.caller import argument
from twotower.config import Config
from twotower.toml import toml_value
from twotower.training.checkpoints import Progress
from twotower.training.progress import ProgressBar
from twotower.training.study import Trial, changes

_BEST_SHOWN = 5

_ENDS = {
    "finished": "finished",
    "pruned": "worse than most",
    "diverged": "diverged",
    "cut": "not finished",
}


class TuningBar(ProgressBar):
    """Tells on a console how a search goes.

    Args:
        console: Where to; by default the standard output.
    """

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:
        """Print what every ``auto`` became, and what is searched."""
        super().on_choices(choices, config)
        self._default = config
        self._metric = config.training.metric

    def on_start(self, steps_per_epoch: int, progress: Progress) -> None:
        """Show the bar, where one can be taken away again."""
        self._erase()
        if self.console.is_terminal:
            self._phase = ""  # a trial has a line of its own when it ends
            super().on_start(steps_per_epoch, progress)

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Start the bar again; an epoch is not worth a line here."""
        if self._bar is not None and self._task is not None:
            self._examples = 0
            self._bar.reset(self._task, epoch=record["epoch"] + 1, loss=self._loss, rate="")

    def on_trial(self, trial: Trial) -> None:
        """Print one line for the trial."""
        found = "  none" if trial.metric is None else f"{trial.metric:.4f}"
        self._print(
            f"trial {trial.number:>3}  validation {self._metric} {found}  "
            f"{trial.epochs:>2} epochs, {_ENDS[trial.end]}; {_others(trial, self._default)}",
            highlight=False,
            markup=False,
        )

    def on_trials(self, trials: tuple[Trial, ...], default: Config) -> None:
        """Print the best trials, and what the best has otherwise than the default."""
        table = Table("trial", self._metric, "epochs", "ended", "other than the default")
        table.title, table.title_justify = f"Best of {len(trials)} trials, on validation", "left"
        for trial in trials[:_BEST_SHOWN]:
            metric = "" if trial.metric is None else f"{trial.metric:.4f}"
            row = (str(trial.number), metric, str(trial.epochs), _ENDS[trial.end])
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
