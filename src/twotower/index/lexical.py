"""BM25: which texts hold the rare words of the query."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import torch

from twotower.errors import ArgumentError
from twotower.extras import library
from twotower.features import tokens
from twotower.vocab import FIRST_ROW, as_keys

Words = tuple[tuple[str, ...], ...]


class LexicalIndex:
    """Scores every item by the words that its text shares with a query's.

    With ``tf`` the occurrences of a word in the item's text of ``length`` words, and ``df`` the
    number of the ``N`` items that have it::

        score  = sum over words of the query's text of idf * tf / (tf + k1 * (1 - b + b * length / mean))
        idf    = log(1 + (N - df + 0.5) / (df + 0.5))

    A word that stands twice in the query counts twice.

    Args:
        item_words: The words of each item row, the reserved ones included.
        k1: Above 0; the larger, the more a word's repetition counts.
        b: In 0..1; the larger, the more long texts are held back.

    Raises:
        MissingExtraError: ``bm25s`` is not installed.
        ValueError: A setting is out of its range.

    Source: Robertson and Zaragoza, 2009, section 3; the variant without a factor ``k1 + 1`` and with
        an idf that is never negative is Lucene's, from the library ``bm25s``.
    """

    def __init__(self, item_words: Words, *, k1: float = 1.2, b: float = 0.75) -> None:
        if not 0 < k1 < np.inf:
            raise ArgumentError(f"k1 must be above 0 and finite, got {k1}.")
        if not 0 <= b <= 1:
            raise ArgumentError(f"b must be in 0..1, got {b}.")
        bm25s = library("bm25s", wanted_by="bm25", extra="baselines")
        self.num_item_rows = len(item_words)
        self._index: Any = None
        if any(item_words[FIRST_ROW:]):
            self._index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
            texts = [list(words) for words in item_words[FIRST_ROW:]]
            self._index.index(texts, show_progress=False)

    def knows(self, words: Sequence[str]) -> bool:
        """Return whether an item has one of the words."""
        return self._index is not None and any(w in self._index.vocab_dict for w in words)

    def scores(self, queries: Sequence[Sequence[str]]) -> torch.Tensor:
        """Return the score of each item row for the words of each query: ``(n, num_item_rows)`` float32."""
        scores = np.zeros((len(queries), self.num_item_rows), np.float32)
        if self._index is not None:
            for place, words in enumerate(queries):
                known = [word for word in words if word in self._index.vocab_dict]
                if known:
                    scores[place, FIRST_ROW:] = self._index.get_scores(known)
        return torch.from_numpy(scores)


def words_of_texts(columns: Sequence[pl.Series]) -> Words:
    """Return the words of each line of some columns of text; see ``tokens.words_of``."""
    strings = [as_keys(column).cast(pl.String).fill_null("") for column in columns]
    frame = pl.DataFrame([column.rename(str(i)) for i, column in enumerate(strings)])
    texts = frame.select(pl.concat_str(pl.all(), separator=" "))
    lines, words = tokens.words_of(texts.to_series())
    ends = np.searchsorted(lines, np.arange(len(frame) + 1)).tolist()
    every = words.to_list()
    return tuple(tuple(every[low:high]) for low, high in pairwise(ends))
