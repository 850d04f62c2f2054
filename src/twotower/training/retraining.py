"""Training more than once: on more of the events, and with other seeds."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import numpy as np
from torch import nn

from twotower.caller import argument
from twotower.config import Config
from twotower.data.dataset import Part
from twotower.data.splits import Learnt
from twotower.errors import ArgumentError, NothingLearntError
from twotower.evaluation.figures import KS
from twotower.evaluation.ranking import evaluate_on
from twotower.processes.job import here, leave_to_first, together
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.closed_form import fitted
from twotower.training.lessons import Lessons
from twotower.training.settings import with_values
from twotower.training.task import Task
from twotower.training.trainer import Judge, Trainer

Refit = bool | Literal["all"]
"""Whether to train once more: on training and validation events, or on all."""


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

    Where several processes train, all of them call it, and the first one comes back.

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
    with together():
        config, spectral, epochs = here().from_first(
            lambda: (chosen.config, chosen.spectral, done.best_epoch)
        )
        trainer = Trainer(
            more.dataset, more.sides, config, spectral=spectral, lessons=chosen.lessons, **own
        )
        progress = trainer.fit(watcher=watcher, epochs=epochs)
        trainer.make_whole(progress)
        leave_to_first()
    if not progress.interrupted and not add_again(trainer, chosen.added):
        progress.interrupt()
    for new, old in zip(trainer.objectives, chosen.objectives, strict=True):
        if new.model.popularity is not None and old.model.popularity is not None:
            new.model.popularity.shares.copy_(old.model.popularity.shares)
    if progress.interrupted:
        done.interrupt()
        return None
    record: dict[str, Any] = {"event": "refit", "learnt": learnt, "epochs": done.best_epoch}
    if progress.epoch:
        record["loss"] = progress.log[-1]["loss"]
    done.log.append(record)
    return trainer


def add_again(trainer: Trainer, added: Mapping[str, Any] | None) -> bool:
    """Add a closed form to a trained model as to another, found anew from the events of this one.

    Returns:
        Whether it is done; Ctrl-C ends it.
    """
    if added is not None:
        settings = {name: value for name, value in added.items() if name != "scale"}
        try:
            trainer.add(fitted(trainer.dataset, settings), added["scale"])
        except KeyboardInterrupt:
            return False
    return True


def spread_over_seeds(
    first: Mapping[str, float],
    seeds: int,
    task: Task,
    config: Config,
    added: Mapping[str, Any] | None,
    towers: Mapping[str, nn.Module | None],
    bar: Callback,
    *,
    refit: bool,
    lessons: Lessons | None = None,
    beside: Judge | None = None,
) -> dict[str, Any]:
    """Return mean, standard deviation (of a sample) and values of each metric over several seeds.

    Args:
        first: The metrics of the model with the seed of ``config``.
        seeds: How many seeds, that one included; at least 2.
        task: What the models learn.
        config: With no ``auto`` left.
        added: What is added to each of the models; see ``Trainer.added``.
        towers: Modules of the user's own, untrained.
        bar: Follows the trainings.
        refit: Whether the models also learn the validation events.
        lessons: What a teacher says; None without one.
        beside: See ``Trainer.beside``.

    Raises:
        NothingLearntError: Ctrl-C interrupted one of the trainings.
    """
    dataset, others = task.dataset, []
    for place in range(1, seeds):
        seed = config.training.seed + place
        bar.on_phase(f"training, seed {seed} ({place + 1} of {seeds})")
        of_seed = with_values(config, {"training.seed": seed})
        own: dict[str, Any] = deepcopy(dict(towers))
        trainer = Trainer(dataset, task.sides, of_seed, lessons=lessons, **own)
        trainer.beside = beside
        done = trainer.fit(watcher=bar)
        if not done.interrupted and not add_again(trainer, added):
            done.interrupt()
        if added is not None and not done.interrupted:
            trainer.settle()
        if refit and not done.interrupted:
            trainer = refitted(trainer, done, task, "valid", towers=towers, watcher=bar) or trainer
        if done.interrupted:
            raise NothingLearntError(
                f"Interrupted in the training of seed {seed}: no bundle was written; "
                "repeat the call to go on."
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
