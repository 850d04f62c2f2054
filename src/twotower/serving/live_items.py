"""Items that are added, changed or deleted after training."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from twotower.arrays import distinct
from twotower.errors import ArgumentError
from twotower.features.dates import moments_of
from twotower.features.forms import is_missing, read
from twotower.features.schema import VIEW
from twotower.serving.arguments import GivenFeatures, Id, ids_of
from twotower.serving.bundle import Contents, SideContents
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW, Vocabulary

_MOST_PIECES = 32
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
"""Text that table readers parse as a number. With a leading zero it stays text."""


class LiveIds(Vocabulary):
    """A vocabulary that grows. An id may have several rows, of which the newest is valid.

    Args:
        base: The vocabulary of the bundle.
    """

    def __init__(self, base: Vocabulary) -> None:
        self._ids = base.ids
        self._base = base
        self._row_of: dict[object, int] = {}
        self._first = np.arange(base.num_rows, dtype=np.int32)  # of each row the first of its id
        self._newest = self._first  # of an id's first row its newest

    def with_rows(self, keys: pl.Series) -> "LiveIds":
        """Return the vocabulary with one more row for each of ``(n,)`` distinct keys; see ``keys_of``."""
        fresh = np.arange(self.num_rows, self.num_rows + len(keys), dtype=np.int32)
        old = self.rows_of(keys)
        first = np.where(old >= FIRST_ROW, self._first[old], fresh)
        grown = copy(self)
        grown._ids = _in_few_pieces(pl.concat([self._ids, keys.rename("id")], rechunk=False))
        grown._row_of = {**self._row_of, **dict(zip(keys.to_list(), fresh.tolist(), strict=True))}
        grown._first = np.append(self._first, first)
        grown._newest = np.append(self._newest, fresh)
        grown._newest[first] = fresh
        return grown

    def rows_of(self, ids: pl.Series | Iterable[object]) -> npt.NDArray[np.int32]:
        """Return the newest row of each id; see ``Vocabulary.rows_of``."""
        given = ids if isinstance(ids, pl.Series) else list(ids)
        rows = self._base.rows_of(given)
        if self._row_of:
            for place, key in enumerate(self.keys_of(given).to_list()):
                rows[place] = self._row_of.get(key, rows[place])
        return rows

    @property
    def num_first(self) -> int:
        """Number of rows in the bundle, including the reserved ones."""
        return self._base.num_rows

    @property
    def first_rows(self) -> npt.NDArray[np.int32]:
        """The first row of the id of each row: ``(num_rows,)``."""
        return self._first

    def newest(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return the newest row of the id of each row, in the same shape."""
        return np.asarray(self._newest[self._first[rows]])


def lines_of(contents: Contents, items: GivenFeatures) -> pl.DataFrame:
    """Return items that a caller gave as rows of the items' table; see ``lines_of_table``.

    Args:
        contents: The current contents.
        items: Rows with an id and columns of the table. Other columns are dropped.
    """
    return lines_of_table(contents.items, items, what="items", view=contents.view)


def lines_of_table(
    table: SideContents, items: GivenFeatures, *, what: str, view: str | None = None
) -> pl.DataFrame:
    """Return items or queries that a caller gave as rows of their side's table.

    A column that a row lacks is missing, even for an id that was there before.

    Args:
        table: The side.
        items: Rows with an id and columns of the table. Other columns are dropped.
        what: Names them in messages.
        view: The view that items belong to, if there are several.

    Raises:
        ValueError: An id is missing, has another type than the side's ids or is repeated, or a value does
            not fit its column.
    """
    given = items.frame
    column = table.id_column
    if column not in given.columns:
        raise ArgumentError(
            f"{what} must have the column {column!r}, got {', '.join(given.columns)}."
        )
    keys = table.ids.keys_of(given[column])
    wrong = np.flatnonzero(keys.is_null().to_numpy())
    if len(wrong):
        of = "the catalogue" if what == "items" else "the bundle"
        raise ArgumentError(
            f"{column} must be an id like those of {of} ({table.ids.ids.dtype}), "
            f"got {given[column][int(wrong[0])]!r}."
        )
    twice = keys.filter(keys.is_duplicated())
    if len(twice):
        raise ArgumentError(f"{column} must be distinct within a call, got {twice[0]!r} twice.")
    schema, missing = table.frame.schema, [None] * len(given)
    forms = {feature.source: feature.form for feature in table.transforms.features}
    columns = {name: pl.Series(missing, dtype=dtype) for name, dtype in schema.items()}
    fixed = {column: keys.cast(schema[column])}
    if view is not None:
        fixed = {VIEW: pl.repeat(view, len(given), dtype=schema[VIEW], eager=True), **fixed}
    for name in columns:
        if name in given.columns and name not in fixed:
            columns[name] = _fitting(given[name], schema[name], forms.get(name, ""))
    return pl.DataFrame({**columns, **fixed})


