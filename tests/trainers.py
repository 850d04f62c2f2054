"""Small trainers for tests: a few settings over a common base, on tables of a synthetic world."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from twotower.config import Config, SplitConfig
from twotower.data.dataset import Dataset, Part
from twotower.data.preparation import prepare
from twotower.data.sources.synthetic import SyntheticTables
from twotower.data.splits import split
from twotower.evaluation.figures import measure
from twotower.features.schema import infer_features
from twotower.features.transforms import Sides, SideTransforms
from twotower.serving.bundle import Contents
from twotower.training.bundle_contents import contents_of
from twotower.training.callbacks import Callback
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer

Settings = dict[str, dict[str, Any]]

BASE: Settings = {
    "towers": {"dim": 8},
    # In float32, whatever the machine is quickest in.
    "training": {"epochs": 1, "batch_size": 64, "learning_rate": 0.01, "precision": "float32"},
}


class Said(Callback):
    """Records what a training says about its choices."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:  # noqa: ARG002
        self.said += choices


def merged(*settings: Settings) -> Settings:
    result: Settings = {}
    for given in settings:
        for section, values in given.items():
            result[section] = {**result.get(section, {}), **values}
    return result


def trainer_of(world: SyntheticTables, *settings: Settings) -> Trainer:
    config = Config.from_dict(merged(BASE, *settings))
    dataset, sides = _split(_ByIdentity(world), config.split)
    config, _ = resolve(config, dataset)
    return Trainer(dataset, sides, config)


def without_baselines(
    interactions: pl.DataFrame,
    config: Mapping[str, object],
    *,
    items: pl.DataFrame | None = None,
    queries: pl.DataFrame | None = None,
) -> tuple[Contents, Trainer]:
    """Return what the bundle of a training would hold, and its trainer; no baseline is fitted."""
    task = Task.of(interactions, items=items, queries=queries, config=Config.of(config))
    trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
    done = trainer.fit()
    figures = measure(trainer.scorer(), task.dataset, baselines=[])
    return contents_of(trainer, trainer.objectives[0], figures, done, histories=True), trainer


@dataclass(frozen=True)
class _ByIdentity:
    """A world that is itself alone, whatever another one holds; kept, so that its id stays its own."""

    world: SyntheticTables

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.world is other.world

    def __hash__(self) -> int:
        return id(self.world)


@lru_cache(maxsize=8)
def _split(given: _ByIdentity, how: SplitConfig) -> tuple[Dataset, Sides]:
    """Return the tables split, with the transforms of both sides: many trainers are of the same ones."""
    world = given.world
    prepared = prepare(world.interactions, items=world.items, queries=world.queries)
    dataset = split(prepared.dataset, how)
    return dataset, sides_of(dataset)


def sides_of(dataset: Dataset) -> Sides:
    events = dataset.part(Part.TRAIN)

    def fit(side: Any, rows: Any) -> SideTransforms:
        table = dataset.queries if side == "query" else dataset.items
        features = infer_features(table.frame, side, table.id_column, {})
        counts = np.bincount(rows, minlength=table.ids.num_rows)[2:]
        return SideTransforms.fit(features, table.frame, counts, 1)

    return Sides(fit("query", events.query_rows), fit("item", events.item_rows))
