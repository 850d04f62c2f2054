"""Saying plainly which row of a column is the first that cannot be used, and why."""

import polars as pl

from twotower.arrays import Bools
from twotower.errors import DataError


def refuse_first(series: pl.Series, bad: Bools, what: str, rule: str, remedy: str) -> None:
    """Raise for the first row of ``series`` where ``bad``, naming its 1-based row and its value.

    Raises:
        DataError: ``bad`` holds anywhere.
    """
    if not bad.any():
        return
    row = int(bad.argmax())
    value = series[row]
    shown = "null" if value is None else repr(value)
    raise DataError(
        f"{what} must {rule} in every row, got {shown} in data row {row + 1}; {remedy}."
    )
