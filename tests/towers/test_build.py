"""``build_model``: what a configuration describes, and towers that would read nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from twotower.config import TowersConfig
from twotower.errors import ConfigError
from twotower.features.schema import Feature, Side
from twotower.features.transforms import SideTransforms
from twotower.towers.build import build_model
from twotower.towers.layers import Dropout
from twotower.towers.model import CustomTower, ItemTower, QueryTower, TwoTower

FRAME = pl.DataFrame({"key": [1, 2, 3], "price": [1.0, 2.0, 5.0], "size": [2.0, 1.0, 0.0]})
CONFIG = TowersConfig(dim=8, history="mean", query_id="off", similarity="dot")


def transforms(side: Side, **kinds: str) -> SideTransforms:
    features = tuple(Feature(name, side, kind, "") for name, kind in kinds.items())
    return SideTransforms.fit(features, FRAME, np.array([9, 9, 9]), 1)


QUERIES = transforms("query", key="id", price="number")
ITEMS = transforms("item", key="id", price="number")


def build(config: TowersConfig = CONFIG, **changes: Any) -> TwoTower:
    return build_model(
        config, changes.pop("queries", QUERIES), changes.pop("items", ITEMS), **changes
    )


def names(model: TwoTower) -> list[str]:
    tower = model.query_tower
    assert isinstance(tower, QueryTower)
    return [] if tower.encoder is None else tower.encoder.names


def test_the_query_id_is_read_on_wish_and_the_item_id_always() -> None:
    assert names(build()) == ["price"]
    assert names(build(replace(CONFIG, query_id="on"))) == ["key", "price"]
    tower = build().item_tower
    assert isinstance(tower, ItemTower)
    assert tower.encoder.names == ["key", "price"]


def test_every_setting_reaches_its_place() -> None:
    model = build(
        replace(
            CONFIG,
            query_id="on",
            query_hidden=(5, 3),
            item_hidden=(7,),
            dropout=0.25,
            id_dropout=0.5,
            similarity="cosine",
            temperature=0.2,
        )
    )
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["query_tower.block.layers.0.weight"] == (5, 8)
    assert shapes["query_tower.block.layers.3.weight"] == (3, 5)
    assert shapes["item_tower.block.layers.0.weight"] == (7, 8)
    assert {m.probability for m in model.modules() if isinstance(m, Dropout)} == {0.25}
    dropouts = [m.id_dropout for m in model.modules() if hasattr(m, "id_dropout")]
    assert dropouts == [0.5, 0.5]
    assert model.similarity == "cosine"
    assert model.temperature.item() == pytest.approx(0.2)


def test_the_history_is_read_unless_it_is_none() -> None:
    assert build().reads_history
    model = build(replace(CONFIG, history="none"))
    assert not model.reads_history
    assert names(model) == ["price"]


def test_a_query_side_without_features_reads_its_history_alone() -> None:
    model = build(queries=transforms("query", key="id"))
    assert names(model) == []
    vectors, mask = torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(model.encode_queries({}, vectors, mask), vectors.mean(dim=1))


def test_equal_seeds_give_equal_weights() -> None:
    with torch.random.fork_rng():
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(build(replace(CONFIG, query_id="on", history="pooled")).state_dict())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_towers_of_the_users_own_read_every_feature_but_the_id() -> None:
    both = transforms("query", key="id", price="number", size="number")
    model = build(queries=both, query_tower=nn.Linear(2, 8), item_tower=nn.Linear(2, 8))
    for tower, expected in ((model.query_tower, ["price", "size"]), (model.item_tower, ["price"])):
        assert isinstance(tower, CustomTower)
        assert tower.feature_names == expected


def test_a_tower_of_ones_own_may_stand_beside_one_of_ours() -> None:
    model = build(item_tower=nn.Linear(2, 8))
    features = {"price": torch.ones(3, 2)}
    assert model.encode_items(features).shape == model.encode_queries(features).shape == (3, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"config": replace(CONFIG, history="none"), "queries": transforms("query", key="id")},
            "query tower must read something, got no feature, no history and no id",
        ),
        (
            {"items": transforms("item", key="shown", price="shown")},
            "item tower must read something, got no feature and no id",
        ),
        (
            {"queries": transforms("query", key="id"), "query_tower": nn.Linear(1, 8)},
            "your own query tower must have features to read, got none beside the id",
        ),
        (
            {"items": transforms("item", key="id"), "item_tower": nn.Linear(1, 8)},
            "your own item tower must have features to read, got none beside the id",
        ),
    ],
)
def test_a_tower_that_would_read_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**changes)
