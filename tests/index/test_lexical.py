"""BM25 against the formula in nested loops and against a library; items that are added; languages."""

import math
from typing import Any

import bm25s
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.index.lexical import ItemWords, LexicalIndex, LexicalSettings

ENGLISH = LexicalSettings(languages={"title": "english"})
LIGHT = LexicalSettings(languages={"title": "english"}, drops_stop_words=True)


def index_of(*texts: str, **settings: float) -> LexicalIndex:
    return LexicalIndex(ItemWords.of([text.split() for text in texts]), **settings)


def titles(*texts: str | None) -> list[pl.Series]:
    return [pl.Series("title", texts, dtype=pl.String)]


def words_of(items: ItemWords) -> list[list[str]]:
    lines = items.lines.tolist()
    return [
        [w for line, w in zip(lines, items.words, strict=True) if line == number]
        for number in range(items.num_items)
    ]


def test_worked_by_hand() -> None:
    # Lengths 2, 4 and 0, mean 2. "red": df 1, idf = log(1 + 2.5 / 1.5) = 0.98083; tf = 1 in a text of
    # the mean length: 1 / (1 + k1) = 1/2. "car": df 2, idf = log(1 + 1.5 / 2.5) = 0.47000; in the
    # second text tf = 3, b = 1: 3 / (3 + 4 / 2) = 0.6.
    index = index_of("red car", "car car car x", "", k1=1.0, b=1.0)
    scores = index.scores([["red", "car"], ["car", "car"], ["blue"], []])
    red, car = 0.98083 / 2, 0.47000
    expected: list[list[float]] = [
        [0, 0, red + car / 2, 0.6 * car, 0],
        [0, 0, car, 1.2 * car, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-4)
    assert index.knows(["blue", "red"])
    assert not index.knows(["blue"])
    assert not index_of("", "").scores([["red"]]).any()


texts = st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), min_size=1, max_size=8)


