"""``train_best``: what validation prefers, of a race and of steps, the closed form and their sum."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from twotower.caller import argument
from twotower.config import WIDTH, Config
from twotower.errors import ArgumentError, ConfigError, NothingLearntError
from twotower.training.callbacks import Callback, Callbacks, Deadline, too_short
from twotower.training.checkpoints import Progress, WorkFolder
from twotower.training.choices import resolve
from twotower.training.closed_form import chosen as chosen_closed_form
from twotower.training.closed_form import is_quick, no_closed_form, no_part, settings_of
from twotower.training.heats import Heat
from twotower.training.race import Race, record_of
from twotower.training.settings import with_values
from twotower.training.trainer import Trainer

if TYPE_CHECKING:
    from twotower.baselines.spectral import Spectral

SHARES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""How far the scores of a closed form spread that is added to a trained model, as ratios to its own."""
SPREAD_CASES = 50
"""Validation cases on which that is measured."""
WORTH = 1.01
"""Ratio of validation metrics from which longer vectors are worth their cost, and from which the closed
form alone is preferred, which knows nothing of features."""
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


@dataclass(frozen=True)
class ClosedForms:
    """What the closed form offers a training.

    Args:
        alone: A model of its own; None where the settings allow none.
        parts: Closed forms that may be added to the trained model, the narrowest first.
    """

    alone: ClosedForm | None = None
    parts: "tuple[Spectral, ...]" = ()


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
    forms = closed_forms(given, first, teller)
    closed = forms.alone
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
    if is_up or not steps.interrupted:
        add_better_part(given, best.trainer, steps, forms.parts, teller)
    trainer, done = better_of(best.trainer, steps, closed, teller)
    return Best(trainer, done, steps, best.work)


def closed_forms(given: Config, trainer: Trainer, teller: Callback) -> ClosedForms:
    """Return the closed form alone and as a part of the trained model, as far as the settings allow it.

    Args:
        given: What the user set; what was set stays.
        trainer: Of the training in steps.
        teller: Is told, also why there is none where it is expected.

    Raises:
        NothingLearntError: Ctrl-C interrupted it.
    """
    dataset, config = trainer.dataset, trainer.config
    width = given.towers.spectral_dim
    is_open, is_alone = given.training.solver == "auto", False
    if is_open and not width and config.training.examples == "sets":
        hindrance = no_closed_form(given, dataset, trainer.custom)
        is_alone = not hindrance
        if hindrance:
            teller.on_choices((f"training.solver = 'gradient': {hindrance}",), config)
    wanted = bool(width) or (is_open and width is None)
    has_parts = wanted and config.training.solver == "gradient"
    has_parts = has_parts and not no_part(config, dataset, trainer.custom)
    if not is_alone and not has_parts:
        return ClosedForms()
    if not is_quick(dataset, given.towers.dim if is_alone else width):
        hindrance = "the closed form would take too long"
        teller.on_choices((f"training.solver = 'gradient': {hindrance}",), config)
        return ClosedForms()
    teller.on_phase("the closed form")
    try:
        parts: tuple[Spectral, ...] = ()
        if has_parts:
            found = chosen_closed_form(dataset, width)
            narrow = replace(found, width=min(WIDTH, found.width))
            parts = (found,) if width or found.width <= WIDTH else (narrow, found)
        return ClosedForms(_alone(given, trainer, parts) if is_alone else None, parts)
    except KeyboardInterrupt as error:
        raise NothingLearntError(f"Interrupted in the closed form: {_NOTHING}") from error
    except ConfigError as error:  # it does not fit into memory
        teller.on_choices((f"training.solver = 'gradient': {error}",), config)
    return ClosedForms()


