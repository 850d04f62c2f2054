"""Whatever a column of times holds -> seconds.

Numbers of every usual unit, dates, datetimes and strings of many formats. Nothing is guessed where
it matters: what could be two days is refused, and so is a row that is no time.
"""

import numpy as np
import polars as pl

from twotower.arrays import Floats
from twotower.caller import passing
from twotower.data.refusal import refuse_first
from twotower.errors import DataError
from twotower.features.dates import FORMATS, normalised, parsed
from twotower.features.raw_values import seconds_of

_UNITS = ((1e11, 1), (1e14, 10**3), (1e17, 10**6), (float("inf"), 10**9))
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800.0, 253_402_300_800.0  # years 1 to 9999


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
    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if series.dtype in (pl.Date, pl.Datetime):
        times = pl.Series(seconds_of(series))
    elif series.dtype == pl.String:
        numbers = series.cast(pl.Float64, strict=False)
        mostly_numbers = 2 * numbers.drop_nulls().len() > series.drop_nulls().len()
        times = _from_numbers(numbers) if mostly_numbers else _from_strings(series, what)
    elif series.dtype.is_numeric():
        times = _from_numbers(series)
    else:
        raise DataError(f"{what} must hold times, got {series.dtype}; {_remedy()}.")
    seconds = times.fill_null(np.nan).to_numpy()
    bad = ~((seconds >= _FIRST_SECOND) & (seconds < _LAST_SECOND))  # true for NaN too
    refuse_first(series, bad, what, "hold a time", _remedy())
    return np.ascontiguousarray(seconds, np.float64)


def _remedy() -> str:
    another = passing(time_column="NAME")
    return f"write times as unix seconds or as 2024-05-31T23:59:59, or pass another {another}"


def _from_numbers(numbers: pl.Series) -> pl.Series:
    floats = numbers.cast(pl.Float64)
    finite = floats.filter(floats.is_finite())
    if not len(finite):
        return floats
    low, high = float(str(finite.min())), float(str(finite.max()))
    for digits, pattern in ((8, "%Y%m%d"), (14, "%Y%m%d%H%M%S")):
        scale = 10.0 ** (digits - 4)
        if 1900 * scale <= low and high < 2101 * scale:
            dates = _parsed(numbers.cast(pl.Int64, strict=False).cast(pl.String), pattern)
            if dates.null_count() == numbers.len() - finite.len():
                return dates
    typical = float(np.median(np.abs(finite.to_numpy())))
    divisor = next(divisor for bound, divisor in _UNITS if typical < bound)
    if not numbers.dtype.is_integer():
        return floats / divisor
    whole = numbers.cast(pl.Int64, strict=False)
    seconds = whole // divisor  # a float64 would round nanoseconds before they are divided
    return seconds.cast(pl.Float64) + (whole - seconds * divisor).cast(pl.Float64) / divisor


def _from_strings(series: pl.Series, what: str) -> pl.Series:
    texts = normalised(series)
    sample = texts.drop_nulls().head(1000)
    fits: dict[str, int] = {}
    for pattern in FORMATS:
        fits[pattern] = _parsed(sample, pattern).drop_nulls().len()
        if pattern.startswith("%Y") and fits[pattern] == len(sample):
            break  # with the year first, no other format can mean another day
    most = max(fits.values())
    if most == 0:
        return pl.Series([None] * len(series), dtype=pl.Float64)
    parsed = [_parsed(texts, pattern) for pattern, fit in fits.items() if fit == most]
    fewest = min(times.null_count() for times in parsed)
    best = [times for times in parsed if times.null_count() == fewest]
    for other in best[1:] if fewest == series.null_count() else ():
        differs = other.ne_missing(best[0]).to_numpy()
        if differs.any():
            row = int(differs.argmax())
            raise DataError(
                f"{what} must tell the day from the month, got {series[row]!r} in data row "
                f"{row + 1}, which could be either; write dates as YYYY-MM-DD."
            )
    return best[0]


def _parsed(texts: pl.Series, pattern: str) -> pl.Series:
    """Return the seconds of each text under ``pattern``, null where it does not fit."""
    return parsed(texts, pattern).dt.epoch("us").cast(pl.Float64) / 1e6
