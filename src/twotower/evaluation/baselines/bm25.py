"""BM25: which items' text holds the rare words of the query's text."""

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import polars as pl
import torch

from twotower.data.dataset import Cases, Dataset, EntityTable
from twotower.errors import ConfigError
from twotower.evaluation.baselines.extras import library
from twotower.evaluation.baselines.validation import Validation
from twotower.features import tokens
from twotower.features.schema import reads_as_text
from twotower.vocab import FIRST_ROW

# What is tried, the value to fall back on first.
_K1S = (1.2, 0.6, 2.4)
_BS = (0.75, 0.3, 1.0)


@dataclass(frozen=True, eq=False)
class BM25:
    """Scores an item by the words that its text shares with the query's.

    With ``tf`` the occurrences of a word in the item's text of ``length`` words, and ``df`` the
    number of the ``N`` items that have it::

        score  = sum over words of the query's text of idf * tf / (tf + k1 * (1 - b + b * length / mean))
        idf    = log(1 + (N - df + 0.5) / (df + 0.5))

    A word that stands twice in the query counts twice. The history is not read.

    Args:
        index: ``bm25s.BM25`` over the items, or None where no item has a word.
        query_words: The words of each query row's text.
        num_item_rows: Rows of the item vocabulary.
        k1: Above 0; the larger, the more a word's repetition counts.
        b: In 0..1; the larger, the more long texts are held back.

    Source: Robertson and Zaragoza, 2009, section 3; the variant without a factor ``k1 + 1`` and with
        an idf that is never negative is Lucene's, from the library ``bm25s``.
    """

    index: Any
    query_words: tuple[tuple[str, ...], ...]
    num_item_rows: int
    k1: float
    b: float

    @classmethod
    def fit(
        cls,
        query_words: tuple[tuple[str, ...], ...],
        item_words: tuple[tuple[str, ...], ...],
        *,
        k1: float,
        b: float,
    ) -> "BM25":
        """Return the index of the items' words.

        Args:
            query_words: One tuple a query row, the reserved ones included. See ``words_of``.
            item_words: The same for the items.
            k1: See the class.
            b: See the class.

        Raises:
            MissingExtraError: ``bm25s`` is not installed.
            ValueError: A setting is out of its range.
        """
        if not 0 < k1 < np.inf:
            raise ValueError(f"k1 must be above 0 and finite, got {k1}.")
        if not 0 <= b <= 1:
            raise ValueError(f"b must be in 0..1, got {b}.")
        bm25s = library("bm25s", "bm25")
        index = None
        if any(item_words[FIRST_ROW:]):
            index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
            index.index([list(words) for words in item_words[FIRST_ROW:]], show_progress=False)
        return cls(index, query_words, len(item_words), k1, b)

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the score of each item row: ``(len(cases), num_item_rows)`` float32."""
        scores = np.zeros((len(cases), self.num_item_rows), np.float32)
        if self.index is not None:
            for place, row in enumerate(cases.query_rows):
                known = [word for word in self.query_words[row] if word in self.index.vocab_dict]
                if known:
                    scores[place, FIRST_ROW:] = self.index.get_scores(known)
        return torch.from_numpy(scores)


def choose_bm25(dataset: Dataset) -> BM25:
    """Return BM25 over the text columns of both sides, ``k1`` and then ``b`` chosen on validation.

    Raises:
        ConfigError: A side has no column of text.
        MissingExtraError: ``bm25s`` is not installed.
    """
    for side, table in (("query", dataset.queries), ("item", dataset.items)):
        if not text_columns(table):
            raise ConfigError(
                f"bm25 must have text on both sides, got no column of text for a {side}."
            )
    validation = Validation.of(dataset)
    query_words, item_words = words_of(dataset.queries), words_of(dataset.items)

    def fit(k1: float, b: float) -> BM25:
        return BM25.fit(query_words, item_words, k1=k1, b=b)

    best = validation.best(fit(k1, _BS[0]) for k1 in _K1S)
    return validation.best(chain([best], (fit(best.k1, b) for b in _BS[1:])))


def text_columns(table: EntityTable) -> tuple[str, ...]:
    """Return the columns of text; see ``reads_as_text``.

    The id column is one of them where the id is the text itself, as a search string is.
    """
    frame = table.frame
    return tuple(name for name in frame.columns if reads_as_text(frame[name]))


def words_of(table: EntityTable) -> tuple[tuple[str, ...], ...]:
    """Return the words of each row's text columns, none for the reserved rows; see ``tokens.words_of``."""
    columns = [pl.col(name).fill_null("") for name in text_columns(table)]
    texts = table.frame.select(pl.concat_str(columns, separator=" ")).to_series()
    lines, words = tokens.words_of(texts)
    ends = np.searchsorted(lines, np.arange(len(texts) + 1))
    every = words.to_list()
    found = (tuple(every[low:high]) for low, high in pairwise(ends.tolist()))
    return (((),) * FIRST_ROW) + tuple(found)