@given(
    items=texts,
    more=texts,
    queries=texts,
    k1=st.sampled_from([0.5, 1.2, 3.0]),
    b=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_equals_nested_loops_after_items_were_added(
    items: list[list[str]],
    more: list[list[str]],
    queries: list[list[str]],
    k1: float,
    b: float,
) -> None:
    index = LexicalIndex(ItemWords.of(items))
    for text in more:
        index = index.with_items(ItemWords.of([text]))
    index = index.with_settings(k1=k1, b=b)
    scores = index.scores(queries).numpy()
    rows = np.random.default_rng(0).permuted(
        np.tile(np.arange(index.num_item_rows, dtype=np.int32), (len(queries), 1)), axis=1
    )
    for some in (rows, rows[:, :3], rows[:, :0]):
        np.testing.assert_array_equal(
            index.scores_of(queries, some), np.take_along_axis(scores, some, axis=1)
        )
    everything = items + more
    mean = sum(map(len, everything)) / len(everything)
    for place, query in enumerate(queries):
        for row, text in enumerate(everything):
            expected = 0.0
            for word in query:
                df = sum(word in other for other in everything)
                idf = math.log(1 + (len(everything) - df + 0.5) / (df + 0.5))
                if word in text:
                    tf = text.count(word)
                    expected += idf * tf / (tf + k1 * (1 - b + b * len(text) / mean))
            assert scores[place, row + 2] == pytest.approx(expected, rel=1e-4)


def test_equals_the_library() -> None:
    rng = np.random.default_rng(0)
    drawn = [[f"w{n}" for n in rng.zipf(1.5, rng.integers(1, 30)) % 50] for _ in range(200)]
    theirs = bm25s.BM25(k1=0.9, b=0.4, method="lucene", backend="numpy")
    theirs.index(drawn, show_progress=False)
    ours = LexicalIndex(ItemWords.of(drawn), k1=0.9, b=0.4)
    for query in drawn[:20]:
        scores = ours.scores([query])[0, 2:].numpy()
        np.testing.assert_allclose(scores, theirs.get_scores(query), rtol=1e-4, atol=1e-6)


def test_items_that_are_added_leave_the_index_before_as_it_was() -> None:
    before = index_of("red car", "blue car")
    scores = before.scores([["red", "car"]])
    after = before.with_items(ItemWords.of([["red", "boat"]]))
    assert after.num_item_rows == 5
    assert after.knows(["boat"])
    assert not before.knows(["boat"])
    assert before.scores([["red", "car"]]).equal(scores)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k1": 0.0}, r"k1 must be above 0 and finite, got 0"),
        ({"b": 1.5}, r"b must be in 0\.\.1, got 1.5"),
        ({"languages": {"title": "klingon"}}, r"languages must be among danish, .*, got 'klingon'"),
    ],
)
def test_settings_out_of_range(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LexicalSettings(**changed)


def test_settings_are_written_and_read_back_beside_others() -> None:
    settings = LexicalSettings(k1=0.6, b=0.3, languages={"a": "german"}, drops_stop_words=True)
    assert LexicalSettings.of_json({**settings.as_json(), "share": 0.5}) == settings
    assert LexicalSettings.of_json({"share": 0.5}) == LexicalSettings()


def test_words_as_they_stand_in_several_scripts() -> None:
    columns = [
        *titles("Crème_brûlée, 2 ways", "红色汽车 GT3"),
        pl.Series("note", [None, "Big RED"]),
    ]
    found = LexicalSettings().words_of_items(columns)
    assert words_of(found) == [
        ["creme", "brulee", "2", "ways"],
        ["红", "色", "汽", "车", "gt3", "big", "red"],
    ]
    assert LexicalSettings().words_of_queries([columns[0]])[1] == ("红", "色", "汽", "车", "gt3")


def test_queries_are_stemmed_as_the_items_are() -> None:
    items = ENGLISH.words_of_items(titles("Running dogs", "红色汽车 的 cars", None))
    assert words_of(items) == [["run", "dog"], ["红", "色", "汽", "车", "的", "car"], []]
    assert ENGLISH.words_of_queries(titles("the dog ran", "DOGS")) == (
        ("the", "dog", "ran"),
        ("dog",),
    )
    german = LexicalSettings(languages={"title": "german"})
    (umlauts, plain) = german.words_of_queries(titles("Häuser Straßen", "haus strasse"))
    assert umlauts == plain


def test_a_query_is_stemmed_by_the_language_of_every_column() -> None:
    both = LexicalSettings(languages={"de": "german", "en": "english"}, drops_stop_words=True)
    columns = [pl.Series("de", ["die Katzen der Nachbarn"]), pl.Series("en", ["running cats"])]
    assert words_of(both.words_of_items(columns)) == [
        ["die", "katz", "der", "nachbarn", "run", "cat"]
    ]
    # "die" says something in English. German takes the s of "cats" off, too: that is one word.
    (words,) = both.words_of_queries(titles("katzen die running cats"))
    assert words == ("katz", "katzen", "die", "running", "run", "cat")


def test_stop_words_count_only_where_there_is_nothing_else() -> None:
    items = LIGHT.words_of_items(titles("The Who", "The cats of the house"))
    index = LexicalIndex(items)
    asked = LIGHT.words_of_queries(titles("the cat", "the who", "of"))
    assert asked == (("cat",), ("the", "who"), ("of",))
    scores = index.scores(asked)
    assert scores[1].argmax() == 2
    assert scores[2].argmax() == 3
    # They are no part of a text's length: "cats" and "house" are as many as "Cats house" has.
    shorter = LexicalIndex(LIGHT.words_of_items(titles("x", "cat house")))
    longer = LexicalIndex(LIGHT.words_of_items(titles("x", "the cat of the house")))
    assert shorter.scores([["cat"]]).equal(longer.scores([["cat"]]))
