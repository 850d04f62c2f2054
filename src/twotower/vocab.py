"""Ids and rows: the one place that decides which rows are reserved.

An *id* is the user's own key, an integer or a string. A *row* is our dense int32 position. Every
vocabulary, of entities and of feature values alike, keeps row 0 for "nothing" and row 1 for
"unknown"; real ids start at row 2.
"""

from collections.abc import Iterable
from decimal import Decimal
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.errors import ArgumentError, DataError, check_least

PADDING_ROW = 0
UNKNOWN_ROW = 1
FIRST_ROW = 2
BISECT_FROM = 16
"""Ids for each key that is asked for, from which on bisection is quicker than a table of hashes."""


BISECT_SORTED = 1 << 16
"""From this many keys on bisection is quicker where both they and the ids are sorted."""


def rows_of_lines(num: int) -> npt.NDArray[np.int32]:
    """Return the rows of ``num`` lines in a table whose first rows are reserved."""
    return np.arange(FIRST_ROW, FIRST_ROW + num, dtype=np.int32)


class Vocabulary:
    """A frozen, ordered set of ids, each with a row.

    Args:
        ids: Distinct ids without nulls, of an integer, boolean or string dtype; position ``p`` has
            row ``p + FIRST_ROW``.

    Raises:
        DataError: An id is null, stands twice or has more than 64 bits, or the dtype is neither
            integer nor string.
    """

    def __init__(self, ids: pl.Series) -> None:
        ids = _checked(ids)
        if ids.null_count():
            raise DataError(f"ids must not be null, got {ids.null_count()} null ids.")
        if not _are_distinct(ids):
            raise DataError(f"ids must be distinct, got {ids.len() - ids.n_unique()} repeats.")
        self._ids = ids.rename("id").rechunk()

    @classmethod
    def fit(cls, values: pl.Series, min_count: int = 1) -> "Vocabulary":
        """Return the vocabulary of the non-null ``values`` seen at least ``min_count`` times.

        Ids are ordered by value, so that the same set of values always gives the same rows.

        Raises:
            ValueError: ``min_count`` is below 1.
            DataError: As for the class.
        """
        check_least(1, min_count=min_count)
        counts = _checked(values.drop_nulls()).rename("id").value_counts(name="count")
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

        A null or NaN becomes ``PADDING_ROW``; an id that is not here, of whatever type, becomes
        ``UNKNOWN_ROW``. Integers, whole floats and strings of digits name the same id, since a key
        that went through CSV, JSON, pandas or a command line may have changed its type on the way. A
        string names an integer only as Python writes it: ``"01"`` and ``"+1"`` are not 1.
        """
        keys = _keys(ids)
        if len(keys) == len(self) and keys.equals(self._ids, check_dtypes=True):
            return rows_of_lines(len(self))  # a table by its own key
        known = self._own(keys)
        are_few = len(keys) * BISECT_FROM <= len(self)
        # Bisection also where neighbours are found beside each other.
        is_quick = are_few or (len(keys) >= BISECT_SORTED and self._is_sorted and known.is_sorted())
        rows = self._search(known) if is_quick else self._join(known)
        rows[keys.is_null().to_numpy()] = PADDING_ROW
        return rows

    def rows_of_all(self, ids: pl.Series) -> npt.NDArray[np.int32]:
        """Return the row here of each row of another vocabulary with these ids, the reserved first."""
        return np.concatenate([np.arange(FIRST_ROW, dtype=np.int32), self.rows_of(ids)])

    def keys_of(self, ids: pl.Series | Iterable[object]) -> pl.Series:
        """Return ids as this vocabulary writes them; null where it cannot hold one.

        Any form that ``rows_of`` takes for an id becomes the same key.
        """
        return self._own(_keys(ids))

    def _own(self, keys: pl.Series) -> pl.Series:
        """Return keys in the type of these ids; null where that would write one in another way."""
        own = keys.cast(self._ids.dtype, strict=False)
        if keys.dtype == pl.String and own.dtype != pl.String:
            is_same = own.cast(pl.String) == keys
            if not is_same.all():  # nulls do not count
                own = pl.select(pl.when(is_same).then(own)).to_series()
        return own

    def _search(self, keys: pl.Series) -> npt.NDArray[np.int32]:
        """Return the row of each key by bisection: what asks for one id need not read all."""
        if not len(self):
            return np.full(len(keys), UNKNOWN_ROW, np.int32)
        ids, order = self._sorted
        # Few keys: numpy and Python answer before polars has planned what to do.
        if isinstance(ids, np.ndarray):
            known = keys.is_not_null().to_numpy()
            values = keys.to_numpy() if known.all() else keys.fill_null(0).to_numpy()
            places = np.searchsorted(ids, values).clip(max=len(self) - 1)
            found = (ids[places] == values) & known
        else:
            places = ids.search_sorted(keys).to_numpy().clip(max=len(self) - 1)
            found = (ids.gather(places) == keys).fill_null(value=False).to_numpy()
        positions = places if order is None else order[places]
        return np.where(found, positions + FIRST_ROW, UNKNOWN_ROW).astype(np.int32)

    def _join(self, keys: pl.Series) -> npt.NDArray[np.int32]:
        """Return the row of each key by a table of all hashes."""
        rows = pl.DataFrame({"id": self._ids, "row": rows_of_lines(len(self))})
        asked = keys.rename("id").to_frame()
        found = asked.join(rows, on="id", how="left", maintain_order="left")["row"]
        return found.fill_null(UNKNOWN_ROW).to_numpy(writable=True)

    @cached_property
    def _is_sorted(self) -> bool:
        return self._ids.is_sorted()

    @cached_property
    def _sorted(self) -> tuple[pl.Series | npt.NDArray[np.int64], npt.NDArray[np.uint32] | None]:
        """The ids by value, and the position of each, or None where that is the place itself."""
        ids, order = self._ids, None
        if not self._is_sorted:
            by_value = ids.arg_sort()
            ids, order = ids.gather(by_value), by_value.to_numpy()
        return (ids.to_numpy() if ids.dtype == pl.Int64 else ids), order

    def ids_of(self, rows: npt.NDArray[np.integer]) -> pl.Series:
        """Return the id of each row, in the rows' order; null for the reserved rows.

        Raises:
            ValueError: A row is outside this vocabulary.
        """
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.num_rows:
            raise ArgumentError(
                f"rows must be in 0..{self.num_rows - 1}, got {int(rows.min())}..{int(rows.max())}."
            )
        positions = pl.Series("p", rows.astype(np.int64) - FIRST_ROW)
        return self._ids.gather(pl.select(pl.when(positions >= 0).then(positions)).to_series())


def as_keys(values: pl.Series) -> pl.Series:
    """Return values as what a vocabulary can hold: Int64 or strings, null where there is no value.

    Each value is read by itself, whatever else stands in the column: NaN is no value, a whole float
    or decimal is written like the integer, and what has no plain text (a list, a duration, bytes,
    an object) is written as Python does. No value makes it fail.
    """
    dtype = values.dtype
    if dtype == pl.String:
        return values
    if dtype.is_integer():
        narrow = values.cast(pl.Int64, strict=False)
        return narrow if narrow.null_count() == values.null_count() else _texts(values.to_list())
    if dtype.is_decimal():
        values, dtype = values.cast(pl.Float64), pl.Float64()
    if dtype.is_float():
        floats = values.fill_nan(None)
        whole = floats.cast(pl.Int64, strict=False)
        is_whole = whole.cast(dtype) == floats
        return whole.cast(pl.String).zip_with(is_whole, floats.cast(pl.String))
    if dtype in (pl.Boolean, pl.Categorical, pl.Enum, pl.Date, pl.Datetime, pl.Time, pl.Null):
        return values.cast(pl.String)
    return _texts(values.to_list())


def _keys(ids: pl.Series | Iterable[object]) -> pl.Series:
    return as_keys(ids if isinstance(ids, pl.Series) else _series_of(list(ids)))


def _checked(ids: pl.Series) -> pl.Series:
    if ids.dtype in (pl.Boolean, pl.Categorical, pl.Enum):
        return ids.cast(pl.String)
    if ids.dtype.is_integer():
        narrow = ids.cast(pl.Int64, strict=False)
        if narrow.null_count() > ids.null_count():
            raise DataError(f"ids must be below 2**63, got {ids.max()!r}; write them as strings.")
        return narrow
    if ids.dtype != pl.String:
        raise DataError(f"ids must be integers or strings, got {ids.dtype}.")
    return ids


def _are_distinct(ids: pl.Series) -> bool:
    if ids.is_sorted():  # a look at neighbours costs a tenth of a table of hashes
        return not (ids.head(-1) == ids.tail(-1)).any() if len(ids) > 1 else True
    return ids.n_unique() == len(ids)


def _series_of(values: list[object]) -> pl.Series:
    """Return a list as a column. polars would read a mixed one by what else stands in it."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {float}:
        return pl.Series(values, dtype=pl.Float64)
    if kinds == {int} and all(v is None or -(2**63) <= v < 2**63 for v in values):  # type: ignore[operator]
        return pl.Series(values, dtype=pl.Int64)
    return _texts(values)


def _texts(values: list[object]) -> pl.Series:
    return pl.Series([_text(value) for value in values], dtype=pl.String)


def _text(value: object) -> str | None:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (float, Decimal)):
        text: str | None = as_keys(pl.Series([float(value)]))[0]
        return text
    return repr(value) if isinstance(value, bytes) else str(value)
