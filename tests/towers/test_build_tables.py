"""Which embedding tables have sparse gradients."""

import numpy as np
import polars as pl
import pytest
from torch import nn

from twotower.config import TowersConfig
from twotower.features.schema import Feature, Side
from twotower.features.transforms import SideTransforms
from twotower.towers.build import build_model

NUM_IDS = 12


def ids(side: Side) -> SideTransforms:
    frame = pl.DataFrame({"key": np.arange(NUM_IDS)})
    return SideTransforms.fit((Feature("key", side, "id", ""),), frame, np.full(NUM_IDS, 1), 1)


def sparse_sides(*, sparse: bool) -> set[str]:
    config = TowersConfig(dim=4, history="none", query_id="on", similarity="dot")
    model = build_model(config, ids("query"), ids("item"), sparse=sparse)
    return {
        name.split("_")[0]
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.sparse
    }


def test_those_of_queries_always_where_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every item may be a negative of every step; a step's queries are its own batch."""
    assert sparse_sides(sparse=True) == set()
    monkeypatch.setattr("twotower.features.encoders.SPARSE_FROM_ROWS", NUM_IDS)
    assert sparse_sides(sparse=True) == {"query", "item"}
    assert sparse_sides(sparse=False) == {"query"}