def add_better_part(
    given: Config,
    trainer: Trainer,
    steps: Progress,
    parts: "Sequence[Spectral]",
    teller: Callback,
) -> None:
    """Add a closed form to a trained model where its validation metric is better with it by 1 % or more.

    The scales that are tried ascend, and end where validation is no better.

    Args:
        given: What the user set; a closed form whose width was set is added in any case.
        trainer: Holding its best weights; without its validation metric nothing is done.
        steps: Its progress, which gets the metric and the weights.
        parts: What may be added, the narrowest first.
        teller: Is told.
    """
    if steps.best_metric is None or not parts:
        return
    try:
        teller.on_phase("the closed form beside it")
        trained = trainer.validate()  # as the sums are: a training may round
        found = {part.width: _at_best_scale(trainer, part) for part in parts}
    except KeyboardInterrupt:
        steps.interrupt()
        said = "the validation with a closed form beside the towers was not finished"
        teller.on_choices((f"towers.spectral_dim = 0: {said}",), trainer.config)
        return
    finally:
        trainer.remove_added()
    chosen = next(iter(found.values()))
    for best in found.values():
        if best[0] >= WORTH * chosen[0]:
            chosen = best
    metric, part, scale = chosen
    is_added = metric >= WORTH * trained or bool(given.towers.spectral_dim)
    figures = {0: trained, **{width: best[0] for width, best in found.items()}}
    record = record_of("towers.spectral_dim", figures, chosen=part.width if is_added else 0)
    steps.log.insert(0, record)
    name = trainer.config.training.metric
    said = f"validation {name} is {metric:.4f} with a closed form beside the towers, {trained:.4f} without"
    if not is_added:
        teller.on_choices((f"towers.spectral_dim = 0: {said}",), trainer.config)
        return
    trainer.add(part, scale)
    trainer.settle()
    steps.best_metric = metric
    steps.best_model = {key: each.clone() for key, each in trainer.trained.state_dict().items()}
    width = trainer.config.towers.compared_width
    said = f"towers.spectral_dim = {part.width}: {said}; vectors have {width} numbers"
    teller.on_choices((said,), trainer.config)


def _at_best_scale(trainer: Trainer, part: "Spectral") -> "tuple[float, Spectral, float]":
    """Return the best validation metric with a closed form added, the closed form, and its scale."""
    unit, best = _unit(trainer, part), (-1.0, part, 0.0)
    for share in SHARES:
        trainer.add(part, share * unit)
        metric = trainer.validate()
        if metric <= best[0]:
            break
        best = metric, part, share * unit
    return best


def _unit(trainer: Trainer, part: "Spectral") -> float:
    """Return the scale at which the scores of a closed form spread as far as those of the trained model."""
    cases = trainer.objectives[0].valid
    cases = cases.take(np.flatnonzero(cases.histories.lengths > 0)[:SPREAD_CASES])
    if not len(cases):
        return 1.0
    trainer.remove_added()
    trained = trainer.scorer().score(cases).float()
    trainer.add(part, 1.0)
    added = trainer.scorer().score(cases).float() - trained
    items = torch.from_numpy(trainer.popularity > 0).to(trained.device)
    spreads = [float(each[:, items].std(dim=1, correction=0).mean()) for each in (trained, added)]
    return spreads[0] / spreads[1] if all(spreads) else 1.0


def better_of(
    trainer: Trainer, steps: Progress, closed: ClosedForm | None, teller: Callback
) -> tuple[Trainer, Progress]:
    """Return a model trained in steps, or the closed form where validation is better by 1 % or more.

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
        figures, is_worth = {"gradient": trained, "spectral": found}, found >= WORTH * trained
        solver = "spectral" if is_worth else "gradient"
        record = record_of("training.solver", figures, chosen=solver)
        (closed.done if is_worth else steps).log.insert(0, record)
        if not is_worth:
            teller.on_choices((f"training.solver = 'gradient': {said}",), trainer.config)
            return trainer, steps
    if steps.interrupted:
        closed.done.interrupt()
    teller.on_choices((f"training.solver = 'spectral': {said}",), closed.trainer.config)
    return closed.trainer, closed.done


def _alone(given: Config, trainer: Trainer, parts: "Sequence[Spectral]") -> ClosedForm:
    """Return the model in closed form on a trainer's data, of the best width among the parts."""
    spectral = parts[-1] if parts else None
    if spectral is None or given.towers.dim is not None:
        spectral = chosen_closed_form(trainer.dataset, given.towers.dim)
    values = {"towers.dim": spectral.width, "training.solver": "spectral"}
    config, _ = resolve(with_values(given, values), trainer.dataset)
    other = Trainer(trainer.dataset, trainer.sides, config, spectral=settings_of(spectral))
    return ClosedForm(other, other.fit())
