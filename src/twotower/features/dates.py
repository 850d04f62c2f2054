"""Dates and times in text: one list of formats, shared by the times of events and all other columns.

``data/times.py`` chooses one format for the time column of the events.
"""

from typing import Literal

import numpy as np
import polars as pl

Order = Literal["", "day", "month"]
"""What stands first in ``03/04/2024``: empty where that is not known, and such a date is not read."""

_CLEAR = (
    *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y年%m月%d日", "%d.%m.%Y"),
    *("%m %d, %Y", "%b %d, %Y", "%B %d, %Y", "%d %b %Y", "%d-%b-%Y"),
)
_BY_ORDER: dict[str, tuple[str, ...]] = {
    "month": ("%m/%d/%Y", "%m-%d-%Y"),
    "day": ("%d/%m/%Y", "%d-%m-%Y"),
}
_CLOCKS = ("", " %H:%M:%S%.f", "T%H:%M:%S%.f", " %H:%M", "T%H:%M", " %I:%M:%S %p", " %I:%M %p")
_ZONED = ("T%H:%M:%S%.f%#z", " %H:%M:%S%.f%#z", " %H:%M:%S%.f %#z", "T%H:%M%#z")


def _with_clocks(dates: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(date + clock for date in dates for clock in _CLOCKS)


_SURE = (
    *("%Y-%m-%d" + clock for clock in _ZONED),
    *_with_clocks(_CLEAR),
    "%a %b %d %H:%M:%S %z %Y",
    "%a, %d %b %Y %H:%M:%S %z",
)
_OF_ORDER = {order: _with_clocks(dates) for order, dates in _BY_ORDER.items()}
FORMATS = (*_SURE, *_OF_ORDER["month"], *_OF_ORDER["day"])
"""Every format that is read. Of those in ``_SURE`` no text fits two that mean different moments."""

_MONTHS = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|"
    "sep(?:tember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?"
)
_WORDS = rf"{_MONTHS}|mon|tue|wed|thu|fri|sat|sun|am|pm|t|年|月|日"
_SHAPE = rf"(?i)^(?:[0-9]+|[ ,./:+-]|{_WORDS}){{3,30}}$"
"""What every text of a format looks like, and hardly any other: it spares the formats."""
_MOMENT = pl.Datetime("us")
_SAMPLED = 200
_PLAIN = r"^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}|^[0-9]{1,2}-[A-Za-z]{3}-[0-9]{4}"


def normalised(strings: pl.Series) -> pl.Series:
    """Return strings as the formats expect them: single spaces, and a zone of UTC as an offset."""
    strings = strings.str.strip_chars().str.replace_all(r"\s+", " ")
    return strings.str.replace(r"([0-9])(?:Z| ?UTC| ?GMT)$", "${1}+00:00")


def parsed(texts: pl.Series, pattern: str) -> pl.Series:
    """Return the moment of each normalised text under one format, as datetimes in UTC; null elsewhere."""
    moments = texts.str.to_datetime(pattern, time_unit="us", strict=False, ambiguous="earliest")
    if getattr(moments.dtype, "time_zone", None) is not None:
        moments = moments.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    # "%Y" takes the 24 of 3/14/24 for the year 24
    return moments.set((moments.dt.year() < 1000).fill_null(value=False), None)


def moments_of(strings: pl.Series, order: Order = "") -> pl.Series:
    """Return the moments that strings name, as datetimes in UTC; null where there is none to read.

    Each is read by itself, whatever the others are.

    Args:
        strings: ``(n,)`` text.
        order: What stands first in dates such as ``03/04/2024``.
    """
    texts = normalised(strings)
    is_like = texts.str.contains(_SHAPE) & texts.str.contains(r"[0-9]{4}")
    is_like &= ~texts.str.contains(r"^[0-9]+$")
    places = np.flatnonzero(is_like.fill_null(value=False).to_numpy())
    moments = pl.Series(strings.name, [None] * len(strings), dtype=_MOMENT)
    if not len(places):  # as in most columns of text, which need not be held against every format
        return moments
    left = texts.gather(places)
    for pattern in _likeliest_first(left, (*_SURE, *_OF_ORDER.get(order, ()))):
        found = parsed(left, pattern)
        fits = found.is_not_null()
        moments.scatter(places[fits.to_numpy()], found.filter(fits))
        places, left = places[~fits.to_numpy()], left.filter(~fits)
        if not len(left):
            break
    return moments


def _likeliest_first(texts: pl.Series, patterns: tuple[str, ...]) -> list[str]:
    sample = texts.gather_every(max(1, len(texts) // _SAMPLED))
    fits = {pattern: len(sample) - parsed(sample, pattern).null_count() for pattern in patterns}
    return sorted(patterns, key=lambda pattern: -fits[pattern])


def are_plain_dates(known: pl.Series) -> bool:
    """Return whether strings are dates that mean one moment to everybody, but for one in a hundred."""
    sample = known.head(1000).str.strip_chars()
    if not bool(sample.str.contains(_PLAIN).all()):
        return False
    return moments_of(sample).null_count() <= len(sample) // 100
