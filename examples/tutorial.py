"""The two-tower tutorial, kept: random features, 0/1 labels, a cosine into BCE, a printed loss.

Below it the same idea on MovieLens with what the tutorial leaves out: docs/from-the-tutorial.md.
"""

import polars as pl
import torch
from torch import nn

import twotower
from twotower.data.sources.movielens import fetch

torch.manual_seed(0)
queries, items = torch.randn(100, 10), torch.randn(100, 20)
shown = {name: torch.randint(100, (1000,)).numpy() for name in ("query_id", "item_id")}
pairs = pl.DataFrame({**shown, "label": torch.randint(2, (1000,)).numpy()})


def tower(width: int) -> nn.Module:
    """Linear, ReLU, Linear."""
    return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 16))


as_told = {
    "towers": {"similarity": "cosine", "temperature": 1.0},
    "loss": {"kind": "bce", "negatives": "labels"},
    "training": {"optimizer": "adam", "learning_rate": 1e-3, "batch_size": 32, "epochs": 5},
}
users, things = tower(10), tower(20)
twotower.train(
    pairs,
    queries=queries,
    items=items,
    query_tower=users,
    item_tower=things,
    config=as_told,
    progress="bar",
)

films = fetch("movielens-100k")
hidden = {"towers": {"query_hidden": [16], "item_hidden": [16]}}
twotower.train(films.interactions, items=films.items, queries=films.queries, config=hidden)
