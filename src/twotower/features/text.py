"""Text as a feature: which tokens a text holds, the rare ones the heavier."""

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.features.base import Transform
from twotower.features.schema import Feature
from twotower.features.tokens import Reading, hashed, tokens_of
from twotower.vocab import FIRST_ROW, PADDING_ROW, UNKNOWN_ROW, Vocabulary

MOST_TOKENS = 256
"""Most tokens of a text that are kept: those that weigh most."""
MOST_ROWS = 500_000
"""Most tokens that have an embedding: those of most texts."""
NUM_HASHES = 2
_COVERED = 0.99
"""Share of the training texts that are kept whole, where MOST_TOKENS allows it."""


class TextTransform(Transform):
    """Strings -> ``(n, width)`` int32 rows of their distinct tokens, padded with 0.

    Which tokens: words and pairs of words (``words``), letter trigrams (``trigrams``), or both (``text``).
    A token that was not seen in ``min_count`` training texts is left out; with ``buckets`` every token is
    read, as the rows that its hashes name.

    Each row weighs ``ln(1 + (N - df + 0.5) / (df + 0.5))`` where ``df`` of the ``N`` training texts have
    it, as in BM25 (Robertson and Zaragoza, 2009, section 3.1; this form is never negative). A text of
    more than ``width`` tokens keeps the heaviest.
    """

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "TextTransform":
        """Return the tokens of the training rows' texts, with their weights."""
        lines, tokens = tokens_of(values, cast("Reading", feature.kind))
        num_texts = len(np.unique(lines))
        if feature.buckets:
            vocabulary = None
            num_rows = feature.buckets + FIRST_ROW
        else:
            vocabulary = _most_frequent(tokens, min_count)
            num_rows = vocabulary.num_rows
        fitted = cls(feature, vocabulary, {})
        lines, rows = fitted._rows(lines, tokens)
        lengths = np.bincount(lines)
        longest = np.quantile(lengths[lengths > 0], _COVERED, method="higher") if len(lines) else 1
        found = np.bincount(rows, minlength=num_rows)
        weights = np.log1p((num_texts - found + 0.5) / (found + 0.5))
        weights[:FIRST_ROW] = 0.0
        numbers = {"width": np.array([min(MOST_TOKENS, longest)], np.float64), "weights": weights}
        return cls(feature, vocabulary, numbers)

    def apply(self, values: pl.Series) -> npt.NDArray[np.int32]:
        """Return the rows of each text's tokens, in their order."""
        width = int(self.numbers["width"][0])
        result = np.full((len(values), width), PADDING_ROW, np.int32)
        lines, tokens = tokens_of(values, cast("Reading", self.feature.kind))
        lines, rows = self._rows(lines, tokens)
        if not len(lines):
            return result
        if np.bincount(lines).max() > width:
            heaviest = np.lexsort((-self.weights[rows], lines))
            kept = np.sort(heaviest[_places(lines) < width])
            lines, rows = lines[kept], rows[kept]
        result[lines, _places(lines)] = rows
        return result

    @property
    def weights(self) -> npt.NDArray[np.floating[Any]]:
        """How much each row weighs: ``(num_rows,)``."""
        return self.numbers["weights"]

    def rows_shared_with(
        self, other: "TextTransform"
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the rows of tokens that another transform also knows: ``(n,)`` here, ``(n,)`` there."""
        if self.vocabulary is None or other.vocabulary is None:
            same = self.feature.buckets == other.feature.buckets
            rows = np.arange(FIRST_ROW, FIRST_ROW + self.feature.buckets * same)
            return rows, rows
        there = other.vocabulary.rows_of(self.vocabulary.ids).astype(np.int64)
        known = np.flatnonzero(there > UNKNOWN_ROW)
        return known + FIRST_ROW, there[known]

    def is_known(
        self, values: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Return which texts have a token with an embedding."""
        return np.asarray((values > UNKNOWN_ROW).any(axis=1))

    def _rows(
        self, lines: npt.NDArray[np.int64], tokens: pl.Series
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return lines and rows of the tokens that have an embedding, each row once a line."""
        if not self.feature.buckets:
            rows = self.own_vocabulary().rows_of(tokens)
            known = rows > UNKNOWN_ROW
            return lines[known], rows[known].astype(np.int64)
        distinct = tokens.unique(maintain_order=True)
        of_token = hashed(distinct, self.feature.buckets, NUM_HASHES) + FIRST_ROW
        places = Vocabulary(distinct).rows_of(tokens) - FIRST_ROW
        frame = pl.DataFrame(
            {
                "line": np.repeat(lines, NUM_HASHES),
                "row": of_token[places].reshape(-1),
            }
        ).unique(maintain_order=True)
        return frame["line"].to_numpy(), frame["row"].to_numpy()


def _most_frequent(tokens: pl.Series, min_count: int) -> Vocabulary:
    """Return the tokens of ``min_count`` texts or more; where they are too many, those of most texts."""
    counts = tokens.rename("token").value_counts(name="count").filter(pl.col("count") >= min_count)
    if len(counts) > MOST_ROWS:
        counts = counts.sort("count", "token", descending=[True, False]).head(MOST_ROWS)
    return Vocabulary(counts["token"].sort())


def _places(lines: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the place of each entry within its line, where lines rise."""
    return np.arange(len(lines)) - np.searchsorted(lines, lines)
