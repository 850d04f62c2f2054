"""What ``auto`` leaves open, settled by a race: settings train side by side, and the better goes on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from twotower.caller import argument
from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.errors import ArgumentError, ConfigError, NothingLearntError
from twotower.toml import toml_value
from twotower.towers.model import QueryTower
from twotower.training.bundle_contents import fingerprint
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress, WorkFolder
from twotower.training.choices import resolve, value_of, with_values
from twotower.training.closed_form import chosen as chosen_closed_form
from twotower.training.closed_form import is_quick, no_closed_form, settings_of
from twotower.training.trainer import Trainer, TrainingDivergedError

HEAT_EPOCHS = 4
"""Epochs that each setting trains before the better of two is chosen."""
EARLY_EPOCHS, EARLY_SHARE = 2, 0.85
"""Epochs after which a setting has lost with less than this share of the other's validation metric."""
RACE_FROM = 100
"""Validation cases from which there is a race. By fewer, nothing is to be told."""
IDS_FROM = 20
"""Training events per query from which an id may know more than the events that the history reads."""
IDS_UP_TO = 300_000
"""Training events up to which ids of queries are tried."""


def _tries_transformer(chosen: Config, dataset: Dataset) -> bool:
    return dataset.ordered and chosen.towers.history in ("pooled", "transformer")


def _tries_ids(chosen: Config, dataset: Dataset) -> bool:
    if not dataset.ordered or chosen.towers.history == "none":
        return False
    if (dataset.parts == Part.CONTEXT).any():  # the held-out queries are new
        return False
    train = dataset.part(Part.TRAIN)
    num_events = int(train.is_positive.sum())
    num_queries = len(np.unique(train.query_rows))
    return IDS_FROM * num_queries <= num_events <= IDS_UP_TO


@dataclass(frozen=True)
class Heat:
    """One setting that validation decides.

    Args:
        name: Such as ``towers.history``.
        values: That are compared.
        unset: What the user's settings hold where they leave it open.
        is_open: Whether there is anything to compare, by the settings chosen so far and the data.
    """

    name: str
    values: tuple[Any, ...]
    unset: Any
    is_open: Callable[[Config, Dataset], bool]


HEATS = (
    Heat("towers.history", ("pooled", "transformer"), "auto", _tries_transformer),
    Heat("towers.query_id", ("off", "on"), "auto", _tries_ids),
)
"""In this order: each is between the best settings so far and those with another value."""


def open_heats(given: Config, chosen: Config, dataset: Dataset) -> tuple[Heat, ...]:
    """Return what validation is to decide.

    Args:
        given: What the user set; what was set is not open.
        chosen: The settings with every ``auto`` replaced.
        dataset: The split data set.
    """
    if len(dataset.cases(Part.VALID)) < RACE_FROM or given.training.solver == "spectral":
        return ()
    return tuple(
        heat
        for heat in HEATS
        if value_of(given, heat.name) == heat.unset and heat.is_open(chosen, dataset)
    )


def open_to_race(heats: Sequence[Heat]) -> tuple[str, ...]:
    """Return what to say of the heats before the race."""
    names = ", ".join(heat.name for heat in heats)
    return (
        (f"{names}: validation decides, after up to {HEAT_EPOCHS} epochs of each",) if heats else ()
    )


class _Entrant:
    """Settings in the race, and how far they have come.

    Args:
        trainer: Of these settings.
        out: Where the bundle will be; None keeps no checkpoint.
        place: The number of the checkpoint.
        resume: Whether to go on from it.
    """

    def __init__(self, trainer: Trainer, out: Path | None, place: int, *, resume: bool) -> None:
        self.trainer = trainer
        self.work: WorkFolder | None = None
        self.progress = Progress()
        if out is not None:
            self.work = WorkFolder(out.resolve(), fingerprint(trainer), place)
            if resume:
                self.progress = self.work.load_if_fit() if place else self.work.load()

    def train(self, watcher: Callback, until: int | None = None) -> None:
        """Train until so many epochs are done, or to the end; what was dropped stays as it is."""
        is_dropped = self.progress.epoch > 0 and not self.progress.model
        if not is_dropped and (until is None or self.progress.epoch < until):
            save = None if self.work is None else self.work.save
            self.trainer.fit(progress=self.progress, watcher=watcher, save=save, until=until)

    def best_of(self, epochs: int) -> float:
        """Return the best validation metric of the first epochs."""
        metric = f"valid_{self.trainer.config.training.metric}"
        return max(float(r[metric]) for r in self.progress.log if 0 < r.get("epoch", 0) <= epochs)

    def drop(self) -> None:
        """Forget the weights. What they came to is kept, so that a race that goes on has the same end."""
        if self.work is not None:
            done = self.progress
            self.work.save(Progress(epoch=done.epoch, log=done.log))


