"""Frames of polars, pandas and pyarrow as one polars frame; pandas alone is enough for pandas frames."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard, Union

import polars as pl

if TYPE_CHECKING:
    import pandas
    import pyarrow

Frame = Union[pl.DataFrame, pl.LazyFrame, "pandas.DataFrame", "pyarrow.Table"]


def _is(value: object, library: str, kind: str) -> bool:
    """Return whether a value is of a library's type, without importing the library."""
    return type(value).__module__.split(".")[0] == library and type(value).__name__ == kind


def is_frame(value: object) -> TypeGuard[Frame]:
    """Return whether ``as_polars`` takes a value."""
    if isinstance(value, pl.DataFrame | pl.LazyFrame):
        return True
    return _is(value, "pandas", "DataFrame") or _is(value, "pyarrow", "Table")


def line_of(value: object) -> object:
    """Return a row of a pandas frame (a Series with the columns' names) as a mapping; else ``value``."""
    if not _is(value, "pandas", "Series"):
        return value
    row: Any = value
    found: dict[str, object] = {str(name): cell for name, cell in row.items()}
    return found


def names_of(frame: Frame) -> list[str]:
    """Return the columns' names as ``as_polars`` has them; they may repeat."""
    if isinstance(frame, pl.LazyFrame):
        return frame.collect_schema().names()
    if _is(frame, "pyarrow", "Table"):
        return list(frame.column_names)  # type: ignore[union-attr]
    return list(map(str, _with_index(frame).columns))


def as_polars(frame: Frame) -> pl.DataFrame:
    """Return a frame as one of polars, with strings as names; of a pandas index only its named levels.

    A missing value of pandas (None, NaN, NaT, NA) is null. Without pyarrow a column of pandas is converted
    by its numbers, or value by value.

    Raises:
        TypeError: A column of pandas holds values of several types; or the error of polars or pyarrow.
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if _is(frame, "pyarrow", "Table"):
        found = pl.from_arrow(frame)
        assert isinstance(found, pl.DataFrame)
        return found
    frame = _with_index(frame).rename(columns=str)
    try:
        import pyarrow  # noqa: F401 - polars uses it
    except ImportError:
        return pl.DataFrame([_column(name, frame[name]) for name in frame.columns])
    return pl.from_pandas(frame)


def _with_index(frame: Any) -> Any:
    index = getattr(frame, "index", None)
    named = [name for name in getattr(index, "names", ()) if name is not None]
    return frame.reset_index(named) if named else frame


def _column(name: str, column: Any) -> pl.Series:
    """Return a column of pandas without pyarrow."""
    kind = getattr(column.dtype, "kind", "O")
    zone = getattr(column.dtype, "tz", None)
    if zone is not None:
        moments = column.dt.tz_convert("UTC").dt.tz_localize(None)
        return _column(name, moments).dt.replace_time_zone("UTC").dt.convert_time_zone(str(zone))
    if type(column.dtype).__module__.startswith("numpy") and kind in "biufmM":
        values = pl.Series(name, column.to_numpy())
        return values.fill_nan(None) if kind == "f" else values
    missing = column.isna().tolist()
    return pl.Series(
        name,
        [None if gone else _plain(cell) for cell, gone in zip(column, missing, strict=True)],
    )


def _plain(cell: Any) -> Any:
    """Return a cell as polars can infer a type from it."""
    if isinstance(cell, Mapping):
        return dict(cell)
    return cell.item() if getattr(cell, "ndim", None) == 0 else cell


def to_pandas(frame: pl.DataFrame) -> "pandas.DataFrame":
    """Return a polars frame as one of pandas, with pyarrow or without.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pyarrow  # noqa: F401 - polars uses it
    except ImportError:
        import pandas as pd

        return pd.DataFrame({column.name: _values(column) for column in frame})
    return frame.to_pandas()


def _values(column: pl.Series) -> Any:
    is_number = column.dtype.is_numeric() and not column.null_count()
    return column.to_numpy() if is_number else column.to_list()
