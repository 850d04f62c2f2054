"""``train_best``: what validation prefers, of a race and of steps, the closed form and their sum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twotower.caller import argument
from twotower.config import WIDTH, Config
from twotower.errors import ArgumentError, ConfigError, NothingLearntError
from twotower.processes.job import alone, here, leave_to_first
from twotower.runtime import out_of_memory_told
from twotower.training.callbacks import Callback, Callbacks, Deadline, too_short
from twotower.training.checkpoints import Progress, WorkFolder
from twotower.training.choices import resolve
from twotower.training.closed_form import chosen as chosen_closed_form
from twotower.training.closed_form import is_quick, no_closed_form, no_part, settings_of
from twotower.training.closed_form_sum import Beside, at_best_scale, first_worth, is_worth
from twotower.training.heats import Heat
from twotower.training.race import Race, record_of
from twotower.training.settings import with_values
from twotower.training.several_processes import check_same_features
from twotower.training.trainer import Trainer

if TYPE_CHECKING:
    from twotower.baselines.spectral import Spectral

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
    stays: bool = False,
    phase: str = "training",
    bar: Callback | None = None,
    teller: Callback | None = None,
) -> Best:
    """Train what validation prefers: the winner of a race to its end, unless the closed form is better.

    Args:
        given: What the user set; what was set stays.
        first: The trainer of the settings that ``resolve`` chose.
        heats: As ``open_heats`` returns them; without any, this is one training.
        out: Where the bundle will be, beside which checkpoints are kept; None keeps none.
        resume: Whether there must be a checkpoint to go on from; see ``Race``.
        minutes: After these the training ends as by Ctrl-C; None has no limit. The closed form and its
            comparison come on top.
        stays: Whether all of several processes go on to a second training. Otherwise only the first one
            comes back from here.
        phase: What the training of the winner is called.
        bar: Follows the race.
        teller: Follows the training of the winner; None for ``bar``, too.

    Raises:
        NothingLearntError: Ctrl-C came before the first validation.
        ConfigError: There is no checkpoint to ``resume``, or it is of other data or settings; the minutes
            ended before the first validation.
        TrainingDivergedError: The loss of the winner became NaN or infinite.
    """
    bar = bar or Callback()
    teller = teller or bar
    if resume and out is None:
        raise ArgumentError(
            f"{argument('resume')} must go with {argument('out')}, got no {argument('out')}."
        )
    job, forms = here(), ClosedForms()
    if not job.is_alone:
        check_same_features(first)
    race = Race(given, first, heats, out=out, resume=resume)
    if race.said:
        teller.on_choices((race.said,), first.config)
    if job.is_first:  # it alone compares them
        with alone():
            forms = closed_forms(given, first, teller)
    parts = job.from_first(lambda: forms.parts)
    first.beside = Beside(parts, bool(given.towers.spectral_dim)) if parts else None
    del first  # if it loses, the next training needs its memory
    deadline = None if minutes is None else Deadline(minutes)
    if deadline is not None:
        bar, teller = Callbacks([bar, deadline]), Callbacks([teller, deadline])
    race.run(bar, teller)
    best = race.best
    if best.progress.interrupted:
        best.trainer.keep_best(best.progress)
    else:
        teller.on_phase(phase)
        best.train(teller)
    steps = best.progress
    best.trainer.make_whole(steps)
    if not stays:
        leave_to_first()
    if not job.is_first:
        return Best(best.trainer, steps, steps, best.work)
    with alone():
        return _with_closed_form(given, race, forms, deadline, minutes, teller)


def _with_closed_form(
    given: Config,
    race: Race,
    forms: ClosedForms,
    deadline: Deadline | None,
    minutes: float | None,
    teller: Callback,
) -> Best:
    """Return what validation prefers of a training in steps, the closed form and their sum."""
    best, steps = race.best, race.best.progress
    is_up = deadline is not None and deadline.is_up
    if steps.best_metric is None:
        if is_up and minutes is not None:
            raise too_short(minutes)
        # An earlier training's checkpoint stays; this one has none.
        raise NothingLearntError(f"Interrupted before the first validation: {_NOTHING}")
    if is_up:
        said = f"the time was up after epoch {steps.epoch}; the best weights so far are kept"
        teller.on_choices((f"{argument('minutes')}: {said}",), best.trainer.config)
    steps.log[:0] = race.records
    steps.best_metric = steps.metric_alone(best.trainer.config.training.metric)
    if is_up or not steps.interrupted:
        add_better_part(given, best.trainer, steps, forms.parts, teller)
    elif given.towers.spectral_dim:
        said = "towers.spectral_dim = 0: the training was interrupted"
        teller.on_choices((said,), best.trainer.config)
    trainer, done = better_of(best.trainer, steps, forms.alone, teller)
    return Best(trainer, done, steps, best.work)


def closed_forms(given: Config, trainer: Trainer, teller: Callback) -> ClosedForms:
    """Return the closed form alone and as a part of the trained model, as far as the settings allow it.

    Args:
        given: What the user set; what was set stays.
        trainer: Of the training in steps.
        teller: Gets the choice, or the reason why there is none.

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
    if not width and not is_quick(dataset, given.towers.dim if is_alone else None):
        what = "training.solver = 'gradient'" if is_alone else "towers.spectral_dim = 0"
        teller.on_choices((f"{what}: the closed form would take too long",), config)
        return ClosedForms()
    try:
        teller.on_phase("the closed form")
        with out_of_memory_told():
            parts: tuple[Spectral, ...] = ()
            if has_parts:
                found = chosen_closed_form(dataset, width)
                narrow = replace(found, width=min(WIDTH, found.width))
                parts = (found,) if width or found.width <= WIDTH else (narrow, found)
            alone = _alone(given, trainer, parts) if is_alone else None
            return ClosedForms(alone, parts)
    except KeyboardInterrupt as error:
        raise NothingLearntError(f"Interrupted in the closed form: {_NOTHING}") from error
    except ConfigError as error:  # it does not fit into memory
        teller.on_choices((f"towers.spectral_dim = 0: {error}",), config)
    return ClosedForms()


