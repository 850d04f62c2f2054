"""A small shop, its first bundle, and its days."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from twotower import Retriever, train
from twotower.serving.bundle import write_bundle
from twotower.training.trained import Trained

KINDS, ITEMS, QUERIES = 10, 60, 80
DAY = 86_400
BEGINS = 1_700_000_000
LATEST = range(50, ITEMS)
"""Items that appear on the second day."""
QUICK = {
    "training": {"solver": "gradient", "epochs": 3, "threads": 1, "precision": "float32"},
    "towers": {
        "dim": 8,
        "history": "pooled",
        "query_id": "off",
        "question_time": "off",
        "similarity": "cosine",
    },
}


def shop(day: int, seed: int = 0) -> pl.DataFrame:
    """Return the events of a day: a query goes on through the items of its kind. Day 0 is all before."""
    rng = np.random.default_rng([seed, day])
    rows = []
    for query in range(QUERIES + (5 * day if day else 0)):
        steps = 14 if day == 0 else int(rng.integers(0, 4))
        for step in range(steps):
            kind = query % KINDS
            is_latest = day > 1 and rng.random() < 0.3
            item = int(rng.integers(0, LATEST[0])) // KINDS * KINDS + kind
            item = LATEST[kind] if is_latest else item
            rows.append((query, item, BEGINS + day * 30 * DAY + step * 3600 + query))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def lines(items: Any) -> pl.DataFrame:
    """Return lines of the items' table."""
    kinds = [f"kind {item % KINDS}" for item in items]
    return pl.DataFrame({"item_id": list(items), "kind": kinds})


def trained(**changes: Any) -> Trained:
    """Return the first bundle, in memory, with some sections of the settings changed."""
    config = {name: {**QUICK.get(name, {}), **changes.get(name, {})} for name in {*QUICK, *changes}}
    return train(
        shop(0),
        items=lines(range(LATEST[0])),
        config=config,
        baselines=("popularity",),
        progress=None,
    )


@cache
def first() -> Trained:
    """Return the first bundle of the quick settings."""
    return trained()


def written(folder: Path) -> Path:
    """Write the first bundle, and return its path."""
    path = folder / "model"
    write_bundle(path, first().contents)
    return path


def vectors_of(retriever: Retriever) -> dict[Any, np.ndarray[Any, Any]]:
    """Return the vector of each item by its id."""
    ids = retriever.contents.items.ids.ids.to_list()
    return dict(zip(ids, retriever.contents.item_vectors.numpy(), strict=True))