def with_lines(contents: Contents, lines: pl.DataFrame) -> Contents:
    """Return the contents with a new row for each item. Older rows of the same ids are marked as gone.

    Args:
        contents: The current contents.
        lines: The items, from ``lines_of``.
    """
    table = contents.items
    ids = table.ids if isinstance(table.ids, LiveIds) else LiveIds(table.ids)
    keys = ids.keys_of(lines[table.id_column])
    before = ids.rows_of(keys)
    was_there = before >= FIRST_ROW
    counts = np.where(was_there, contents.popularity[before], 0).astype(np.float32)
    gone = np.append(_gone(contents), np.zeros(len(lines), np.bool_))
    gone[before[was_there]] = True
    frame = _in_few_pieces(table.frame.vstack(lines))
    items = replace(table, ids=ids.with_rows(keys), frame=frame)
    popularity = np.append(contents.popularity, counts)
    return replace(contents, items=items, popularity=popularity, gone=gone)


def without_ids(contents: Contents, item_ids: Sequence[Id]) -> tuple[Contents, int]:
    """Return the contents without some items, and how many of them were in the catalogue.

    The items still count in histories.

    Raises:
        ValueError: ``item_ids`` is not a list.
    """
    ids = contents.items.ids
    rows = ids.rows_of(ids_of(item_ids, what="item_ids"))
    gone = _gone(contents)
    rows = distinct(rows[rows > UNKNOWN_ROW])
    if contents.offered is not None:
        rows = rows[contents.offered[rows]]
    gone[rows] = True
    return replace(contents, gone=gone), len(rows)


def settled(contents: Contents, item_vectors: torch.Tensor) -> tuple[Contents, torch.Tensor]:
    """Return the contents with one row per item, as a bundle stores them, and the vectors of these items.

    The bundle's own items keep their rows, even if they were deleted, because histories may hold them.
    Added items follow in the order in which they were added.

    Args:
        contents: The current contents.
        item_vectors: ``(num_item_rows, dim)`` float32, including the reserved rows.
    """
    table, gone = contents.items, contents.gone
    if not isinstance(table.ids, LiveIds) or gone is None:
        return contents, item_vectors[FIRST_ROW:]
    first = table.ids.newest(np.arange(table.ids.num_first, dtype=np.int32))
    rest = np.arange(table.ids.num_first, table.ids.num_rows, dtype=np.int32)
    added = rest[~gone[rest] & ~np.isin(rest, first)]
    rows = np.concatenate([first, added])
    lines = rows[FIRST_ROW:].astype(np.int64) - FIRST_ROW
    items = replace(table, ids=Vocabulary(table.ids.ids.gather(lines)), frame=table.frame[lines])
    popularity, gone = contents.popularity[rows], gone[rows] if gone[rows].any() else None
    vectors = item_vectors[torch.from_numpy(lines + FIRST_ROW)]
    return replace(contents, items=items, popularity=popularity, gone=gone), vectors


def as_written(contents: Contents, item_vectors: torch.Tensor) -> Contents:
    """Return ``settled`` contents with the vectors and the lists of their items, as a bundle stores them.

    Args:
        contents: The current contents.
        item_vectors: ``(num_item_rows, dim)`` float32, including the reserved rows.
    """
    contents, vectors = settled(contents, item_vectors)
    vectors = vectors.cpu().contiguous()
    lists = None if contents.lists is None else contents.lists.holding(vectors)
    return replace(contents, item_vectors=vectors, lists=lists)


Rows = TypeVar("Rows", pl.Series, pl.DataFrame)


