"""BM25: scores items by the words that their text shares with the query's text."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import polars as pl
import torch

from twotower.baselines.validation import Validation
from twotower.data.dataset import Cases, Dataset, EntityTable
from twotower.errors import ConfigError
from twotower.features.languages import UNSTEMMED, languages_of
from twotower.features.schema import reads_as_text
from twotower.index.lexical import LexicalIndex, LexicalSettings, Words
from twotower.vocab import FIRST_ROW

# What is tried, the value to fall back on first.
_K1S = (1.2, 0.6, 2.4)
_BS = (0.75, 0.3, 1.0)


class TextColumns(NamedTuple):
    """Names of the columns of text of each side."""

    query: tuple[str, ...]
    item: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class BM25:
    """Scores an item by the words that its text shares with the query's; the history is not read.

    Args:
        index: Index of the items' words.
        query_words: Words of the text of each query row.
        settings: How both were read, and how the index weighs words.
        columns: The columns of text that were read.
    """

    index: LexicalIndex
    query_words: Words
    settings: LexicalSettings
    columns: TextColumns

    @classmethod
    def fit(cls, dataset: Dataset, columns: TextColumns, settings: LexicalSettings) -> "BM25":
        """Return the index of the items' words, and the queries' words."""
        of_items = settings.words_of_items(_texts(dataset.items, columns.item))
        of_queries = settings.words_of_queries(_texts(dataset.queries, columns.query))
        index = LexicalIndex(of_items, k1=settings.k1, b=settings.b)
        return cls(index, ((),) * FIRST_ROW + of_queries, settings, columns)

    def weighed(self, *, k1: float, b: float) -> "BM25":
        """Return the same words by other settings."""
        settings = replace(self.settings, k1=k1, b=b)
        index = self.index.with_settings(k1=k1, b=b)
        return replace(self, index=index, settings=settings)

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the score of each item row: ``(len(cases), num_item_rows)`` float32."""
        return self.index.scores(self.words_of(cases))

    def words_of(self, cases: Cases) -> Words:
        """Return the words of the cases' queries."""
        return tuple(self.query_words[row] for row in cases.query_rows)


def choose_bm25(
    dataset: Dataset, columns: TextColumns | None = None, *, language: str = "auto"
) -> BM25:
    """Return BM25 over the text of both sides, chosen on validation.

    The reading of words is chosen first (stemmed in the language of their column without stop words,
    stemmed with them, or as written), then ``k1``, then ``b``. Without validation, the first of each is
    taken.

    Args:
        dataset: With a split.
        columns: The columns to read; None reads every column of text.
        language: See ``FeaturesConfig.language``.

    Raises:
        ConfigError: A side has no column of text.
    """
    if columns is None:
        check_texts(dataset)
        columns = TextColumns(text_columns(dataset.queries), text_columns(dataset.items))
    validation = Validation.of(dataset)
    readings = _readings(_texts(dataset.items, columns.item), language)
    read = validation.best(BM25.fit(dataset, columns, settings) for settings in readings)
    best = validation.best([read], (read.weighed(k1=k1, b=_BS[0]) for k1 in _K1S[1:]))
    return validation.best([best], (best.weighed(k1=best.settings.k1, b=b) for b in _BS[1:]))


def check_texts(dataset: Dataset) -> None:
    """Refuse a data set of which a side has no text.

    Raises:
        ConfigError: It has no column of text.
    """
    for side, table in dataset.sides.items():
        if not text_columns(table):
            raise ConfigError(
                f"bm25 must have text on both sides, got no column of text for a {side}."
            )


def text_columns(table: EntityTable) -> tuple[str, ...]:
    """Return the columns of text; see ``reads_as_text``.

    The id column is one of them where the id is the text itself, as a search string is.
    """
    frame = table.frame
    return tuple(name for name in frame.columns if reads_as_text(frame[name]))


def _readings(texts: list[pl.Series], language: str) -> Iterator[LexicalSettings]:
    """Return the ways to read words that are tried, the one to fall back on first."""
    as_they_stand = LexicalSettings(k1=_K1S[0], b=_BS[0])
    languages = {text.name: language for text in texts}
    if language == "auto":
        found = zip(texts, languages_of(texts), strict=True)
        languages = {text.name: own for text, own in found if own != UNSTEMMED}
    if languages and language != UNSTEMMED:
        stemmed = replace(as_they_stand, languages=languages)
        yield replace(stemmed, drops_stop_words=True)
        yield stemmed
        if language != "auto":
            return
    yield as_they_stand


def _texts(table: EntityTable, columns: tuple[str, ...]) -> list[pl.Series]:
    return [table.frame[name] for name in columns]
