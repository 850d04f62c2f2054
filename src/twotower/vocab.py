"""Ids and rows: the one place that decides which rows are reserved.

An *id* is the user's own key, an integer or a string. A *row* is our dense int32 position. Every
vocabulary, of entities and of feature values alike, keeps row 0 for "nothing" and row 1 for
"unknown"; real ids start at row 2.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.errors import DataError

PADDING_ROW = 0
UNKNOWN_ROW = 1
FIRST_ROW = 2


class Vocabulary:
    """A frozen, ordered set of ids, each with a row.

    Args:
        ids: Distinct ids without nulls, of an integer, boolean or string dtype; position ``p`` has
            row ``p + FIRST_ROW``.

    Raises:
        DataError: An id is null or stands twice, or the dtype is neither integer nor string.
    """

    def __init__(self, ids: pl.Series) -> None:
        if ids.dtype == pl.Boolean:
            ids = ids.cast(pl.String)
        if ids.dtype.is_integer():
            ids = ids.cast(pl.Int64)
        elif ids.dtype in (pl.Categorical, pl.Enum):
            ids = ids.cast(pl.String)
        elif ids.dtype != pl.String:
            raise DataError(f"ids must be integers or strings, got {ids.dtype}.")
        if ids.null_count():
            raise DataError(f"ids must not be null, got {ids.null_count()} null ids.")
        if ids.n_unique() != len(ids):
            raise DataError(f"ids must be distinct, got {ids.len() - ids.n_unique()} repeats.")
        self._ids = ids.rename("id").rechunk()
        self._lookup = pl.DataFrame(
            {"id": self._ids, "row": np.arange(len(ids), dtype=np.int32) + FIRST_ROW}
        )

    @classmethod
    def fit(cls, values: pl.Series, min_count: int = 1) -> "Vocabulary":
        """Return the vocabulary of the non-null ``values`` seen at least ``min_count`` times.

        Ids are ordered by value, so that the same set of values always gives the same rows.

        Raises:
            ValueError: ``min_count`` is below 1.
        """
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {min_count}.")
        counts = values.drop_nulls().value_counts(name="count")
        kept = counts.filter(pl.col("count") >= min_count)
        return cls(kept.to_series(0).sort())

    def __len__(self) -> int:
        """Number of real ids."""
        return len(self._ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._ids.equals(other._ids, check_dtypes=True)

    def __hash__(self) -> int:
        return hash((len(self._ids), str(self._ids.dtype)))

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} ids, {self._ids.dtype})"

    @property
    def num_rows(self) -> int:
        """Number of rows, the reserved ones included."""
        return len(self._ids) + FIRST_ROW

    @property
    def ids(self) -> pl.Series:
        """All ids, in the order of their rows."""
        return self._ids

    def rows_of(self, ids: pl.Series | Iterable[object]) -> npt.NDArray[np.int32]:
        """Return the row of each id: ``(n,)`` int32.

        A null becomes ``PADDING_ROW``; an id that is not here becomes ``UNKNOWN_ROW``. Integers and
        strings of digits name the same id, since a key that went through CSV, JSON or a command
        line may have changed its type on the way.
        """
        series = ids if isinstance(ids, pl.Series) else pl.Series("id", list(ids), strict=False)
        present = series.is_not_null()
        rows = (
            pl.DataFrame({"id": self._as_own_type(series)})
            .join(self._lookup, on="id", how="left", maintain_order="left")
            .select(
                pl.when(present)
                .then(pl.col("row").fill_null(UNKNOWN_ROW))
                .otherwise(PADDING_ROW)
                .cast(pl.Int32)
            )
            .to_series()
        )
        return rows.to_numpy()

    def ids_of(self, rows: npt.NDArray[np.integer]) -> pl.Series:
        """Return the id of each row, in the rows' order; null for the reserved rows.

        Raises:
            ValueError: A row is outside this vocabulary.
        """
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.num_rows:
            raise ValueError(
                f"rows must be in 0..{self.num_rows - 1}, got {int(rows.min())}..{int(rows.max())}."
            )
        positions = pl.Series("p", rows.astype(np.int64) - FIRST_ROW)
        return self._ids.gather(pl.select(pl.when(positions >= 0).then(positions)).to_series())

    def _as_own_type(self, ids: pl.Series) -> pl.Series:
        own = self._ids.dtype
        if ids.dtype == own:
            return ids
        if ids.dtype == pl.Boolean:
            ids = ids.cast(pl.String)
        if own == pl.String and ids.dtype.is_float():
            whole = ids.cast(pl.Int64, strict=False)
            return pl.select(
                pl.when(whole.cast(ids.dtype) == ids)
                .then(whole.cast(pl.String))
                .otherwise(ids.cast(pl.String))
            ).to_series()
        return ids.cast(own, strict=False)
