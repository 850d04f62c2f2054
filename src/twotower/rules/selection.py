"""The greedy pass: selects one item after another by score and diversity, and skips what a cap forbids."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import polars as pl

from twotower.arrays import Bools, Float32s, Rows
from twotower.errors import ArgumentError
from twotower.index.filter_columns import ReadColumn
from twotower.rules.search import Pool
from twotower.vocab import FIRST_ROW

POOL, POOL_A_PLACE = 100, 10
"""Least number of items in a pool, and number of items per place."""
_WINDOW = 512
"""Items whose similarity to the selected ones is kept up to date."""


def depth_of(k: int) -> int:
    """Return the number of items in a pool for ``k`` places."""
    return max(POOL, POOL_A_PLACE * k)


class ColumnValues:
    """The values of a column for each item row: none if it is missing, several for tags and lists.

    It grows with the catalogue. A row that was read never changes.
    """

    def __init__(self) -> None:
        self._known: pl.Series | None = None
        self._offsets = np.zeros(FIRST_ROW + 1, np.int64)
        self._codes = np.zeros(0, np.int32)

    @property
    def num_rows(self) -> int:
        """Number of rows that were read, including the reserved ones."""
        return len(self._offsets) - 1

    def append(self, column: ReadColumn) -> None:
        """Read the lines of further rows.

        Args:
            column: The column of these rows, as filters read it.

        Raises:
            ValueError: Its values are nested lists or structs.
        """
        single, lines = column, np.arange(len(column.raw))
        if column.elements is not None:
            single, lines = column.elements.column, column.elements.lines
        if single.sort in ("list", "other"):
            raise ArgumentError(
                f"cap must name a column of single values, tags or lists of them, got {column.raw.name!r}, "
                f"which holds {column.raw.dtype}."
            )
        pairs = pl.DataFrame({"line": lines, "value": single.values}).drop_nulls()
        pairs = pairs.unique(maintain_order=True)  # a repeated tag counts once
        counts = np.bincount(pairs["line"], minlength=len(column.raw))
        ends = self._offsets[-1] + np.cumsum(counts)
        self._offsets = np.concatenate([self._offsets, ends])
        self._codes = np.concatenate([self._codes, self._codes_of(pairs["value"])])

    def of(self, row: int) -> list[int]:
        """Return the values of a row."""
        values: list[int] = self._codes[self._offsets[row] : self._offsets[row + 1]].tolist()
        return values

    def rows_with(self, values: list[int]) -> Bools:
        """Return which rows have one of some values: ``(num_rows,)``."""
        is_one = np.zeros(int(self._codes.max(initial=-1)) + 1, np.bool_)
        is_one[values] = True
        before = np.concatenate([[0], np.cumsum(is_one[self._codes])])
        return np.asarray(before[self._offsets[1:]] > before[self._offsets[:-1]], np.bool_)

    def _codes_of(self, values: pl.Series) -> Rows:
        if not len(values):
            return np.zeros(0, np.int32)
        seen = values if self._known is None else pl.concat([self._known, values])
        self._known = seen.unique(maintain_order=True)  # known values keep their codes
        table = pl.DataFrame({"value": self._known}).with_row_index("code")
        found = values.to_frame().join(table, on="value", how="left", maintain_order="left")
        return found["code"].to_numpy().astype(np.int32)


class CapCounts:
    """Counts the items of each value in an answer.

    Args:
        columns: The values of each capped column.
        most: The cap of each column.
    """

    def __init__(self, columns: Sequence[ColumnValues], most: Sequence[int]) -> None:
        self._columns = columns
        self._most = most
        self._counts: list[Counter[int]] = [Counter() for _ in columns]

    def has_room(self, row: int) -> bool:
        """Return whether an item fits without exceeding a cap."""
        return all(
            counts[value] < most
            for column, counts, most in zip(self._columns, self._counts, self._most, strict=True)
            for value in column.of(row)
        )

    def add(self, row: int) -> None:
        """Count an item."""
        for column, counts in zip(self._columns, self._counts, strict=True):
            counts.update(column.of(row))

    def rows_without_room(self, num_rows: int) -> Bools:
        """Return which item rows would exceed a cap: ``(num_rows,)`` bool."""
        full = np.zeros(num_rows, np.bool_)
        for column, counts, most in zip(self._columns, self._counts, self._most, strict=True):
            values = [value for value, count in counts.items() if count >= most]
            if values:
                full |= column.rows_with(values)
        return full


def choose(
    pool: Pool,
    more: Callable[[Bools], Pool],
    k: int,
    counts: CapCounts,
    *,
    depth: int,
    weight: float,
    vectors_of: Callable[[Rows], Float32s],
    num_rows: int,
    taken: Sequence[int] = (),
) -> tuple[list[int], list[float]]:
    """Return the item rows of ``k`` places, or fewer if there are no more, and the model's scores.

    When every item of a pool is selected or forbidden, the next pool holds the remaining items.

    Args:
        pool: The first pool of one query, without padding.
        more: Returns the next pool among the rows of a mask, ``(num_rows,)`` bool.
        k: Number of places.
        counts: The counts of the items elsewhere in the answer. Selected items are added.
        depth: Size of a pool; a smaller pool is the last one.
        weight: See ``Diversify``.
        vectors_of: Returns the vectors of item rows, scaled to length 1: ``(n, dim)``.
        num_rows: Number of item rows, including the reserved ones.
        taken: Rows of items elsewhere in the answer, which are already counted.
    """
    chosen: list[int] = []
    scores: list[float] = []
    first = pool
    while len(chosen) < k and len(pool.item_rows):
        places = range(len(pool.item_rows))
        for place in _unlike(pool, first, chosen, weight, vectors_of) if weight else places:
            row = int(pool.item_rows[place])
            if row in taken or not counts.has_room(row):
                continue
            chosen.append(row)
            scores.append(float(pool.scores[place]))
            counts.add(row)
            if len(chosen) == k:
                break
        else:
            if len(pool.item_rows) < depth:
                break
            allowed = ~counts.rows_without_room(num_rows)
            allowed[[*chosen, *taken]] = False
            pool = more(allowed)
    return chosen, scores


def _unlike(
    pool: Pool,
    first: Pool,
    chosen: Sequence[int],
    weight: float,
    vectors_of: Callable[[Rows], Float32s],
) -> Iterator[int]:
    """Yield positions in a pool by marginal relevance. The caller adds the items it selects to ``chosen``.

    The value of an item can only fall when another item is selected. So only the items with the largest
    values are kept up to date, and the others are checked again once one of them may be the best.

    Source: Minoux, Accelerated greedy algorithms, 1978. Differs: windows of items in place of single ones,
        since one product with many vectors costs little more than one with a single vector.
    """
    # The first pool sets the scale: items below it have negative relevance.
    least = first.moved.min()
    spread = max(float(first.moved.max() - least), 1e-12)
    relevance = (1 - weight) * (pool.moved - least) / spread
    vectors = vectors_of(pool.item_rows)
    likeness = np.zeros(len(vectors), np.float32)
    if chosen:
        likeness = _likeness(vectors, vectors_of(np.array(chosen, np.int32)))
    is_open = np.ones(len(vectors), np.bool_)
    num_counted = len(chosen)
    fresh: list[int] = []  # selected since all similarities were last computed
    while is_open.any():
        if fresh:
            more = _likeness(vectors, vectors[fresh])
            likeness = np.maximum(likeness, more) if num_counted else more
            num_counted = len(chosen)
            fresh.clear()
        value = np.where(is_open, relevance - weight * likeness, -np.inf)
        limit = np.partition(value, -_WINDOW)[-_WINDOW] if len(value) > _WINDOW else -np.inf
        places = np.flatnonzero(is_open & (value >= limit))
        near, relevant = vectors[places], relevance[places]
        alike, worth = likeness[places], value[places]
        while worth[best := int(worth.argmax())] >= limit and worth[best] > -np.inf:
            place = int(places[best])
            num_before = len(chosen)
            yield place
            is_open[place] = False
            relevant[best] = worth[best] = -np.inf
            if len(chosen) > num_before:
                fresh.append(place)
                if not num_before and limit > -np.inf:
                    break  # before the first item all similarities were 0; now they may be negative
                to_it = near @ vectors[place]
                alike = np.maximum(alike, to_it) if num_before else to_it
                worth = relevant - weight * alike


def _likeness(vectors: Float32s, chosen: Float32s) -> Float32s:
    """Return the largest cosine of each vector with a chosen one: ``(n,)``."""
    return np.asarray((vectors @ chosen.T).max(axis=1), np.float32)
