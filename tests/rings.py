"""A small world for tests of the second stage: events that go round a ring of items."""

from typing import Any

import numpy as np
import polars as pl

NUM_ITEMS, HOUR = 60, 3600
QUICK: dict[str, Any] = {
    "towers": {"dim": 8, "history": "mean", "query_id": "off", "question_time": "off"},
    "training": {
        "epochs": 3,
        "batch_size": 64,
        "learning_rate": 0.01,
        "solver": "gradient",
        "start": "random",
    },
    "loss": {"negatives": "all"},
    "data": {"repeats": "no"},
}
"""Settings of a training that takes a second, and whose model a second stage improves."""


def ring_events(
    num_queries: int, length: int, *, jumps: float = 0.0, leaps: float = 0.0, seed: int = 1
) -> pl.DataFrame:
    """Return events, one an hour: each goes one item further than the one before.

    Args:
        num_queries: How many queries there are.
        length: Events of each.
        jumps: Share of steps that go two items further.
        leaps: Share of steps that go to any other item, so that order tells nothing of the next one.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    shape = (num_queries, length)
    steps = 1 + (rng.random(shape) < jumps).astype(np.int64)
    starts = rng.integers(NUM_ITEMS, size=(num_queries, 1))
    steps = np.where(rng.random(shape) < leaps, rng.integers(1, NUM_ITEMS, shape), steps)
    return pl.DataFrame(
        {
            "user": np.repeat(np.arange(num_queries), length),
            "item": ((starts + np.cumsum(steps, axis=1)) % NUM_ITEMS).ravel(),
            "timestamp": np.tile(np.arange(length) * HOUR, num_queries),
        }
    )


def texts_of(events: pl.DataFrame) -> dict[str, Any]:
    """Return tables of both sides: items have two words, and queries name some of their last items."""
    names = [f"w{item} w{(item + 1) % NUM_ITEMS}" for item in range(NUM_ITEMS)]
    said = events.group_by("user", maintain_order=True).agg(
        said=pl.format("w{}", pl.col("item").tail(5)).str.join(" ")
    )
    return {"items": pl.DataFrame({"item": range(NUM_ITEMS), "title": names}), "queries": said}
