"""What only the time of the question tells is learnt, by pairs and by whole histories."""

import numpy as np
import polars as pl
import pytest

from trainers import without_baselines
from twotower import Retriever
from twotower.evaluation.evaluate_bundle import evaluate_bundle

SOON, LATER = 60.0, 5e5
QUERIES, EVENTS = 240, 9


def events() -> pl.DataFrame:
    """Events that come soon or late, at random; only that says which items they are."""
    rng = np.random.default_rng(0)
    is_soon = rng.random((QUERIES, EVENTS)) < 0.5
    times = 1.6e9 + np.where(is_soon, SOON, LATER).cumsum(axis=1)
    items = rng.integers(0, 5, is_soon.shape) + np.where(is_soon, 0, 5)
    owners = np.repeat(np.arange(QUERIES), EVENTS)
    return pl.DataFrame({"user": owners, "item": items.ravel(), "timestamp": times.ravel()})


@pytest.mark.parametrize("history", ["pooled", "transformer"])
def test_what_comes_soon_and_what_comes_later_are_told_apart(history: str) -> None:
    contents, trainer = without_baselines(
        events(),
        {
            "data": {"repeats": "yes"},
            "towers": {"dim": 8, "history": history, "question_time": "on"},
            "training": {"epochs": 12, "patience": 12, "precision": "float32"},
        },
    )
    assert trainer.config.training.examples == ("prefixes" if history == "transformer" else "pairs")
    retriever = Retriever(contents)
    assert contents.histories is not None
    assert contents.histories.times is not None
    last = contents.histories.times[contents.histories.offsets[3:] - 1]
    ids = contents.queries.ids.ids.to_list()
    for gap, group in ((SOON, range(5)), (LATER, range(5, 10))):
        answers = retriever.recommend(ids, k=1, at=(last + gap).tolist())
        assert np.mean([answer.item_ids[0] in group for answer in answers]) > 0.95
    if history == "pooled":
        asked = events().group_by("user", maintain_order=True).last()
        note = (
            "The test's events have no times, so the model answers as if the time of each question "
        )
        timeless = evaluate_bundle(retriever, test=asked.drop("timestamp"), baselines=[])
        timed = evaluate_bundle(retriever, test=asked, baselines=[])
        assert timeless["protocol"]["notes"] == [f"{note}were unknown."]
        assert "notes" not in timed["protocol"]
        assert timeless["model"]["ndcg@10"] < timed["model"]["ndcg@10"] - 0.1
