"""Reading: a column of any type as tags, numbers, moments or vectors.

Nothing here can fail, and each value is read by itself: what it becomes never depends on what else
stands in its column, so that a row that is served alone is read as it was in training.
"""

import numpy as np
import polars as pl

from twotower.arrays import Floats, Ints, Rows
from twotower.features.dates import moments_of
from twotower.vocab import PADDING_ROW, as_keys


def share_of(fits: pl.Series) -> float:
    """Return the share of booleans that are true, nulls apart; 0 where there are none."""
    share = fits.mean()
    return share if isinstance(share, float) else 0.0


def exploded(lists: pl.Series) -> tuple[Ints, pl.Series]:
    """Return the values of all lists end to end, with the line of each: ``(m,)`` each."""
    lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    # Versions of polars differ in what an empty list explodes to, so there is none.
    flat = lists.filter(pl.Series(lengths > 0, dtype=pl.Boolean)).explode()
    return np.repeat(np.arange(len(lists)), lengths), flat


def places_in_line(lines: Ints) -> Ints:
    """Return the place of each entry within its line, where lines rise: ``(m,)``."""
    return np.arange(len(lines)) - np.searchsorted(lines, lines)


def padded(lines: Ints, rows: Ints | Rows, num_lines: int, width: int) -> Rows:
    """Return the rows of each line, up to ``width`` of them: ``(num_lines, width)``, padded with 0.

    Args:
        lines: ``(m,)`` the line of each row, rising.
        rows: ``(m,)``.
        num_lines: All lines, those without a row included.
        width: Of a line with more rows, the later ones are left out.
    """
    result = np.full((num_lines, width), PADDING_ROW, np.int32)
    places = places_in_line(lines)
    fits = places < width
    result[lines[fits], places[fits]] = rows[fits]
    return result


def tags_of(values: pl.Series, separator: str) -> tuple[Ints, pl.Series]:
    """Return every tag of a column, with the line that it stands in.

    Args:
        values: Lists, or strings with a separator; any other value is its own only tag.
        separator: What stands between tags in a string; empty where nothing does.

    Returns:
        ``(m,)`` line numbers, rising, and the ``(m,)`` tags as strings: stripped of spaces, none
        empty, each once a line.
    """
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    if not isinstance(values.dtype, pl.List):
        strings = as_keys(values).cast(pl.String)
        alone = pl.select(pl.concat_list(strings)).to_series()
        values = strings.str.split(separator) if separator else alone
    lines, flat = exploded(values)
    tags = pl.DataFrame({"line": lines, "tag": as_keys(flat).cast(pl.String).str.strip_chars()})
    tags = tags.filter(pl.col("tag") != "").unique(maintain_order=True)
    return tags["line"].to_numpy(), tags["tag"]


def floats_of(values: pl.Series) -> Floats:
    """Return each value as a number: ``(n,)`` float64, NaN where there is none to read."""
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        values = values.str.strip_chars()
    elif not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
        return np.full(len(values), np.nan)
    return values.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()


def seconds_of(values: pl.Series) -> Floats:
    """Return each moment as seconds since 1970 UTC: ``(n,)`` float64, NaN where there is none.

    Numbers, also as text, are such seconds already; a date is its midnight; without a zone it is UTC.
    """
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    moments = values
    if values.dtype == pl.String:
        moments = moments_of(values)
    elif values.dtype == pl.Date:
        moments = values.cast(pl.Datetime("us"))
    if not isinstance(moments.dtype, pl.Datetime):
        return floats_of(values)
    seconds = moments.dt.epoch("us").cast(pl.Float64).fill_null(float("nan")).to_numpy() / 1e6
    if values.dtype == pl.String:
        return np.where(np.isnan(seconds), floats_of(values), seconds)
    return seconds


def number_lists_of(values: pl.Series) -> pl.Series:
    """Return each value as a list of floats; null where it is no list, or not of single values."""
    dtype = values.dtype
    if isinstance(dtype, pl.Array) and len(dtype.shape) == 1:
        values = values.arr.to_list()
    if isinstance(values.dtype, pl.List):
        inner = values.dtype.inner
        if inner.is_numeric() or inner in (pl.Boolean, pl.String, pl.Null):
            return values.cast(pl.List(pl.Float64), strict=False)
    return pl.Series([None] * len(values), dtype=pl.List(pl.Float64))


def vectors_of(values: pl.Series, width: int) -> Floats:
    """Return each list of ``width`` numbers: ``(n, width)`` float64, NaN where one is missing.

    What is no list, or a list of another length, is missing as a whole.
    """
    lists = number_lists_of(values)
    fits = (lists.list.len() == width).fill_null(value=False)
    table = np.full((len(lists), width), np.nan)
    if width and fits.any():
        table[fits.to_numpy()] = lists.filter(fits).list.to_array(width).to_numpy()
    return table
