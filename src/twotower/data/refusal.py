"""Saying plainly which row of a column is the first that cannot be used, and why."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import polars as pl

from twotower.arrays import Bools
from twotower.errors import DataError

_ROWS_BEFORE: ContextVar[int] = ContextVar("rows_before", default=0)


@contextmanager
def after_rows(num: int) -> Iterator[None]:
    """Let messages count the rows of a block from the start of its table, ``num`` rows earlier."""
    token = _ROWS_BEFORE.set(num)
    try:
        yield
    finally:
        _ROWS_BEFORE.reset(token)


def row_number(position: int) -> int:
    """Return how messages number the row at a position: from 1, through all blocks of a table."""
    return _ROWS_BEFORE.get() + position + 1


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
        f"{what} must {rule} in every row, got {shown} in data row {row_number(row)}; {remedy}."
    )
