"""``train_best``: what validation prefers, of what a race compares and of steps and the closed form."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twotower.caller import argument
from twotower.config import Config
from twotower.errors import ArgumentError, ConfigError, NothingLearntError
from twotower.training.callbacks import Callback, Callbacks, Deadline, too_short
from twotower.training.checkpoints import Progress, WorkFolder
from twotower.training.choices import resolve
from twotower.training.closed_form import chosen as chosen_closed_form
from twotower.training.closed_form import is_quick, no_closed_form, settings_of
from twotower.training.heats import Heat
from twotower.training.race import Race, record_of
from twotower.training.settings import with_values
from twotower.training.trainer import Trainer

_NOTHING = "nothing was kept."


@dataclass(frozen=True)
class Best:
    """What validation prefers.

    Args:
        trainer: Holding its best weights.
        done: Its progress.
        steps: The progress of the training in steps; ``done``, unless the closed form is better.
        work: The checkpoint beside the bundle; None where none is kept.
    """

    trainer: Trainer
    done: Progress
    steps: Progress
    work: WorkFolder | None


@dataclass(frozen=True)
class ClosedForm:
    """A model in closed form, beside one that is trained in steps.

    Args:
        trainer: Holding its weights.
        done: Its progress, without an epoch.
    """

    trainer: Trainer
    done: Progress

    @property
    def metric(self) -> float:
        """Its validation metric."""
        assert self.done.best_metric is not None
        return self.done.best_metric

    def is_out_of_reach(self, steps: Progress) -> bool:
        """Return whether a training in steps will not come up to this model.

        Validation rises ever more slowly from epoch to epoch. So a training will not if at the pace of its
        last two epochs it would still be behind after twice as many epochs as it has had.
        """
        key = f"valid_{self.trainer.config.training.metric}"
        found = [float(record[key]) for record in steps.log if record.get("epoch", 0) > 0]
        if len(found) < 3:
            return False
        best = np.maximum.accumulate(found)
        pace = (best[-1] - best[-3]) / 2
        return bool(best[-1] + 2 * len(best) * pace < self.metric)


def train_best(
    given: Config,
    first: Trainer,
    heats: Sequence[Heat],
    *,
    out: Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    phase: str = "training",
    bar: Callback | None = None,
    teller: Callback | None = None,
) -> Best:
    """Train what validation prefers: the winner of a race to its end, unless the closed form is better.

    The training ends sooner where it would not come up to the closed form, which takes seconds.

    Args:
        given: What the user set; what was set stays.
        first: The trainer of the settings that ``resolve`` chose.
        heats: As ``open_heats`` returns them; without any, this is one training.
        out: Where the bundle will be, beside which checkpoints are kept; None keeps none.
        resume: Whether to go on from the checkpoints.
        minutes: After these the training ends as by Ctrl-C; None has no limit.
        phase: What the training of the winner is called.
        bar: Follows the race.
        teller: Follows the training of the winner; None for ``bar``, too.

    Raises:
        NothingLearntError: Ctrl-C came before there was a model.
        ConfigError: There is no checkpoint to go on from, or it is of other data or settings; the minutes
            ended before there was a model.
        TrainingDivergedError: The loss of the winner became NaN or infinite.
    """
    bar = bar or Callback()
    teller = teller or bar
    deadline = None if minutes is None else Deadline(minutes)
    if deadline is not None:
        bar, teller = Callbacks([bar, deadline]), Callbacks([teller, deadline])
    if resume and out is None:
        raise ArgumentError(
            f"{argument('resume')} must go with {argument('out')}, got no {argument('out')}."
        )
    race = Race(given, first, heats, out=out, resume=resume)
    closed = closed_form(given, first, teller)
    del first  # if it loses, the next training needs its memory
    race.run(bar, teller)
    best = race.best
    if best.progress.interrupted:
        best.trainer.keep_best(best.progress)
    else:
        teller.on_phase(phase)
        best.finish(teller, None if closed is None else closed.is_out_of_reach)
    steps = best.progress
    is_up = deadline is not None and deadline.is_up
    if steps.best_metric is None and closed is None:
        if is_up and minutes is not None:
            raise too_short(minutes)
        # An earlier training's checkpoint stays; this one has none.
        raise NothingLearntError(f"Interrupted before the first validation: {_NOTHING}")
    if is_up:
        said = f"the time was up after epoch {steps.epoch}; the best weights so far are kept"
        teller.on_choices((f"{argument('minutes')}: {said}",), best.trainer.config)
    steps.log[:0] = race.records
    trainer, done = better_of(best.trainer, steps, closed, teller)
    return Best(trainer, done, steps, best.work)


def closed_form(given: Config, trainer: Trainer, teller: Callback) -> ClosedForm | None:
    """Return the model in closed form where the settings allow one beside that of a training in steps.

    Args:
        given: What the user set; what was set stays.
        trainer: Of the training in steps.
        teller: Is told, also why there is none where there could be one.

    Raises:
        NothingLearntError: Ctrl-C interrupted it.
    """
    if given.training.solver != "auto" or trainer.config.towers.history == "none":
        return None
    hindrance = no_closed_form(given, trainer.dataset, trainer.custom)
    if hindrance and trainer.config.training.examples != "sets":
        return None
    if not hindrance and not is_quick(trainer.dataset, given.towers.dim):
        hindrance = "the closed form would take too long"
    if not hindrance:
        teller.on_phase("the closed form")
        try:
            return _in_closed_form(given, trainer)
        except KeyboardInterrupt as error:
            raise NothingLearntError(f"Interrupted in the closed form: {_NOTHING}") from error
        except ConfigError as error:  # it does not fit into memory
            hindrance = str(error)
    teller.on_choices((f"training.solver = 'gradient': {hindrance}",), trainer.config)
    return None


def better_of(
    trainer: Trainer, steps: Progress, closed: ClosedForm | None, teller: Callback
) -> tuple[Trainer, Progress]:
    """Return what has the better validation metric, a model trained in steps or the closed form.

    Args:
        trainer: Of the training in steps, holding its best weights.
        steps: Its progress; of an interrupted training, without a metric or with one.
        closed: The closed form; None if there is none.
        teller: Is told.
    """
    if closed is None:
        return trainer, steps
    metric, found, trained = trainer.config.training.metric, closed.metric, steps.best_metric
    said = f"validation {metric} {found:.4f} in closed form"
    if trained is None:
        said += "; the first epoch in steps was not finished"
    else:
        said += f", {trained:.4f} in {steps.epoch} epochs of steps"
        record = record_of("training.solver", {"gradient": trained, "spectral": found})
        (steps if found <= trained else closed.done).log.insert(0, record)
        if found <= trained:
            teller.on_choices((f"training.solver = 'gradient': {said}",), trainer.config)
            return trainer, steps
    if steps.interrupted:
        closed.done.interrupt()
    teller.on_choices((f"training.solver = 'spectral': {said}",), closed.trainer.config)
    return closed.trainer, closed.done


def _in_closed_form(given: Config, trainer: Trainer) -> ClosedForm:
    """Return the model in closed form on a trainer's data."""
    spectral = chosen_closed_form(trainer.dataset, given.towers.dim)
    values = {"towers.dim": spectral.width, "training.solver": "spectral"}
    config, _ = resolve(with_values(given, values), trainer.dataset)
    other = Trainer(trainer.dataset, trainer.sides, config, spectral=settings_of(spectral))
    return ClosedForm(other, other.fit())
