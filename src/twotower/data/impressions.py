"""What was shown beside each event's item: a column of lists, or of strings, as rows of items."""

import numpy as np
import polars as pl

from twotower.arrays import Ints, Rows
from twotower.caller import passing
from twotower.errors import DataError
from twotower.features.raw_values import exploded
from twotower.histories import Histories
from twotower.vocab import FIRST_ROW, Vocabulary, as_keys

_SEPARATORS = ("|", ";", ",", " ")
_SAMPLE = 1000


def impressions_of(
    series: pl.Series, item_rows: Rows, catalogue: Vocabulary, notes: list[str]
) -> Histories:
    """Return the items that were shown with each event and not taken: ``E`` sets, without times.

    In a set each item stands once, sorted by row, and never the event's own. A string may hold several
    ids; what separates them is read off the catalogue, which its pieces must be in.

    Args:
        series: ``(E,)`` lists of ids, strings, or one id each; null or empty where nothing was shown.
        item_rows: ``(E,)`` int32, each event's own item.
        catalogue: The items that may be shown; ids that are not in it are left out.
        notes: Gets a sentence of what was found, and one of what was left out.

    Raises:
        DataError: The column can hold no ids, holds none, or none that the catalogue has.
    """
    what = f"the impressions column {series.name!r}"
    events, ids = _flat(series, catalogue, what)
    if not len(ids):
        raise DataError(
            f"{what} must hold ids, got {len(series)} rows that are all null or empty; "
            f"pass another: {passing(impressions_column='NAME')}."
        )
    rows = catalogue.rows_of(ids)
    unknown = rows < FIRST_ROW
    if unknown.all():
        raise DataError(
            f"{what} must share ids with the items, got none in common: it begins with {ids[0]!r}, "
            f"the items with {catalogue.ids[0]!r}; pass another: {passing(impressions_column='NAME')}."
        )
    if unknown.any():
        lost = ids.filter(pl.Series(unknown))
        count = lost.n_unique()
        notes.append(
            f"Left out {count:,} shown item{'s' if count > 1 else ''} that no event and no item table "
            f"has, {lost[0]!r} the first."
        )
    kept = ~unknown & (rows != item_rows[events])
    shown = Histories.of_pairs(events[kept], rows[kept], len(series))
    notes.append(
        f"Beside the item of an event {shown.lengths.mean():.3g} others were shown on average, "
        f"none in {np.mean(shown.lengths == 0):.1%} of the events."
    )
    return shown


def _flat(series: pl.Series, catalogue: Vocabulary, what: str) -> tuple[Ints, pl.Series]:
    """Return every id of a column and the row that it stands in: ``(m,)`` each, the rows rising."""
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    is_list = isinstance(series.dtype, pl.List)
    dtype = series.dtype.inner if isinstance(series.dtype, pl.List) else series.dtype
    texts = (pl.String, pl.Categorical, pl.Enum, pl.Null)
    if not (dtype in texts or dtype.is_integer() or dtype.is_float()):
        raise DataError(
            f"{what} must hold lists of ids or strings, got {series.dtype}; name another column."
        )
    if not is_list:
        keys = as_keys(series).cast(pl.String)
        series = keys.str.split(_separator(keys, catalogue))
    events, values = exploded(series)
    ids = as_keys(values)
    if not is_list:
        ids = ids.str.strip_chars()
    present = ids.is_not_null()
    if ids.dtype == pl.String:
        present &= ids != ""
    return events[present.to_numpy()], ids.filter(present)


def _separator(strings: pl.Series, catalogue: Vocabulary) -> str:
    """Return what cuts strings into the most ids of the catalogue, of the first that are none."""
    cells = strings.drop_nulls()
    several = cells.filter(pl.Series(catalogue.rows_of(cells) < FIRST_ROW, dtype=pl.Boolean))
    several = several.filter(several.str.strip_chars() != "").head(_SAMPLE)

    def num_known(separator: str) -> int:
        pieces = several.str.split(separator).explode().str.strip_chars()
        return int((catalogue.rows_of(pieces) >= FIRST_ROW).sum())

    return max(_SEPARATORS, key=num_known)
