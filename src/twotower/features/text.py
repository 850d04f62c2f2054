"""Text as a feature: which tokens a text holds, the rare ones the heavier."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.arrays import Ints, Rows, distinct
from twotower.features.base import Numbers, Transform
from twotower.features.raw_values import padded, places_in_line
from twotower.features.schema import Feature
from twotower.features.tokens import Reading, Tokens, hashed, tokens_of
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW, Vocabulary

MOST_TOKENS = 256
"""Most tokens of a text that are kept: those that weigh most."""
LEAST_TOKENS = 32
"""What is kept of every text, however short those of the training are."""
MOST_ROWS = 500_000
"""Most tokens that have an embedding: those of most texts."""
TEXTS_A_TOKEN = 5_000
"""A token must stand in one of so many texts: the rarer ones of a large collection say little of others."""
NUM_HASHES = 2
_LINES = 2_000
_COVERED = 0.99
"""Share of the training texts that are kept whole, where MOST_TOKENS allows it."""


class TextTransform(Transform):
    """Strings -> ``(n, width)`` int32 rows of their distinct tokens, padded with 0.

    Which tokens: words and pairs of words (``words``), letter trigrams (``trigrams``), or both (``text``).
    A token that was not seen in ``min_count`` training texts, and in one of ``TEXTS_A_TOKEN``, is left out;
    with ``buckets`` every token is read, as the rows that its hashes name.

    Each row weighs by its rarity (``counted``). A text of more than ``width`` tokens keeps the heaviest.
    """

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "TextTransform":
        """Return the tokens of the training rows' texts, with their weights."""
        fitted = cls(feature, None, {})
        num_rows = feature.buckets + FIRST_ROW
        if not feature.buckets:
            least = max(min_count, values.count() // TEXTS_A_TOKEN)
            fitted.vocabulary = _most_frequent(fitted._counts(values), least)
            num_rows = fitted.vocabulary.num_rows

        def read(texts: pl.Series) -> tuple[int, Ints, Ints]:
            lines, tokens = fitted._tokens(texts)
            return len(distinct(lines)), *fitted._rows(lines, tokens)

        fitted.numbers = counted(values, num_rows, read)
        return fitted

    def check(self) -> None:
        """Refuse other parts than ``fit`` makes; see ``Transform.check``."""
        known = self.vocabulary
        num_rows = self.feature.buckets + FIRST_ROW if known is None else known.num_rows
        self._check_parts(
            has_vocabulary=not self.feature.buckets,
            width=(1,),
            weights=(num_rows,),
            bounds=COUNTED_BOUNDS,
        )

    def apply(self, values: pl.Series) -> Rows:
        """Return the rows of each text's tokens, in their order."""
        width = int(self.numbers["width"][0])

        def read(texts: pl.Series) -> tuple[Ints, Ints]:
            lines, rows = self._rows(*self._tokens(texts))
            if len(lines) and np.bincount(lines).max() > width:
                heaviest = np.lexsort((-self.weights[rows], lines))
                kept = np.sort(heaviest[places_in_line(lines) < width])
                lines, rows = lines[kept], rows[kept]
            return lines, rows

        return read_in_pieces(values, width, read)

    @property
    def weights(self) -> npt.NDArray[np.floating[Any]]:
        """How much each row weighs: ``(num_rows,)``."""
        return self.numbers["weights"]

    def rows_shared_with(self, other: "TextTransform") -> tuple[Ints, Ints]:
        """Return the rows of tokens that another transform also knows: ``(n,)`` here, ``(n,)`` there."""
        if self.vocabulary is None or other.vocabulary is None:
            same = self.feature.buckets == other.feature.buckets
            rows = np.arange(FIRST_ROW, FIRST_ROW + self.feature.buckets * same)
            return rows, rows
        there = other.vocabulary.rows_of(self.vocabulary.ids).astype(np.int64)
        known = np.flatnonzero(there > UNKNOWN_ROW)
        return known + FIRST_ROW, there[known]

    def _tokens(self, values: pl.Series) -> Tokens:
        return tokens_of(values, cast("Reading", self.feature.kind))

    def _counts(self, values: pl.Series) -> pl.DataFrame:
        """Return in how many texts each token stands: ``token``, ``count``."""
        counts = [
            self._tokens(piece)[1].rename("token").value_counts(name="count")
            for piece in pieces_of(values)
        ]
        return pl.concat(counts).group_by("token").sum()

    def _rows(self, lines: Ints, tokens: pl.Series) -> tuple[Ints, Ints]:
        """Return lines and rows of the tokens that have an embedding, each row once a line."""
        if not self.feature.buckets:
            rows = self.own_vocabulary().rows_of(tokens)
            known = rows > UNKNOWN_ROW
            return lines[known], rows[known].astype(np.int64)
        unique_tokens = tokens.unique(maintain_order=True)
        of_token = hashed(unique_tokens, self.feature.buckets, NUM_HASHES) + FIRST_ROW
        places = Vocabulary(unique_tokens).rows_of(tokens) - FIRST_ROW
        frame = pl.DataFrame(
            {"line": np.repeat(lines, NUM_HASHES), "row": of_token[places].reshape(-1)}
        ).unique(maintain_order=True)
        return frame["line"].to_numpy(), frame["row"].to_numpy()


COUNTED_BOUNDS = {"width": (1, MOST_TOKENS), "weights": (0, np.inf)}
"""Between which the constants of ``counted`` are."""


def counted(
    values: pl.Series, num_rows: int, read: Callable[[pl.Series], tuple[int, Ints, Ints | Rows]]
) -> Numbers:
    """Return the constants of training texts: ``width`` and ``weights``.

    ``width`` is the number of tokens of a text that are kept. A row of which ``df`` texts have a token
    weighs ``ln(1 + (N - df + 0.5) / (df + 0.5))``, where ``N`` texts have any; the reserved rows weigh 0.

    Args:
        values: The texts.
        num_rows: Rows of the tokens.
        read: Some texts -> how many have a token, the line of each known token, and its row once a text.

    Source: Robertson and Zaragoza, 2009, section 3.1 (BM25); this form is never negative.
    """
    num_texts, found, of_pieces = 0, np.zeros(num_rows, np.int64), list[Ints]()
    for piece in pieces_of(values):
        num, lines, rows = read(piece)
        num_texts += num
        of_pieces.append(np.bincount(lines, minlength=1))
        found += np.bincount(rows, minlength=num_rows)
    weights = np.log1p((num_texts - found + 0.5) / (found + 0.5))
    weights[:FIRST_ROW] = 0.0
    lengths = np.concatenate(of_pieces)
    lengths = lengths[lengths > 0]
    longest = int(np.quantile(lengths, _COVERED, method="higher")) if len(lengths) else 1
    width = min(MOST_TOKENS, max(LEAST_TOKENS, longest))
    return {"width": np.array([width], np.float64), "weights": weights}


def pieces_of(values: pl.Series) -> Iterator[pl.Series]:
    """Yield some lines at a time, one empty piece of none: tokens take more memory than what is kept."""
    for start in range(0, max(1, len(values)), _LINES):
        yield values[start : start + _LINES]


def read_in_pieces(
    values: pl.Series, width: int, read: Callable[[pl.Series], tuple[Ints, Ints | Rows]]
) -> Rows:
    """Return the rows that ``read`` gives of texts, with their lines: ``(n, width)``, padded with 0."""
    found, start = np.zeros((len(values), width), np.int32), 0
    for piece in pieces_of(values):
        found[start : start + len(piece)] = padded(*read(piece), len(piece), width)
        start += len(piece)
    return found


def _most_frequent(counts: pl.DataFrame, min_count: int) -> Vocabulary:
    """Return the tokens of ``min_count`` texts or more; where they are too many, those of most texts."""
    counts = counts.filter(pl.col("count") >= min_count)
    if len(counts) > MOST_ROWS:
        counts = counts.sort("count", "token", descending=[True, False]).head(MOST_ROWS)
    return Vocabulary(counts["token"].sort())
