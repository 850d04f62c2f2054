"""An update of a bundle with a second stage is checked on what the bundle answers, night after night."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower import evaluate_bundle, train, update

NUM_ITEMS, NUM_QUERIES, LENGTH, HOUR = 60, 160, 10, 3600
QUICK: dict[str, Any] = {
    "towers": {"dim": 8, "history": "mean", "query_id": "off", "question_time": "off"},
    "training": {"epochs": 2, "batch_size": 64, "learning_rate": 0.01, "solver": "gradient"},
    "loss": {"negatives": "all"},
    "data": {"repeats": "no"},
    "rerank": {"use": "on"},
}


def tables() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return events that go round a ring, the items' names, and queries that name some of their items."""
    rng = np.random.default_rng(1)
    steps = 1 + (rng.random((NUM_QUERIES, LENGTH)) < 0.3).astype(np.int64)
    rings = (rng.integers(NUM_ITEMS, size=(NUM_QUERIES, 1)) + steps.cumsum(axis=1)) % NUM_ITEMS
    events = pl.DataFrame(
        {
            "user": np.repeat(np.arange(NUM_QUERIES), LENGTH),
            "item": rings.ravel(),
            "timestamp": np.tile(np.arange(LENGTH) * HOUR, NUM_QUERIES),
        }
    )
    names = [f"w{item} w{(item + 1) % NUM_ITEMS}" for item in range(NUM_ITEMS)]
    items = pl.DataFrame({"item": range(NUM_ITEMS), "title": names})
    said = [" ".join(f"w{item}" for item in ring[-5:]) for ring in rings.tolist()]
    return events, items, pl.DataFrame({"user": range(NUM_QUERIES), "said": said})


@pytest.mark.parametrize("with_words", [False, True])
def test_a_night_checks_what_the_bundle_answers(with_words: bool, one_thread: None) -> None:
    events, items, queries = tables()
    sides: dict[str, Any] = {"items": items, "queries": queries} if with_words else {}
    hours = events.partition_by("timestamp", maintain_order=True)
    before = pl.concat(hours[:-2]).sort("user", maintain_order=True)
    bundle = train(before, config=QUICK, baselines=["popularity"], progress=None, **sides)
    assert bundle.contents.ranker is not None
    assert bool(bundle.figures.get("words", {}).get("share")) == with_words
    one = update(bundle, hours[-2], progress=None, force=True)
    asked = evaluate_bundle(one, test=hours[-1], baselines=[])
    two = update(one, hours[-1], progress=None, force=True)
    assert two.figures["yesterday"]["ndcg@10"] == pytest.approx(asked["ranked"]["ndcg@10"])
    for night, found in enumerate((one, two), 1):
        assert found.contents.ranker is not None
        counts = found.contents.ranker.memory.counts
        assert counts.sum() == len(before) + night * NUM_QUERIES