@dataclass(frozen=True)
class Raced:
    """How a race ended.

    Args:
        trainer: The winner, holding its best weights.
        done: Its progress.
        work: Its checkpoint beside the bundle; None where none is kept.
    """

    trainer: Trainer
    done: Progress
    work: WorkFolder | None


def train_best(
    given: Config,
    first: Trainer,
    heats: Sequence[Heat],
    *,
    out: Path | None = None,
    resume: bool = False,
    phase: str = "training",
    bar: Callback | None = None,
    teller: Callback | None = None,
) -> Raced:
    """Train what validation prefers: the first settings, or those with other values of what is open.

    Each heat is between the best settings so far and the same with another value, after ``HEAT_EPOCHS``
    each, or sooner where one is far ahead. The loser is dropped; at the end the winner trains on from where
    it is. The budgets are epochs, so that a seed has the same end on every machine.

    Args:
        given: What the user set.
        first: The trainer of the settings that ``resolve`` chose.
        heats: As ``open_heats`` returns them; without any, this is one training.
        out: Where the bundle will be, beside which checkpoints are kept; None keeps none.
        resume: Whether to go on from them.
        phase: What the training of the winner is called.
        bar: Follows the race.
        teller: Follows the training of the winner; None for ``bar``, too.

    Raises:
        NothingLearntError: Ctrl-C came before the first validation.
        ConfigError: There is no checkpoint to go on from, or it is of other data or settings.
        TrainingDivergedError: The loss of the winner became NaN or infinite.

    Source: the greedy, one setting after the other, version of successive halving (Jamieson and Talwalkar,
        AISTATS 2016), in which one round with the same budget for all is left.
    """
    bar = bar or Callback()
    teller = teller or bar
    if resume and out is None:
        raise ArgumentError(
            f"{argument('resume')} must go with {argument('out')}, got no {argument('out')}."
        )
    best, said = _Entrant(first, out, 0, resume=resume), []
    records: list[dict[str, Any]] = []
    try:
        for place, heat in enumerate(heats, 1):
            if best.progress.epoch < HEAT_EPOCHS:
                bar.on_phase(f"race: {_described(best, heats)}")
                best.train(bar, HEAT_EPOCHS)
                if best.progress.interrupted:
                    break
            now = value_of(best.trainer.config, heat.name)
            value = next(each for each in heat.values if each != now)
            bar.on_phase(f"race: {heat.name} = {_shown(value)}")
            trainer = _with_value(given, best, heats, heat.name, value)
            other = _Entrant(trainer, out, place, resume=resume)
            try:
                epochs = _compared(best, other, bar)
            except TrainingDivergedError:
                epochs = 0
            if not epochs:
                why = "was not finished" if other.progress.interrupted else "diverged"
                said.append(f"{heat.name} = {_shown(now)}: a training with {_shown(value)} {why}")
                if other.progress.interrupted:
                    best.progress.interrupt()
                    break
                continue
            figures = {now: best.best_of(epochs), value: other.best_of(epochs)}
            if figures[value] > figures[now]:
                best, other = other, best
            other.drop()
            del trainer, other  # the next training needs their memory
            words, record = _told(best, heat, figures, epochs)
            said.append(words)
            records.append(record)
    except KeyboardInterrupt:
        best.progress.interrupt()
    if said:
        teller.on_choices(tuple(said), best.trainer.config)
    if not best.progress.interrupted:
        teller.on_phase(phase)
        best.train(teller)
    if best.progress.best_metric is None:
        # An earlier training's checkpoint stays; this one has none.
        raise NothingLearntError("Interrupted before the first validation: nothing was kept.")
    best.progress.log[:0] = records
    return Raced(best.trainer, best.progress, best.work)


def _told(
    best: _Entrant, heat: Heat, figures: Mapping[Any, float], epochs: int
) -> tuple[str, dict[str, Any]]:
    """Return what a screen and the log of a training say of a heat."""
    config = best.trainer.config
    chosen = value_of(config, heat.name)
    (lost,) = (value for value in figures if value != chosen)
    said = (
        f"{heat.name} = {_shown(chosen)}: after {epochs} epochs validation {config.training.metric} is "
        f"{figures[chosen]:.4f}, {figures[lost]:.4f} with {_shown(lost)}"
    )
    record = {"event": "race", "setting": heat.name, "chosen": chosen, "epochs": epochs}
    return said, {**record, "figures": {str(value): found for value, found in figures.items()}}


