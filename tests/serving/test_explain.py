"""What each part of a query and of an item does for their score."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.data.sources.synthetic import SyntheticTables
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train

QUICK: dict[str, dict[str, Any]] = {
    "training": {"epochs": 2, "threads": 1},
    "towers": {"history": "pooled", "dim": 8},
}


@pytest.fixture(scope="module")
def retriever(small_world: SyntheticTables) -> Retriever:
    return train(
        small_world.interactions,
        items=small_world.items,
        queries=small_world.queries,
        config=QUICK,
        baselines=[],
    ).retriever


def score_of(retriever: Retriever, query: object, item: object, **told: object) -> float:
    vector = retriever.encode_queries(query, **told)[0]  # type: ignore[arg-type]
    return float(vector @ retriever.encode_items([item])[0])  # type: ignore[list-item]


def test_parts_are_the_score_minus_the_score_without_each(retriever: Retriever) -> None:
    query, item = retriever.contents.queries.ids.ids[3], retriever.contents.items.ids.ids[7]
    found = retriever.explain(query, item)
    assert found.score == pytest.approx(score_of(retriever, query, item), abs=1e-5)
    of = {(part.side, part.name): part for part in found.parts}
    history = retriever.history(query)
    whole = found.score - score_of(retriever, query, item, history=[])
    assert of["query", "history"].contribution == pytest.approx(whole, abs=1e-5)
    # Features of the query and of the item, as a caller would leave them out.
    for transform in retriever.contents.queries.transforms.transforms:
        name = transform.feature.name
        if transform.feature.kind == "id":
            assert ("query", name) not in of  # no tower reads it here
            continue
        without = score_of(retriever, query, item, features={name: None})
        assert of["query", name].contribution == pytest.approx(found.score - without, abs=1e-5)
    line = retriever.items([item]).row(0, named=True)
    vector = retriever.encode_queries(query)[0]
    for transform in retriever.contents.items.transforms.transforms:
        name = transform.feature.name
        other = retriever.encode_items(features={**line, name: None})[0]
        gone = found.score - float(vector @ other)
        assert of["item", name].contribution == pytest.approx(gone, abs=1e-5)
        assert of["item", name].value == line[name]
    events = [part for part in found.parts if part.side == "history"]
    read = history[-retriever.encoding.history_length :]
    assert sorted(part.name for part in events) == sorted(map(str, read))
    assert [part.side for part in found.parts[-len(events) :]] == ["history"] * len(events)


def test_an_event_does_what_its_absence_undoes(retriever: Retriever) -> None:
    items = retriever.contents.items.ids.ids.to_list()
    told = items[10:14]
    found = retriever.explain(None, items[3], history=told)
    for place, item in enumerate(told):
        rest = told[:place] + told[place + 1 :]
        without = score_of(retriever, None, items[3], history=rest)
        (part,) = (p for p in found.parts if p.side == "history" and p.name == str(item))
        assert part.contribution == pytest.approx(found.score - without, abs=1e-5)


def test_the_largest_come_first_and_read_as_a_table(retriever: Retriever) -> None:
    item = retriever.contents.items.ids.ids[7]
    found = retriever.explain(retriever.contents.queries.ids.ids[3], item)
    frame = found.to_polars()
    assert frame.columns == ["side", "name", "value", "contribution"]
    for is_event in (True, False):
        some = frame.filter((pl.col("side") == "history") == is_event)["contribution"].to_numpy()
        assert (np.diff(some) <= 0).all()
        assert len(some)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.explain(1, "no such item"), "item ids must be in the catalogue, got 'no such"),
        (lambda r: r.explain([1, 2], r.contents.items.ids.ids[0]), "explain is of one query"),
    ],
)
def test_what_cannot_be_explained_is_named(
    retriever: Retriever, ask: Callable[[Retriever], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ask(retriever)


def test_a_part_that_no_tower_reads_is_not_told(small_world: SyntheticTables) -> None:
    only = {**QUICK, "towers": {**QUICK["towers"], "item_id": "off"}}
    retriever = train(
        small_world.interactions, items=small_world.items, config=only, baselines=[]
    ).retriever
    ids = retriever.contents.items.ids.ids
    found = retriever.explain(None, ids[0], history=[ids[1]])
    names = {part.name for part in found.parts if part.side == "item"}
    assert retriever.item_column not in names
    assert names
