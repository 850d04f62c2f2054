"""Whether queries have ids of their own beside their histories: both are trained, validation decides."""

from dataclasses import replace

import numpy as np

from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.features.transforms import Sides
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.trainer import Trainer, TrainingDivergedError

IDS_FROM = 20
"""Training events a query from which an id of its own may know more than the events that are read."""
IDS_UP_TO = 300_000
"""Training events up to which a model with ids is trained, too, to see whether it is better."""


def tries_ids(config: Config, chosen: Config, dataset: Dataset) -> bool:
    """Return whether validation is to decide if queries have an id of their own beside their history.

    That is so where it was left to ``auto``, queries have many events, and those that are asked about were
    trained on; and where one more training takes minutes at most.

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
    trainer: Trainer, done: Progress, sides: Sides, bar: Callback
) -> tuple[Trainer, Progress, str]:
    """Return the better on validation of a training without ids of the queries and one with them.

    Ctrl-C in the second keeps the first, and so does a loss that is not finite.

    Args:
        trainer: Without ids, holding its best weights.
        done: Its progress.
        sides: The fitted features.
        bar: Is told of the second training.

    Returns:
        The chosen trainer, its progress, and a sentence.
    """
    config = trainer.config
    towers = replace(config.towers, query_id="on")
    other = Trainer(trainer.dataset, sides, replace(config, towers=towers))
    bar.on_phase("training with query ids")
    try:
        progress = other.fit(watcher=bar)
    except TrainingDivergedError:
        return trainer, done, "towers.query_id = 'off': a training with ids diverged"
    without, name = done.best_metric, config.training.metric
    if progress.interrupted:
        done.interrupt()
        return trainer, done, "towers.query_id = 'off': a training with ids was not finished"
    assert without is not None
    assert progress.best_metric is not None
    figures = f"validation {name} {progress.best_metric:.4f} with it, {without:.4f} without"
    if progress.best_metric <= without:
        return trainer, done, f"towers.query_id = 'off': {figures}"
    return other, progress, f"towers.query_id = 'on': {figures}"
