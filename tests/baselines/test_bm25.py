"""BM25: which columns count as text, and what validation chooses."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.baselines.bm25 import BM25, TextColumns, choose_bm25, text_columns
from twotower.baselines.validation import Validation
from twotower.config import SplitConfig
from twotower.data.dataset import Dataset, EntityTable, Part
from twotower.data.preparation import prepare
from twotower.data.splits import split
from twotower.errors import ConfigError
from twotower.index.lexical import LexicalSettings
from twotower.vocab import Vocabulary


def table(name: str = "item_id", **columns: list[Any]) -> EntityTable:
    frame = pl.DataFrame(columns)
    if name not in frame.columns:
        frame = frame.with_columns(pl.Series(name, range(len(frame))))
    return EntityTable(Vocabulary(frame[name]), frame, name)


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
    columns = TextColumns(("query_id",), ("title",))
    assert chosen.columns == columns
    assert chosen.settings.b == 0.3
    assert chosen.settings.languages == {}
    default = BM25.fit(dataset, columns, LexicalSettings())
    assert validation.quality(chosen) > validation.quality(default)
    again = BM25.fit(dataset, columns, chosen.settings)
    assert validation.quality(chosen) == validation.quality(again)
    without = np.where(dataset.parts == Part.VALID, Part.TRAIN, dataset.parts)
    fallback = choose_bm25(dataset.with_parts(without, ""))
    assert fallback.settings == LexicalSettings()


THINGS = ("dog", "house", "river", "engine", "planet", "teacher", "window", "garden")


def inflected(*, is_stem_wrong: bool = False) -> Dataset:
    """English searches in the plural of what the right text has in the singular, in either order.

    With ``is_stem_wrong`` another text has the singular, and the right one the plural.
    """
    of_query, of_item = ("s", "s") if is_stem_wrong else ("s", "")
    queries = [f"what about the {a}{of_query} and {b}{of_query}" for a in THINGS for b in THINGS]
    titles = [
        f"it was all for the {a}{of_item} with a {b}{of_item}" for a in THINGS for b in THINGS
    ]
    wrong = [f"{a} {a} {b} {b}" for a in THINGS for b in THINGS] if is_stem_wrong else []
    items = pl.DataFrame({"item_id": range(len(titles) + len(wrong)), "title": titles + wrong})
    pairs = [(query, item) for item, query in enumerate(queries)]
    frame = pl.DataFrame(pairs, schema=["query_id", "item_id"], orient="row")
    return split(prepare(frame, items=items).dataset, SplitConfig(kind="cold-queries"))


def test_words_are_stemmed_where_validation_agrees() -> None:
    chosen = choose_bm25(inflected())
    assert chosen.settings.languages == {"title": "english"}
    assert Validation.of(inflected()).quality(chosen) > 0.7
    as_they_stand = choose_bm25(inflected(), language="none")
    assert as_they_stand.settings.languages == {}
    assert Validation.of(inflected()).quality(as_they_stand) < 0.2
    assert choose_bm25(inflected(is_stem_wrong=True)).settings.languages == {}
    stated = choose_bm25(inflected(is_stem_wrong=True), language="english")
    assert stated.settings.languages == {"title": "english"}
