"""Sessions that go on: each answer is that of the whole history, and each event is read once."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from twotower.data.sources.synthetic import SyntheticTables
from twotower.histories import Histories
from twotower.serving.arguments import queries_of
from twotower.serving.retriever import Retriever
from twotower.serving.session import Session
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.training.pipeline import train

LENGTH = 6
NOON = 1_900_000_800.0
"""Long after the last event; everybody asks then."""
WAYS = [*HISTORY_ENCODERS, "none"]


@pytest.fixture(scope="module", params=WAYS)
def retriever(request: pytest.FixtureRequest, small_world: SyntheticTables) -> Retriever:
    """A small model that reads histories in one way; the world's events have times."""
    return train(
        small_world.interactions,
        items=small_world.items,
        queries=small_world.queries,
        config={
            "towers": {"dim": 8, "history": request.param, "history_length": LENGTH},
            "training": {"epochs": 1, "batch_size": 64, "precision": "float32"},
        },
        baselines=[],
    ).retriever


def full_pass(retriever: Retriever, query_id: Any, items: list[Any], times: Any) -> Any:
    """Return the vector of the whole history, read at once and asked at noon."""
    rows = retriever.contents.items.ids.rows_of(items)
    history = replace(Histories.of([rows]), asked=np.array([NOON]))
    if times is not None:
        history = replace(history, times=np.array(times, np.float64))
    row = retriever.contents.queries.ids.rows_of([query_id])
    features = {name: values[row] for name, values in retriever.query_features.items()}
    return retriever.encoding.query_vectors(features, history)[0].cpu().numpy()


@pytest.mark.parametrize("timed", [False, True])
def test_each_event_more_gives_the_vector_of_the_full_pass(
    retriever: Retriever, timed: bool
) -> None:
    ids = retriever.contents.items.ids.ids.to_list()
    query = retriever.contents.queries.ids.ids[0]
    session = retriever.session(query, history=[ids[0]])
    items, times = [ids[0]], None
    if timed:
        session = Session(retriever, retriever.queries.described(queries_of(query, history=[])))
        session.add(ids[0], 1.6e9)
        times = [1.6e9]
    for i in range(1, LENGTH + 4):  # past what the model reads
        moment = 1.6e9 + 4e4 * i * i
        session.add(ids[7 * i % 60], moment if timed else None)
        items.append(ids[7 * i % 60])
        if times is not None:
            times.append(moment)
        expected = full_pass(retriever, query, items, times)
        np.testing.assert_allclose(session.encode(at=NOON), expected, atol=1e-5)
    assert session.history == items


def test_a_session_answers_as_recommend_does(retriever: Retriever) -> None:
    ids = retriever.contents.items.ids.ids.to_list()
    session = retriever.session()
    history: list[Any] = []
    for item in (ids[3], "nowhere", ids[8], ids[3]):
        session.add(item)
        history.append(item)
        expected = retriever.recommend(history=history, k=7, at=NOON)
        for _ in range(2):  # asking changes nothing
            found = session.recommend(7, at=NOON)
            assert found.item_ids == expected.item_ids
            assert found.basis == expected.basis
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert session.history == [ids[3], ids[8], ids[3]]
    few = session.recommend(3, exclude_seen=False, among=ids[:5], without=[ids[4]], at=NOON)
    again = retriever.recommend(
        history=history, k=3, exclude_seen=False, among=ids[:5], without=[ids[4]], at=NOON
    )
    assert few.item_ids == again.item_ids


def test_a_known_query_goes_on_from_what_the_bundle_knows(retriever: Retriever) -> None:
    query = retriever.contents.queries.ids.ids[4]
    session = retriever.session(query)
    assert session.history == retriever.history(query)
    first, known = session.recommend(at=NOON), retriever.recommend(query, at=NOON)
    assert first.item_ids == known.item_ids
    assert first.query_id == query
    # Without a time of its own the event cannot be placed among those that have one.
    new = retriever.contents.items.ids.ids[11]
    session.add(new)
    assert session.history[-1] == new
    features = retriever.contents.queries.frame
    assert features.height
    expected = full_pass(retriever, query, session.history, None)
    np.testing.assert_allclose(session.encode(at=NOON), expected, atol=1e-5)


def test_features_describe_a_session(retriever: Retriever) -> None:
    told = {"segment": "segment-1"}
    item = retriever.contents.items.ids.ids[0]
    session = retriever.session(features=told, history=[item])
    assert session.recommend(at=NOON).item_ids == (
        retriever.recommend(features=told, history=[item], at=NOON).item_ids
    )


def test_each_event_is_read_once(small_world: SyntheticTables) -> None:
    retriever = train(
        small_world.interactions,
        config={
            "towers": {"dim": 8, "history": "transformer"},
            "training": {"epochs": 1, "batch_size": 64, "precision": "float32"},
        },
        baselines=[],
    ).retriever
    ids = retriever.contents.items.ids.ids.to_list()
    session = retriever.session()
    read = []
    encoder = retriever.encoding.model.query_tower.history
    encoder.blocks[0].query.register_forward_hook(  # type: ignore[union-attr, index]
        lambda _module, _inputs, output: read.append(output.shape[1])
    )
    for item in ids[:5]:
        session.add(item)
        session.recommend(2)
    assert read == [1] * 6  # the start, and five events


def test_what_a_session_refuses(retriever: Retriever) -> None:
    with pytest.raises(ValueError, match="session is of one query, got several"):
        retriever.session([1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        retriever.session().recommend(0)
