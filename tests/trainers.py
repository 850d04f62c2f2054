"""Small trainers for tests: a few settings over a common base, on tables of a synthetic world."""

from typing import Any

import numpy as np

from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.data.prepare import prepare
from twotower.data.sources.synthetic import SyntheticTables
from twotower.data.splits import split
from twotower.features.schema import infer_features
from twotower.features.transforms import SideTransforms
from twotower.training.choices import resolve
from twotower.training.trainer import Sides, Trainer

Settings = dict[str, dict[str, Any]]

BASE: Settings = {
    "towers": {"dim": 8},
    # In float32, whatever the machine is quickest in.
    "training": {"epochs": 1, "batch_size": 64, "learning_rate": 0.01, "precision": "float32"},
}


def merged(*settings: Settings) -> Settings:
    result: Settings = {}
    for given in settings:
        for section, values in given.items():
            result[section] = {**result.get(section, {}), **values}
    return result


def trainer_of(world: SyntheticTables, *settings: Settings) -> Trainer:
    config = Config.from_dict(merged(BASE, *settings))
    prepared = prepare(world.interactions, items=world.items, queries=world.queries)
    dataset = split(prepared.dataset, config.split)
    config, _ = resolve(config, dataset)
    return Trainer(dataset, sides_of(dataset), config)


def sides_of(dataset: Dataset) -> Sides:
    events = dataset.part(Part.TRAIN)

    def fit(side: Any, rows: Any) -> SideTransforms:
        table = dataset.queries if side == "query" else dataset.items
        features = infer_features(table.frame, side, table.id_column, {})
        counts = np.bincount(rows, minlength=table.ids.num_rows)[2:]
        return SideTransforms.fit(features, table.frame, counts, 1)

    return Sides(fit("query", events.query_rows), fit("item", events.item_rows))
