"""BM25: which items' text holds the rare words of the query's text."""

from dataclasses import dataclass
from itertools import chain

import torch

from twotower.data.dataset import Cases, Dataset, EntityTable
from twotower.errors import ConfigError
from twotower.evaluation.baselines.validation import Validation
from twotower.features.schema import reads_as_text
from twotower.index.lexical import LexicalIndex, Words, words_of_texts
from twotower.vocab import FIRST_ROW

# What is tried, the value to fall back on first.
_K1S = (1.2, 0.6, 2.4)
_BS = (0.75, 0.3, 1.0)


@dataclass(frozen=True, eq=False)
class BM25:
    """Scores an item by the words that its text shares with the query's; the history is not read.

    Args:
        index: Of the items' words.
        query_words: The words of each query row's text.
        k1: The index's.
        b: The index's.
    """

    index: LexicalIndex
    query_words: Words
    k1: float
    b: float

    @classmethod
    def fit(cls, query_words: Words, item_words: Words, *, k1: float, b: float) -> "BM25":
        """Return the index of the items' words.

        Args:
            query_words: One tuple a query row, the reserved ones included. See ``words_of``.
            item_words: The same for the items.
            k1: See ``LexicalIndex``.
            b: The same.

        Raises:
            MissingExtraError: ``bm25s`` is not installed.
            ValueError: A setting is out of its range.
        """
        return cls(LexicalIndex(item_words, k1=k1, b=b), query_words, k1, b)

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the score of each item row: ``(len(cases), num_item_rows)`` float32."""
        return self.index.scores([self.query_words[row] for row in cases.query_rows])


def choose_bm25(dataset: Dataset) -> BM25:
    """Return BM25 over the text columns of both sides, ``k1`` and then ``b`` chosen on validation.

    Raises:
        ConfigError: A side has no column of text.
        MissingExtraError: ``bm25s`` is not installed.
    """
    check_texts(dataset)
    validation = Validation.of(dataset)
    query_words, item_words = words_of(dataset.queries), words_of(dataset.items)

    def fit(k1: float, b: float) -> BM25:
        return BM25.fit(query_words, item_words, k1=k1, b=b)

    best = validation.best(fit(k1, _BS[0]) for k1 in _K1S)
    return validation.best(chain([best], (fit(best.k1, b) for b in _BS[1:])))


def check_texts(dataset: Dataset) -> None:
    """Refuse a data set of which a side has no text.

    Raises:
        ConfigError: It has no column of text.
    """
    for side, table in (("query", dataset.queries), ("item", dataset.items)):
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


def words_of(table: EntityTable) -> Words:
    """Return the words of each row's text columns, none for the reserved rows."""
    columns = [table.frame[name] for name in text_columns(table)]
    return (((),) * FIRST_ROW) + words_of_texts(columns)