def _in_few_pieces(rows: Rows) -> Rows:
    """Merge the chunks of rows that were concatenated many times, because many chunks are slow to read."""
    return rows.rechunk() if rows.n_chunks() > _MOST_PIECES else rows


def _gone(contents: Contents) -> npt.NDArray[np.bool_]:
    num_rows = contents.items.ids.num_rows
    return np.zeros(num_rows, np.bool_) if contents.gone is None else contents.gone.copy()


def _fitting(values: pl.Series, dtype: pl.DataType, form: str) -> pl.Series:
    """Return values in the type of a column; text is read by the column's form.

    Raises:
        ValueError: The column cannot hold a value, or would change it.
    """
    fitted = _kept(read(values, form), dtype)
    is_lost = fitted.is_null() & values.is_not_null()
    if form and values.dtype == pl.String:
        is_lost &= ~is_missing(values).fill_null(value=True)
    lost = np.flatnonzero(is_lost.to_numpy())
    if len(lost):
        odd = values.to_list()[int(lost[0])]
        of_form = f", or text of the form {form!r}" if form else ""
        raise ArgumentError(f"{values.name} must hold {dtype}{of_form}, got {odd!r}.")
    return fitted.rename(values.name)


def _kept(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Return values in the type of a column; null if the column cannot hold a value or would change it."""
    given = values.dtype
    nothing = pl.Series([None] * len(values), dtype=dtype)
    if given in (pl.Null, dtype):
        return values.cast(dtype)
    with suppress(pl.exceptions.PolarsError, TypeError, ValueError):
        if isinstance(given, pl.List | pl.Array) and isinstance(dtype, pl.List | pl.Array):
            return _kept_lists(values, dtype)
        if given == pl.Object and len(values) > 1:
            return pl.concat([_kept(pl.Series([each]), dtype) for each in values.to_list()])
        if given == pl.Object or given.is_nested() or dtype.is_nested():
            return nothing
        if given == pl.String:
            return _read(values, dtype)
        if dtype == pl.String:
            return values.cast(dtype)
        if pl.Boolean in (given, dtype) or given.is_temporal() != dtype.is_temporal():
            return nothing  # true is not 1, and 20000 is not a date
        fitted = values.cast(dtype, strict=False)
        is_same = fitted.cast(given, strict=False) == values
        if given.is_float() and dtype.is_float():  # rounding is fine, overflow is not
            is_same = fitted.is_finite() == values.is_finite()
        return pl.select(pl.when(is_same).then(fitted)).to_series()
    return nothing


def _kept_lists(values: pl.Series, dtype: pl.List | pl.Array) -> pl.Series:
    """Return lists in the type of a column; null if the column would change a value in a list."""
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    lengths = values.list.len().fill_null(0).to_numpy()
    flat = values.filter(pl.Series(lengths > 0, dtype=pl.Boolean)).explode()
    inner: Any = dtype.inner
    kept = _kept(flat, inner)
    is_lost = (kept.is_null() & flat.is_not_null()).to_list()
    inside, ends = kept.to_list(), lengths.cumsum().tolist()
    spans = [
        None if is_null or any(is_lost[end - length : end]) else inside[end - length : end]
        for is_null, length, end in zip(values.is_null(), lengths.tolist(), ends, strict=True)
    ]
    return pl.Series(spans, dtype=dtype)


def _read(strings: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Return values that table readers would parse from strings; null if a string is not such a value."""
    if dtype == pl.Boolean:
        fitted, is_same = strings == "true", strings.is_in(["true", "false"])
    elif dtype in (pl.Date, pl.Datetime):
        moments = moments_of(strings)
        zone = getattr(dtype, "time_zone", None)
        if zone is not None:
            moments = moments.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
        fitted = moments.cast(dtype)
        is_same = fitted.cast(moments.dtype) == moments
    elif dtype.is_integer():
        fitted = strings.cast(dtype, strict=False)
        is_same = fitted.cast(pl.String) == strings
    elif dtype.is_float():
        fitted = strings.cast(dtype, strict=False)
        is_same = strings.str.contains(_NUMBER) & fitted.is_finite()
    else:
        return strings.cast(dtype, strict=False)
    return pl.select(pl.when(is_same).then(fitted)).to_series()
