"""Refitting: one more training, on validation or on all events, too, for the epochs that were chosen."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from twotower.caller import argument
from twotower.data.splits import Learnt
from twotower.errors import ArgumentError
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.task import Task
from twotower.training.trainer import Trainer

Refit = bool | Literal["all"]
"""Whether to train once more: on training and validation events, or on all."""

SAID = {"valid": "the training and validation events together", "all": "all events"}


@dataclass(frozen=True, eq=False)
class Refitted:
    """A model that was trained once more.

    Args:
        trainer: Holding the weights of the last epoch.
        task: What it learnt.
        towers: The user's own towers that it holds, by ``query_tower`` and ``item_tower``.
    """

    trainer: Trainer
    task: Task
    towers: Mapping[str, nn.Module | None]


def learnt_by(refit: Refit) -> Learnt | None:
    """Return what a second training is to learn, too; None where there is none.

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
    towers: Mapping[str, nn.Module | None] | None = None,
    watcher: Callback,
) -> Refitted | None:
    """Return a model that is trained from the start for as many epochs as were best; None after Ctrl-C.

    An epoch holds more events then, and so more steps of the same size: each event is learnt as often as
    before. The schedules of step size and temperature are those of the first training. Features are fitted
    again, so that what validation brought is known, but for towers of the user's own, which were made for
    the first ones.

    Args:
        chosen: The trainer whose settings were chosen.
        done: Its progress, whose log gets a record of the second training, or that Ctrl-C ended it.
        task: What it learnt.
        learnt: What is learnt, too.
        towers: Modules of the user's own, untrained.
        watcher: Is told how it goes.
    """
    modules = deepcopy(dict(towers or {}))
    is_custom = any(module is not None for module in modules.values())
    more = task.learning(learnt, refits_features=not is_custom)
    trainer = Trainer(more.dataset, more.sides, chosen.config, **modules)
    progress = trainer.fit(watcher=watcher, epochs=done.best_epoch)
    if progress.interrupted:
        done.interrupt()
        return None
    record: dict[str, Any] = {"event": "refit", "learnt": learnt, "epochs": done.best_epoch}
    if progress.log:
        record["loss"] = progress.log[-1]["loss"]
    done.log.append(record)
    return Refitted(trainer, more, modules)


def announced(learnt: Learnt, done: Progress) -> str:
    """Return in words what is done."""
    return (
        f"refit: trained once more on {SAID[learnt]}, for as many epochs as validation chose "
        f"({done.best_epoch})"
    )


def not_refitted(learnt: Learnt) -> str:
    """Return in words that Ctrl-C left the model before."""
    return (
        f"refit: interrupted; the bundle holds the model before, which did not learn {SAID[learnt]}"
    )
