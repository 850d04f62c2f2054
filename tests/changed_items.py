"""A bundle with a thousand queries, whose catalogue has changed since it was opened."""

from datetime import date
from pathlib import Path

import polars as pl

from twotower.data.sources.synthetic import World, WorldConfig
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train

THOUSAND = WorldConfig(
    num_items=300,
    num_clusters=10,
    num_personas=4,
    num_queries=1000,
    events_per_query=6,
    seed=3,
)
ODD = ['a\ttab, a \\ and "quotes"', "two\nlines\r", "", None, r"\N", "{1,NULL}", "薄荷 café"]


def change_items(folder: Path) -> Retriever:
    """Return 1,000 queries and 300 items with ids of text, of which one changed, one came and two went.

    Their columns hold what other systems stumble over.
    """
    world = World(THOUSAND).generate()
    key = pl.format("item's {}", "item_id").alias("item_id")
    odd = [ODD[place % len(ODD)] for place in range(len(world.items))]
    items = world.items.with_columns(
        key,
        odd=pl.Series(odd, dtype=pl.String),
        names=pl.Series([[text, None, "b"] if text else None for text in odd]),
        shares=pl.Series([[0.1, float("nan")]] * len(odd)),
        since=pl.Series([date(2020, 1, 1), None] * (len(odd) // 2)),
    )
    trained = train(
        world.interactions.with_columns(key),
        items=items,
        queries=world.queries,
        out=folder / "model",
        config={
            "training": {"epochs": 1, "solver": "gradient"},
            "towers": {
                "dim": 16,
                "history": "pooled",
                "query_id": "off",
                "question_time": "off",
                "similarity": "dot",
            },
            "features": {"item": dict.fromkeys(("odd", "names", "shares", "since"), "shown")},
        },
    )
    assert trained.path is not None
    retriever = Retriever.open(trained.path)
    lines = retriever.items(["item's 7", "item's 8"]).to_dicts()
    retriever.upsert_items([lines[0] | {"item_id": "new"}, lines[1] | {"title": "another"}])
    best = [retriever.recommend(query, k=1).item_ids[0] for query in (1, 2)]
    assert retriever.delete_items(best) == len(set(best))
    return retriever
