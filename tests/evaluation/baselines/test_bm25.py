"""BM25 against the formula in nested loops, and which columns count as text."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.dataset import Cases, Dataset, EntityTable, Part
from twotower.data.prepare import prepare
from twotower.data.splits import split
from twotower.errors import ConfigError
from twotower.evaluation.baselines.bm25 import BM25, choose_bm25, text_columns, words_of
from twotower.evaluation.baselines.validation import Validation
from twotower.features.histories import Histories
from twotower.vocab import Vocabulary

pytest.importorskip("bm25s")


def cases_of(query_rows: list[int]) -> Cases:
    count = len(query_rows)
    targets = Histories.of([np.array([2], np.int32)] * count)
    return Cases(np.array(query_rows, np.int32), Histories.empty(count), targets)


def rows(*texts: str) -> tuple[tuple[str, ...], ...]:
    return ((), (), *(tuple(text.split()) for text in texts))


def table(name: str = "item_id", **columns: list[Any]) -> EntityTable:
    frame = pl.DataFrame(columns)
    if name not in frame.columns:
        frame = frame.with_columns(pl.Series(name, range(len(frame))))
    return EntityTable(Vocabulary(frame[name]), frame, name)


def test_worked_by_hand() -> None:
    # Lengths 2, 4 and 0, mean 2. "red": df 1, idf = log(1 + 2.5 / 1.5) = 0.98083; tf = 1 in a text of
    # the mean length: 1 / (1 + k1) = 1/2. "car": df 2, idf = log(1 + 1.5 / 2.5) = 0.47000; in the
    # second text tf = 3, b = 1: 3 / (3 + 4 / 2) = 0.6.
    fitted = BM25.fit(
        rows("red car", "car car", "blue"), rows("red car", "car car car x", ""), k1=1.0, b=1.0
    )
    scores = fitted.score(cases_of([2, 3, 4, 0]))
    red, car = 0.98083 / 2, 0.47000
    expected: list[list[float]] = [
        [0, 0, red + car / 2, 0.6 * car, 0],
        [0, 0, car, 1.2 * car, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-4)


texts = st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), min_size=1, max_size=8)


@given(
    items=texts,
    queries=texts,
    k1=st.sampled_from([0.5, 1.2, 3.0]),
    b=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_equals_nested_loops(
    items: list[list[str]], queries: list[list[str]], k1: float, b: float
) -> None:
    fitted = BM25.fit(rows(*map(" ".join, queries)), rows(*map(" ".join, items)), k1=k1, b=b)
    scores = fitted.score(cases_of([2 + place for place in range(len(queries))])).numpy()
    mean = sum(map(len, items)) / len(items)
    for place, query in enumerate(queries):
        for row, text in enumerate(items):
            expected = 0.0
            for word in query:
                df = sum(word in other for other in items)
                idf = math.log(1 + (len(items) - df + 0.5) / (df + 0.5))
                if word in text:
                    tf = text.count(word)
                    expected += idf * tf / (tf + k1 * (1 - b + b * len(text) / mean))
            assert scores[place, row + 2] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k1": 0.0}, r"k1 must be above 0 and finite, got 0"),
        ({"b": 1.5}, r"b must be in 0\.\.1, got 1.5"),
    ],
)
def test_settings_out_of_range(changed: dict[str, float], message: str) -> None:
    values = {"k1": 1.0, "b": 0.5} | changed
    with pytest.raises(ValueError, match=message):
        BM25.fit(rows("a"), rows("a"), **values)


def test_columns_of_text() -> None:
    found = text_columns(
        table(
            title=["The red car", "A blue boat", None, "Snow white"],
            zip_code=["90210", "10001", "60601", "73301"],
            job=["college student", "college student", "college student", "retired"],
            number=[1, 2, 3, 4],
            empty=pl.Series([None] * 4, dtype=pl.String),  # type: ignore[arg-type]
        )
    )
    assert found == ("title",)


def test_an_id_may_be_the_text() -> None:
    searches = table("query_id", query_id=["red car", "blue boat", "white snow"])
    assert text_columns(searches) == ("query_id",)
    assert words_of(searches) == ((), (), ("red", "car"), ("blue", "boat"), ("white", "snow"))


def test_words_in_several_scripts() -> None:
    columns = {"title": ["Crème_brûlée, 2 ways", "红色汽车 GT3"], "note": [None, "Big RED"]}
    assert words_of(table(**columns))[2:] == (  # type: ignore[arg-type]
        ("creme", "brulee", "2", "ways"),
        ("红", "色", "汽", "车", "gt3", "big", "red"),
    )


def test_a_side_without_text_is_refused() -> None:
    frame = pl.DataFrame(
        [(query, item) for query in range(5) for item in range(4)],
        schema=["user_id", "item_id"],
        orient="row",
    )
    titles = pl.DataFrame({"item_id": range(4), "title": ["a b", "b c", "c d", "d e"]})
    dataset = split(prepare(frame, items=titles).dataset)
    with pytest.raises(ConfigError, match=r"bm25 must have text on both sides, got no .* a query"):
        choose_bm25(dataset)


def searches() -> Dataset:
    """Forty searches of two words; right are the short text that has both, and two long ones.

    The long texts hold the words twice, among many others: whether they stand before other short
    texts that have one of the words is for ``b`` to decide.
    """
    names = [f"colour{number % 8} shape{number // 8}" for number in range(40)]
    long = [
        f"{name} {name} " + " ".join(f"x{n}y{k}" for k in range(30)) for n, name in enumerate(names)
    ]
    pairs = [(name, n + step) for n, name in enumerate(names) for step in (0, 40, 80)]
    frame = pl.DataFrame(pairs, schema=["query_id", "item_id"], orient="row")
    items = pl.DataFrame({"item_id": range(120), "title": [*names, *long, *long]})
    return split(prepare(frame, items=items).dataset)


def test_settings_are_chosen_on_validation() -> None:
    dataset = searches()
    validation = Validation.of(dataset)
    chosen = choose_bm25(dataset)
    words = words_of(dataset.queries), words_of(dataset.items)
    assert chosen.b == 0.3
    assert validation.quality(chosen) > validation.quality(BM25.fit(*words, k1=1.2, b=0.75))
    without = np.where(dataset.parts == Part.VALID, Part.TRAIN, dataset.parts)
    fallback = choose_bm25(dataset.with_parts(without, ""))
    assert (fallback.k1, fallback.b) == (1.2, 0.75)
