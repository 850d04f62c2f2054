"""Training more than once: with ids of the queries, on more of the events, and with other seeds."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import numpy as np
from torch import nn

from twotower.caller import argument, passing
from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.data.splits import Learnt
from twotower.errors import ArgumentError, ConfigError, NothingLearntError
from twotower.evaluation.figures import KS
from twotower.evaluation.ranking import evaluate_on
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.choices import with_values
from twotower.training.closed_form import chosen as chosen_closed_form
from twotower.training.closed_form import is_quick, no_closed_form, settings_of
from twotower.training.task import Task
from twotower.training.trainer import Trainer, TrainingDivergedError

IDS_FROM = 20
"""Training events per query from which an id may know more than the events that the history reads."""
SOLVERS = "gradient", "spectral"
IDS_UP_TO = 300_000
"""Training events up to which a second model, with ids, is trained to see whether it is better."""

Refit = bool | Literal["all"]
"""Whether to train once more: on training and validation events, or on all."""


def tries_ids(config: Config, chosen: Config, dataset: Dataset) -> bool:
    """Return whether validation decides if queries get an id of their own beside their history.

    It does where the user left that to ``auto``, queries have many events, and the held-out queries are
    among the training queries; and where one more training takes minutes at most.

    Args:
        config: What the user set.
        chosen: The settings with every ``auto`` replaced.
        dataset: The split data set.
    """
    if config.towers.query_id != "auto" or chosen.towers.query_id == "on" or not dataset.ordered:
        return False
    if chosen.towers.history == "none" or (dataset.parts == Part.CONTEXT).any():
        return False
    train = dataset.part(Part.TRAIN)
    num_events = int(train.is_positive.sum())
    num_queries = len(np.unique(train.query_rows))
    return IDS_FROM * num_queries <= num_events <= IDS_UP_TO


def better_of_both(
    trainer: Trainer, done: Progress, bar: Callback
) -> tuple[Trainer, Progress, str]:
    """Train a second model with ids of the queries, and return the one that is better on validation.

    The first model is kept if Ctrl-C interrupts the second training, or if its loss is not finite.

    Args:
        trainer: Without ids, holding its best weights.
        done: Its progress.
        bar: Follows the second training.

    Returns:
        The chosen trainer, its progress, and a sentence.
    """
    config = with_values(trainer.config, {"towers.query_id": "on"})
    other = Trainer(trainer.dataset, trainer.sides, config)
    bar.on_phase("training with query ids")
    try:
        progress = other.fit(watcher=bar)
    except TrainingDivergedError:
        return trainer, done, "towers.query_id = 'off': a training with ids diverged"
    if progress.interrupted:
        done.interrupt()
        return trainer, done, "towers.query_id = 'off': a training with ids was not finished"
    return _better(
        trainer, done, other, progress, "towers.query_id", ("off", "on"), ("without", "with it")
    )


def tries_closed_form(config: Config, chosen: Config, dataset: Dataset) -> bool:
    """Return whether validation decides between training and the closed form.

    Args:
        config: What the user set.
        chosen: The settings with every ``auto`` replaced.
        dataset: The split data set.
    """
    if config.training.solver != "auto" or chosen.training.examples != "sets":
        return False
    return not no_closed_form(config, dataset) and is_quick(dataset, _stated_width(config))


def better_of_training(
    given: Config, trainer: Trainer, done: Progress, bar: Callback
) -> tuple[Trainer, Progress, str]:
    """Find the closed form, and return it or the trained model, whichever is better on validation.

    Args:
        given: What the user set: a width of the user's own is that of the closed form, too.
        trainer: Holding its best weights.
        done: Its progress.
        bar: Is told.

    Returns:
        The chosen trainer, its progress, and a sentence.
    """
    bar.on_phase("the closed form")
    try:
        other, progress = _in_closed_form(given, trainer)
    except KeyboardInterrupt:
        done.interrupt()
        return trainer, done, "training.solver = 'gradient': the closed form was not finished"
    except ConfigError as error:  # it does not fit into memory
        return trainer, done, f"training.solver = 'gradient': {error}"
    words = "in steps", "in closed form"
    return _better(trainer, done, other, progress, "training.solver", SOLVERS, words)


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


def _better(
    first: Trainer,
    done: Progress,
    second: Trainer,
    progress: Progress,
    name: str,
    values: tuple[str, str],
    words: tuple[str, str],
) -> tuple[Trainer, Progress, str]:
    """Return the trainer with the better validation metric, its progress, and a sentence."""
    without, found = done.best_metric, progress.best_metric
    assert without is not None
    assert found is not None
    metric = first.config.training.metric
    figures = f"validation {metric} {found:.4f} {words[1]}, {without:.4f} {words[0]}"
    if found <= without:
        return first, done, f"{name} = {values[0]!r}: {figures}"
    return second, progress, f"{name} = {values[1]!r}: {figures}"


def learnt_by(refit: Refit) -> Learnt | None:
    """Return which events a second training also learns; None if there is no second training.

    Raises:
        ValueError: ``refit`` is neither a truth value nor ``"all"``.
    """
    if refit == "all":
        return "all"
    if not isinstance(refit, bool):
        raise ArgumentError(f"{argument('refit')} must be True, False or 'all', got {refit!r}.")
    return "valid" if refit else None


def refitted(
    chosen: Trainer,
    done: Progress,
    task: Task,
    learnt: Learnt,
    *,
    towers: Mapping[str, nn.Module | None],
    watcher: Callback,
) -> Trainer | None:
    """Train from the start on more events, for as many epochs as were best; return None after Ctrl-C.

    An epoch then holds more events, and so more steps of the same size: the model learns each event as
    often as before. The schedules of step size and temperature are those of the first training. Features
    are fitted again, so that they know what validation adds. With towers of the user's own they are not:
    those were made for the first features.

    Args:
        chosen: The trainer whose settings were chosen.
        done: Its progress. Its log gets a record of the second training, or that Ctrl-C ended it.
        task: What it learnt.
        learnt: What the second training also learns.
        towers: Modules of the user's own, untrained.
        watcher: Follows the training.
    """
    more = task.learning(learnt, refits_features=not chosen.custom)
    own: dict[str, Any] = deepcopy(dict(towers))
    trainer = Trainer(more.dataset, more.sides, chosen.config, spectral=chosen.spectral, **own)
    progress = trainer.fit(watcher=watcher, epochs=done.best_epoch)
    for new, old in zip(trainer.objectives, chosen.objectives, strict=True):
        if new.model.popularity is not None and old.model.popularity is not None:
            new.model.popularity.alone.copy_(old.model.popularity.alone)
    if progress.interrupted:
        done.interrupt()
        return None
    record: dict[str, Any] = {"event": "refit", "learnt": learnt, "epochs": done.best_epoch}
    if progress.epoch:
        record["loss"] = progress.log[-1]["loss"]
    done.log.append(record)
    return trainer


def spread_over_seeds(
    first: Mapping[str, float],
    seeds: int,
    task: Task,
    config: Config,
    towers: Mapping[str, nn.Module | None],
    bar: Callback,
    *,
    refit: bool,
) -> dict[str, Any]:
    """Return mean, standard deviation (of a sample) and values of each metric over several seeds.

    Args:
        first: The metrics of the model with the seed of ``config``.
        seeds: How many seeds, that one included; at least 2.
        task: What the models learn.
        config: With no ``auto`` left.
        towers: Modules of the user's own, untrained.
        bar: Follows the trainings.
        refit: Whether the models also learn the validation events.

    Raises:
        NothingLearntError: Ctrl-C interrupted one of the trainings.
    """
    dataset, others = task.dataset, []
    for place in range(1, seeds):
        seed = config.training.seed + place
        bar.on_phase(f"training, seed {seed} ({place + 1} of {seeds})")
        of_seed = with_values(config, {"training.seed": seed})
        own: dict[str, Any] = deepcopy(dict(towers))
        trainer = Trainer(dataset, task.sides, of_seed, **own)
        done = trainer.fit(watcher=bar)
        if refit and not done.interrupted:
            trainer = refitted(trainer, done, task, "valid", towers=towers, watcher=bar) or trainer
        if done.interrupted:
            raise NothingLearntError(
                f"Interrupted in the training of seed {seed}: no bundle was written; "
                f"go on with {passing(resume=True)}."
            )
        found = evaluate_on(dataset, trainer.scorer(), dataset.cases(Part.TEST), KS)
        others.append(found.mean())
        del trainer, done, found  # the next training needs their memory
    spread = {}
    for metric in others[0]:
        values = [first[metric], *(figures[metric] for figures in others)]
        mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
        spread[metric] = {"mean": mean, "sd": deviation, "values": values}
    return spread
