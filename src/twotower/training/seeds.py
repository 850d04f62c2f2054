"""How far the figures of a model spread over trainings that differ in the seed alone."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from twotower.caller import passing
from twotower.config import Config
from twotower.data.dataset import Part
from twotower.errors import NothingLearntError
from twotower.evaluation.figures import KS
from twotower.evaluation.ranking import evaluate_on
from twotower.training.callbacks import Callback
from twotower.training.refit import refitted
from twotower.training.task import Task
from twotower.training.trainer import Trainer


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
    """Return mean, standard deviation (of a sample) and values of each metric over some seeds.

    Args:
        first: The metrics of the model with the seed of ``config``.
        seeds: How many seeds, that one included; at least 2.
        task: What is learnt.
        config: With no ``auto`` left.
        towers: Modules of the user's own, untrained.
        bar: Is told how the trainings go.
        refit: Whether the model learns the validation events, too.

    Raises:
        NothingLearntError: Ctrl-C came in one of the trainings.
    """
    others = []
    for place in range(1, seeds):
        seed = config.training.seed + place
        bar.on_phase(f"training, seed {seed} ({place + 1} of {seeds})")
        of_seed = replace(config, training=replace(config.training, seed=seed))
        others.append(_means(task, of_seed, towers, bar, refit=refit))
    spread = {}
    for metric in others[0]:
        values = [first[metric], *(figures[metric] for figures in others)]
        mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
        spread[metric] = {"mean": mean, "sd": deviation, "values": values}
    return spread


def _means(
    task: Task,
    config: Config,
    towers: Mapping[str, nn.Module | None],
    bar: Callback,
    *,
    refit: bool,
) -> dict[str, float]:
    """Return the model's metrics after a training; nothing else of it is kept."""
    dataset = task.dataset
    trainer = Trainer(dataset, task.sides, config, **deepcopy(dict(towers)))
    done = trainer.fit(watcher=bar)
    if refit and not done.interrupted:
        again = refitted(trainer, done, task, "valid", towers=towers, watcher=bar)
        trainer = trainer if again is None else again.trainer
    if done.interrupted:
        raise NothingLearntError(
            f"Interrupted in the training of seed {config.training.seed}: no bundle was written; "
            f"go on with {passing(resume=True)}."
        )
    return evaluate_on(dataset, trainer.scorer(), dataset.cases(Part.TEST), KS).mean()
