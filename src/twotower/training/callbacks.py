"""``Callback``: the base class of progress bars and loggers, which follow a training."""

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twotower.caller import argument
from twotower.errors import ArgumentError, ConfigError

if TYPE_CHECKING:
    from twotower.config import Config
    from twotower.data.columns import Decision
    from twotower.data.dataset import Dataset
    from twotower.evaluation.figures import Figures
    from twotower.features.schema import Feature
    from twotower.training.checkpoints import Progress
    from twotower.training.study import Trial

STEPS_A_READING = 20
"""Steps after which the loss is read again: that waits for the device."""


class Callback:
    """Follows a training. Override the methods that you need; the others do nothing.

    ``train``, ``train_views`` and ``tune`` first call ``on_data`` and ``on_choices``. Each phase begins
    with ``on_phase``. A phase that trains then calls ``on_start``, ``on_step`` after each batch,
    ``on_epoch`` after each epoch, and ``on_end``. ``on_figures`` comes last. An exception that a method
    raises ends the training.

    Example:
        >>> class Losses(Callback):
        ...     def on_epoch(self, record):
        ...         print(record["epoch"], record["loss"])
    """

    def on_data(
        self, dataset: "Dataset", decisions: "tuple[Decision, ...]", features: "tuple[Feature, ...]"
    ) -> None:
        """The tables were read and split.

        Args:
            dataset: The split data set.
            decisions: The role of each column, and the reason for it.
            features: The columns that the model reads.
        """

    def on_choices(self, choices: tuple[str, ...], config: "Config") -> None:
        """Settings were decided. Called again if a training or validation decides more.

        Args:
            choices: One sentence for each decision.
            config: The settings from here on.
        """

    def on_phase(self, phase: str) -> None:
        """A phase begins: a training, a baseline, the evaluation, the index.

        Args:
            phase: Its name, such as ``race: towers.query_id = 'on'`` or ``baseline EASE with decay``.
        """

    def on_start(self, steps_per_epoch: int, progress: "Progress") -> None:
        """A training starts, or goes on from a checkpoint.

        Args:
            steps_per_epoch: Batches of an epoch.
            progress: How far the training has come; ``progress.epoch`` is 0 at the start.
        """

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:
        """The model learnt from a batch.

        Args:
            step: Number of the batch in its epoch, from 0.
            loss: Returns the loss of the batch; the call may wait for the device.
            examples: Examples in the batch.
        """

    def on_epoch(self, record: dict[str, Any]) -> None:
        """An epoch was validated.

        Args:
            record: ``epoch`` (from 1), ``loss``, ``valid_...``, ``examples_per_second`` and more;
                ``closed_form``, where one may be added, with the ``metric`` of the sum.
        """

    def on_end(self) -> None:
        """A training ended: by itself, by an error or by Ctrl-C."""

    def on_figures(self, figures: "Figures", stopped_early: bool) -> None:
        """The best weights were evaluated.

        Args:
            figures: See ``Trained.figures``.
            stopped_early: Whether Ctrl-C ended the training.
        """

    def on_trial(self, trial: "Trial") -> None:
        """A trial of ``tune`` ended; ``trial.end`` says how."""

    def on_trials(self, trials: "tuple[Trial, ...]", default: "Config") -> None:
        """The search of ``tune`` ended.

        Args:
            trials: All trials, the best first.
            default: The default settings, which trial 0 used.
        """


class Deadline(Callback):
    """Ends a training as Ctrl-C does, after the step in which the time is up.

    Args:
        minutes: Until then, from now.
    """

    def __init__(self, minutes: float) -> None:
        self._at = time.monotonic() + 60 * minutes
        self.is_up = False
        """Whether it ended a training."""

    def on_step(self, *given: Any) -> None:  # noqa: ARG002
        """End the training if the time is up."""
        if time.monotonic() >= self._at:
            self.is_up = True
            raise KeyboardInterrupt


def check_minutes(minutes: float | None) -> None:
    """Check a budget of time.

    Raises:
        ValueError: It is not above 0, or not finite.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise ArgumentError(f"{argument('minutes')} must be finite and above 0, got {minutes!r}.")


def too_short(minutes: float) -> ConfigError:
    """Return the error of a budget in which no epoch was validated."""
    return ConfigError(
        f"{argument('minutes')} must be enough for an epoch and its validation, got {minutes:g}; give more."
    )


class Callbacks(Callback):
    """Several callbacks as one: each call goes to all of them, in their order.

    Args:
        callbacks: The callbacks to call.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)


def _passed_on(name: str) -> Callable[..., None]:
    def pass_on(self: Callbacks, *given: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(*given)

    return pass_on


for _name in vars(Callback):
    if _name.startswith("on_"):
        setattr(Callbacks, _name, _passed_on(_name))
