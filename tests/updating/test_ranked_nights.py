"""An update of a bundle with a second stage is checked on what the bundle answers, night after night."""

from typing import Any

import polars as pl
import pytest

from rings import QUICK, ring_events, texts_of
from twotower import evaluate_bundle, train, update

NUM_QUERIES = 160


@pytest.mark.parametrize("with_words", [False, True])
def test_a_night_checks_what_the_bundle_answers(with_words: bool, one_thread: None) -> None:
    events = ring_events(NUM_QUERIES, 10, jumps=0.3)
    sides: dict[str, Any] = texts_of(events) if with_words else {}
    hours = events.partition_by("timestamp", maintain_order=True)
    before = pl.concat(hours[:-2]).sort("user", maintain_order=True)
    config = {**QUICK, "rerank": {"use": "on"}}
    bundle = train(before, config=config, baselines=["popularity"], progress=None, **sides)
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
