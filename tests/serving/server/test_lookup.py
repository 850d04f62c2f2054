"""What people look up on the page."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.histories import Histories
from twotower.serving.retriever import Retriever
from twotower.serving.server.lookup import example_of, filter_example, items_like, query_fields

COLUMNS: dict[str, list[Any]] = {
    "genres": [["Comedy", "War"], ["Drama"]] * 100,
    "in": [50, 60] * 100,
    "x": [float("nan"), 2.5] * 100,
    "c": ["a\\b's", "other"] * 100,
    "a name": ["x `y", "z"] * 100,
    "nothing": [None] * 200,
}


def with_column(retriever: Retriever, name: str) -> Retriever:
    contents = retriever.contents
    frame = contents.items.frame.select(retriever.item_column).with_columns(
        pl.Series(name, COLUMNS[name])
    )
    return Retriever(replace(contents, items=replace(contents.items, frame=frame)))


@pytest.mark.parametrize("name", COLUMNS)
def test_the_example_of_a_filter_is_one_and_finds_something(
    tiny_retriever: Retriever, name: str
) -> None:
    retriever = with_column(tiny_retriever, name)
    example = filter_example(retriever)
    assert (f"`{name}`" in example) == (name != "nothing")
    assert len(retriever.recommend(5, filter=example)) > 0


def test_the_example_speaks_of_the_columns_as_they_are(tiny_retriever: Retriever) -> None:
    example = filter_example(tiny_retriever)
    assert len(tiny_retriever.recommend(5, filter=example)) > 0
    assert " and " in example


def test_examples_of_a_column_are_values_that_ten_queries_have(tiny_retriever: Retriever) -> None:
    contents = tiny_retriever.contents
    rare = contents.queries.frame["segment"].to_list()
    rare[:9] = ["of nine"] * 9
    rare[9:19] = ["of ten"] * 10
    frame = contents.queries.frame.with_columns(segment=pl.Series(rare))
    retriever = Retriever(replace(contents, queries=replace(contents.queries, frame=frame)))
    fields = {field["name"]: field for field in query_fields(retriever)}
    assert list(fields) == ["segment", "signal"]
    assert "of ten" in fields["segment"]["examples"]
    assert "of nine" not in fields["segment"]["examples"]
    (middle,) = fields["signal"]["examples"]
    assert middle == pytest.approx(frame["signal"].median(), abs=0.2)


def test_an_example_has_a_history(tiny_retriever: Retriever) -> None:
    contents = tiny_retriever.contents
    assert contents.histories is not None
    lengths = contents.histories.lengths
    kept = np.zeros(len(lengths), np.int64)
    kept[7] = lengths[7]
    histories = Histories(
        np.concatenate([[0], np.cumsum(kept)]), contents.histories.take(slice(7, 8)).item_rows
    )
    retriever = Retriever(replace(contents, histories=histories))
    drawn = example_of(retriever, np.random.default_rng(0))
    assert drawn["query_id"] == contents.queries.ids.ids[5]


def test_what_is_the_text_comes_first(tiny_retriever: Retriever) -> None:
    found = items_like(tiny_retriever, "synthetic item 1", 200)
    titles = [line["title"] for line in found]
    assert titles[0] == "Synthetic item 1"
    assert all("Synthetic item 1" in title for title in titles)
    assert items_like(tiny_retriever, "nowhere to be found", 9) == []
