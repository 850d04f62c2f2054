"""What a history reads of an item: all that the item tower is told, its id alone, or tables of its own."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from trainers import trainer_of
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import ConfigError
from twotower.histories import Histories
from twotower.training.pipeline import train
from twotower.training.trainer import Trainer
from twotower.vocab import UNKNOWN_ROW

WAYS = ["tower", "ids", "separate"]


def trainer_with(world: SyntheticTables, way: str) -> Trainer:
    return trainer_of(world, {"towers": {"history": "mean", "history_items": way, "dropout": 0.0}})


def vector(trainer: Trainer, item_row: int) -> Any:
    """Return the vector of a query whose history is one item."""
    row = np.array([UNKNOWN_ROW])
    features = {name: values[row] for name, values in trainer.query_arrays.items()}
    history = Histories.of([np.array([item_row], np.int32)])
    return trainer.encoding.query_vectors(features, history)[0]


def features_changed(trainer: Trainer, item_row: int) -> Any:
    """Return the same with all features of the item, its id apart, taken from another item."""
    encoding = trainer.encoding
    changed = {name: values.clone() for name, values in encoding.item_features.items()}
    for name in changed:
        if name != trainer.dataset.items.id_column:
            changed[name][item_row] = changed[name].flip(0)[item_row]
    before, encoding.item_features = encoding.item_features, changed
    try:
        return vector(trainer, item_row)
    finally:
        encoding.item_features = before


@pytest.mark.parametrize("way", WAYS)
def test_features_of_an_item_count_but_where_its_id_is_read_alone(
    small_world: SyntheticTables, way: str
) -> None:
    trainer = trainer_with(small_world, way)
    same = torch.equal(vector(trainer, 5), features_changed(trainer, 5))
    assert same == (way == "ids")
    assert not torch.equal(vector(trainer, 5), vector(trainer, 6))


@pytest.mark.parametrize("way", WAYS)
def test_only_a_history_of_its_own_leaves_the_item_towers_tables_alone(
    small_world: SyntheticTables, way: str
) -> None:
    trainer = trainer_with(small_world, way)
    tables = dict(trainer.model.named_parameters())
    vectors = vector_with_gradient(trainer)
    vectors.sum().backward()
    touched = {
        name.split(".")[0] for name, p in tables.items() if p.grad is not None and p.grad.any()
    }
    of_items = "item_tower" in touched
    assert of_items == (way != "separate")
    assert ("query_tower.items" in " ".join(tables)) == (way == "separate")


def vector_with_gradient(trainer: Trainer) -> Any:
    model = trainer.model.train()
    rows = torch.tensor([5])
    inputs = model.history_inputs({n: v[rows] for n, v in trainer.item_features.items()})
    features = {n: torch.from_numpy(v[:1].copy()) for n, v in trainer.query_arrays.items()}
    return model.encode_queries(features, inputs[None], torch.ones(1, 1, dtype=torch.bool))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("history", ["pooled", "transformer"])
def test_a_bundle_reads_items_as_the_training_did(
    small_world: SyntheticTables, way: str, history: str
) -> None:
    trained = train(
        small_world.interactions,
        items=small_world.items,
        queries=small_world.queries,
        config={
            "towers": {"dim": 8, "history": history, "history_items": way},
            "training": {
                "epochs": 2,
                "batch_size": 64,
                "precision": "float32",
                "solver": "gradient",
            },
        },
    )
    losses = [record["loss"] for record in map(json.loads, trained.contents.log.splitlines())]
    assert losses[1] < losses[0]
    query = trained.contents.queries.ids.ids[0]
    items = trained.retriever.history(query)
    session = trained.retriever.session(history=items[:3])
    expected = trained.retriever.encode_queries(history=items[:3])[0]
    np.testing.assert_allclose(session.encode(), expected, atol=1e-5)


def test_ids_need_an_id(small_world: SyntheticTables) -> None:
    with pytest.raises(ConfigError, match="must not be 'ids' where the item tower reads no id"):
        train(
            small_world.interactions,
            items=small_world.items,
            config={
                "towers": {"history_items": "ids"},
                "features": {"item": {small_world.items.columns[0]: "shown"}},
            },
        )
