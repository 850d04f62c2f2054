"""Whatever a column of times holds -> seconds.

Numbers of every usual unit, dates, datetimes and strings of many formats. Nothing is guessed where
it matters: what could be two days is refused, and so is a row that is no time.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from twotower.arrays import Bools, Floats
from twotower.caller import passing
from twotower.data.refusal import refuse_first, row_number
from twotower.errors import DataError
from twotower.features.dates import FORMATS, normalised, parsed
from twotower.features.raw_values import seconds_of

_UNITS = ((1e11, 1), (1e14, 10**3), (1e17, 10**6), (float("inf"), 10**9))
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800.0, 253_402_300_800.0  # years 1 to 9999


@dataclass(frozen=True)
class TimeForm:
    """How a column writes its times.

    Args:
        reads: ``"moments"`` are dates and datetimes, ``"numbers"`` also those that are written as strings,
            ``"texts"`` dates in words and digits.
        divisor: What numbers are divided by to be seconds, where they have no pattern.
        pattern: The format of texts, or of numbers such as 20240531. Empty for all others.
    """

    reads: Literal["moments", "numbers", "texts"]
    divisor: int = 1
    pattern: str = ""

    def seconds(self, series: pl.Series, *, what: str, where: Bools | None = None) -> Floats:
        """Return each value of a column in this form as seconds since 1970-01-01 UTC: ``(n,)`` float64.

        Args:
            series: ``(n,)`` of the type that the form was read off.
            what: Names the column in messages.
            where: ``(n,)`` which rows must hold a time; the others may be NaN. None checks all.

        Raises:
            DataError: A value is null, infinite or no time; the first such row is named.
        """
        times = self._times(as_text(series))
        seconds = times.fill_null(np.nan).to_numpy()
        bad = ~((seconds >= _FIRST_SECOND) & (seconds < _LAST_SECOND))  # true for NaN too
        refuse_first(series, bad if where is None else bad & where, what, "hold a time", _remedy())
        return np.ascontiguousarray(seconds, np.float64)

    def _times(self, series: pl.Series) -> pl.Series:
        if self.reads == "moments":
            return pl.Series(seconds_of(series))
        if self.reads == "texts":
            if not self.pattern:  # no format fits any
                return pl.Series([None] * len(series), dtype=pl.Float64)
            return _parsed(normalised(series), self.pattern)
        numbers = _numbers(series)
        if self.pattern:
            return _parsed(numbers.cast(pl.Int64, strict=False).cast(pl.String), self.pattern)
        if not numbers.dtype.is_integer():
            return numbers.cast(pl.Float64) / self.divisor
        whole = numbers.cast(pl.Int64, strict=False)
        seconds = whole // self.divisor  # a float64 would round nanoseconds before they are divided
        rest = (whole - seconds * self.divisor).cast(pl.Float64)
        return seconds.cast(pl.Float64) + rest / self.divisor


def times_in_seconds(series: pl.Series, *, what: str) -> Floats:
    """Return each value as seconds since 1970-01-01 UTC: ``(n,)`` float64, finite.

    Numbers are unix seconds, milliseconds, microseconds or nanoseconds by the size of their median
    (seconds below 1e11, the year 5138), or dates where every one reads as YYYYMMDD or
    YYYYMMDDhhmmss. Strings are read by the format that fits most of them. A time without a zone is
    taken as UTC; a date is its midnight.

    Args:
        series: ``(n,)`` numbers, dates, datetimes or strings.
        what: Names the column in messages.

    Raises:
        DataError: A value is null, infinite or no time (the first such row is named); day and month
            cannot be told apart; the type can hold no time.
    """
    return time_form(series, what=what).seconds(series, what=what)


def time_form(series: pl.Series, *, what: str) -> TimeForm:
    """Return how a column writes its times; see ``times_in_seconds``.

    Raises:
        DataError: Day and month cannot be told apart, or the type can hold no time.
    """
    series = as_text(series)
    if series.dtype in (pl.Date, pl.Datetime):
        return TimeForm("moments")
    if series.dtype == pl.String:
        numbers = series.cast(pl.Float64, strict=False)
        mostly_numbers = 2 * numbers.drop_nulls().len() > series.drop_nulls().len()
        return _form_of_numbers(numbers) if mostly_numbers else _form_of_texts(series, what)
    if series.dtype.is_numeric():
        return _form_of_numbers(series)
    raise DataError(f"{what} must hold times, got {series.dtype}; {_remedy()}.")


def as_text(series: pl.Series) -> pl.Series:
    """Return categories as strings, and anything else as it is."""
    return series.cast(pl.String) if series.dtype in (pl.Categorical, pl.Enum) else series


def _numbers(series: pl.Series) -> pl.Series:
    return series.cast(pl.Float64, strict=False) if series.dtype == pl.String else series


def _remedy() -> str:
    another = passing(time_column="NAME")
    return f"write times as unix seconds or as 2024-05-31T23:59:59, or pass another {another}"


def _form_of_numbers(numbers: pl.Series) -> TimeForm:
    floats = numbers.cast(pl.Float64)
    finite = floats.filter(floats.is_finite())
    if not len(finite):
        return TimeForm("numbers")
    low, high = float(str(finite.min())), float(str(finite.max()))
    for digits, pattern in ((8, "%Y%m%d"), (14, "%Y%m%d%H%M%S")):
        scale = 10.0 ** (digits - 4)
        if 1900 * scale <= low and high < 2101 * scale:
            dates = _parsed(numbers.cast(pl.Int64, strict=False).cast(pl.String), pattern)
            if dates.null_count() == numbers.len() - finite.len():
                return TimeForm("numbers", pattern=pattern)
    typical = float(np.median(np.abs(finite.to_numpy())))
    return TimeForm("numbers", next(divisor for bound, divisor in _UNITS if typical < bound))


def _form_of_texts(series: pl.Series, what: str) -> TimeForm:
    texts = normalised(series)
    sample = texts.drop_nulls().head(1000)
    fits: dict[str, int] = {}
    for pattern in FORMATS:
        fits[pattern] = _parsed(sample, pattern).drop_nulls().len()
        if pattern.startswith("%Y") and fits[pattern] == len(sample):
            break  # with the year first, no other format can mean another day
    most = max(fits.values())
    likely = [pattern for pattern, fit in fits.items() if fit == most]
    if most == 0:
        return TimeForm("texts")
    if len(likely) == 1:
        return TimeForm("texts", pattern=likely[0])
    read = {pattern: _parsed(texts, pattern) for pattern in likely}
    fewest = min(times.null_count() for times in read.values())
    best = {pattern: times for pattern, times in read.items() if times.null_count() == fewest}
    chosen, *others = best
    for other in others if fewest == series.null_count() else ():
        differs = best[other].ne_missing(best[chosen]).to_numpy()
        if differs.any():
            row = int(differs.argmax())
            raise DataError(
                f"{what} must tell the day from the month, got {series[row]!r} in data row "
                f"{row_number(row)}, which could be either; write dates as YYYY-MM-DD."
            )
    return TimeForm("texts", pattern=chosen)


def _parsed(texts: pl.Series, pattern: str) -> pl.Series:
    """Return the seconds of each text under ``pattern``, null where it does not fit."""
    return parsed(texts, pattern).dt.epoch("us").cast(pl.Float64) / 1e6