def _with_value(
    given: Config, best: _Entrant, heats: Sequence[Heat], name: str, value: Any
) -> Trainer:
    """Return the trainer of the best settings so far but for one value."""
    decided = {heat.name: value_of(best.trainer.config, heat.name) for heat in heats}
    dataset, sides = best.trainer.dataset, best.trainer.sides
    settings, _ = resolve(with_values(given, {**decided, name: value}), dataset)
    return Trainer(dataset, sides, settings)


def _compared(best: _Entrant, other: _Entrant, bar: Callback) -> int:
    """Train settings until they can be compared with the best so far.

    Returns:
        The epochs of each after which they can; 0 where Ctrl-C ended the training.
    """
    for epochs in (EARLY_EPOCHS, HEAT_EPOCHS):
        other.train(bar, epochs)
        if other.progress.interrupted:
            return 0
        low, high = sorted((best.best_of(epochs), other.best_of(epochs)))
        if low < EARLY_SHARE * high:
            return epochs
    return HEAT_EPOCHS


def _described(entrant: _Entrant, heats: Sequence[Heat]) -> str:
    """Return the values that settings have of what is open."""
    config = entrant.trainer.config
    return ", ".join(f"{heat.name} = {_shown(value_of(config, heat.name))}" for heat in heats)


def _shown(value: Any) -> str:
    return toml_value(value).replace('"', "'")


def settled(
    given: Config, trainer: Trainer, done: Progress, teller: Callback
) -> tuple[Trainer, Progress]:
    """Decide on validation what needs no training: the time of the question, and the closed form.

    Args:
        given: What the user set; what was set stays.
        trainer: Holding its best weights.
        done: Its progress.
        teller: Is told.

    Returns:
        The chosen trainer and its progress.
    """
    if done.interrupted:
        return trainer, done
    if given.towers.question_time == "auto" and trainer.config.towers.question_time == "on":
        said = _with_or_without_time(trainer, done)
        teller.on_choices((said,), trainer.config)
    if _races_closed_form(given, trainer):
        teller.on_phase("the closed form")
        trainer, done, said = _better_solver(given, trainer, done)
        teller.on_choices((said,), trainer.config)
    return trainer, done


def _with_or_without_time(trainer: Trainer, done: Progress) -> str:
    """Let a model forget when it is asked where validation is no better with the time; say what it was."""
    config = trainer.config
    towers = [cast("QueryTower", each.model.query_tower) for each in trainer.objectives]
    modules = [tower.question_time for tower in towers]
    known = done.best_metric
    assert known is not None
    for tower in towers:
        tower.question_time = None
    unknown = trainer.validate()
    figures = f"validation {config.training.metric} is {known:.4f} with it, {unknown:.4f} without"
    if unknown < known:
        for tower, module in zip(towers, modules, strict=True):
            tower.question_time = module
        return f"towers.question_time = 'on': {figures}"
    trainer.config = with_values(config, {"towers.question_time": "off"})
    done.best_metric = unknown
    return f"towers.question_time = 'off': {figures}"


def _races_closed_form(given: Config, trainer: Trainer) -> bool:
    """Return whether validation decides between training and the closed form."""
    if given.training.solver != "auto" or trainer.config.training.examples != "sets":
        return False
    dataset = trainer.dataset
    return not no_closed_form(given, dataset, trainer.custom) and is_quick(
        dataset, _stated_width(given)
    )


def _better_solver(
    given: Config, trainer: Trainer, done: Progress
) -> tuple[Trainer, Progress, str]:
    """Return the closed form or the trained model, whichever is better on validation, and a sentence."""
    try:
        other, progress = _in_closed_form(given, trainer)
    except KeyboardInterrupt:
        done.interrupt()
        return trainer, done, "training.solver = 'gradient': the closed form was not finished"
    except ConfigError as error:  # it does not fit into memory
        return trainer, done, f"training.solver = 'gradient': {error}"
    trained, found = done.best_metric, progress.best_metric
    assert trained is not None
    assert found is not None
    metric = trainer.config.training.metric
    said = f"validation {metric} {found:.4f} in closed form, {trained:.4f} in steps"
    if found <= trained:
        return trainer, done, f"training.solver = 'gradient': {said}"
    return other, progress, f"training.solver = 'spectral': {said}"


def _in_closed_form(given: Config, trainer: Trainer) -> tuple[Trainer, Progress]:
    """Return the model in closed form on a trainer's data."""
    spectral = chosen_closed_form(trainer.dataset, _stated_width(given))
    values = {
        "towers.dim": spectral.width,
        "training.solver": "spectral",
        "towers.similarity": "dot",
    }
    config = with_values(trainer.config, values)
    other = Trainer(trainer.dataset, trainer.sides, config, spectral=settings_of(spectral))
    return other, other.fit()


def _stated_width(config: Config) -> int | None:
    """Return the width that the user set, or None where that is the default."""
    return None if config.towers.dim == Config().towers.dim else config.towers.dim