def add_better_part(
    given: Config,
    trainer: Trainer,
    steps: Progress,
    parts: "Sequence[Spectral]",
    teller: Callback,
) -> None:
    """Add a closed form to a trained model where its validation metric is better with it by 1 % or more.

    Args:
        given: What the user set; a closed form whose width was set is added in any case.
        trainer: Holding its best weights; without its validation metric nothing is done.
        steps: Its progress, which gets the metric and the weights.
        parts: What may be added, the narrowest first.
        teller: Gets the choice.
    """
    if steps.best_metric is None or not parts:
        return
    name, stated = trainer.config.training.metric, given.towers.spectral_dim
    try:
        teller.on_phase("the closed form beside it")
        trained = trainer.validate()  # as the sums are: a training may round
        judged = next((r["closed_form"] for r in steps.log if _is_best(r, steps)), None)
        near = None
        if judged is not None:
            near, parts = judged["share"], [p for p in parts if p.width == judged["width"]]
        found = {part.width: at_best_scale(trainer, part, near) for part in parts}
        metric, part, scale = first_worth(found.values())
        is_added = is_worth(metric, trained) or bool(stated)
        trainer.remove_added()
        if is_added:
            trainer.add(part, scale)
            trainer.settle()
            metric = trainer.validate()  # sums were rounded in another order
    except (KeyboardInterrupt, ConfigError) as error:  # it does not fit into memory
        trainer.remove_added()
        trainer.settle()
        said = str(error) or "the validation with a closed form beside the towers was not finished"
        teller.on_choices((f"towers.spectral_dim = 0: {said}",), trainer.config)
        if isinstance(error, KeyboardInterrupt):
            steps.interrupt()
        return
    width = part.width if is_added else 0
    figures = {0: trained, **{each: best[0] for each, best in found.items()}}
    if is_added:
        figures[width] = metric
    steps.log.insert(0, record_of("towers.spectral_dim", figures, chosen=width))
    said = f"validation {name} is {metric:.4f} with a closed form beside the towers, {trained:.4f} without"
    said = f"towers.spectral_dim = {width}: {said}"
    if is_added:
        steps.best_metric = metric
        weights = trainer.trained.state_dict()
        steps.best_model = {key: each.clone() for key, each in weights.items()}
        said += f"; vectors have {trainer.config.towers.compared_width} numbers"
        if stated and width < stated:
            said += ", since the data have no more singular vectors"
    teller.on_choices((said,), trainer.config)


def _is_best(record: Mapping[str, Any], steps: Progress) -> bool:
    """Return whether a record of the log is that of the best weights, and holds a sum's metric."""
    return record.get("epoch") == steps.best_epoch and "closed_form" in record


def better_of(
    trainer: Trainer, steps: Progress, closed: ClosedForm | None, teller: Callback
) -> tuple[Trainer, Progress]:
    """Return a model trained in steps, or the closed form where validation is better by 1 % or more.

    Args:
        trainer: Of the training in steps, holding its best weights.
        steps: Its progress; of an interrupted training, without a metric or with one.
        closed: The closed form; None if there is none.
        teller: Gets the choice.
    """
    trained = steps.best_metric
    if closed is None or trained is None:
        return trainer, steps
    found, is_closed = closed.metric, is_worth(closed.metric, trained)
    solver = "spectral" if is_closed else "gradient"
    record = record_of("training.solver", {"gradient": trained, "spectral": found}, chosen=solver)
    (closed.done if is_closed else steps).log.insert(0, record)
    beside = " with a closed form beside the towers" if trainer.added else ""
    said = f"validation {trainer.config.training.metric} {found:.4f} in closed form alone, "
    said = f"training.solver = {solver!r}: {said}{trained:.4f} in {steps.epoch} epochs of steps{beside}"
    if not is_closed:
        teller.on_choices((said,), trainer.config)
        return trainer, steps
    if steps.interrupted:
        closed.done.interrupt()
    teller.on_choices((said,), closed.trainer.config)
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
