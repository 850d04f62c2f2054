"""When the events of each item were: how popular an item was at a moment, and whether that was rising."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from twotower.arrays import Float32s, Floats, Ints, Rows

_TICKS = 2**31 - 1  # into which the time from the first event to the last is divided
SHARES = (1 / 256, 1 / 64, 1 / 16, 1 / 4)
"""Lengths of the recent past, as shares of the time from the first event to the last."""


class Counts(NamedTuple):
    """What was known of items at a moment.

    Args:
        total: ``(n, N)`` float32 events before it.
        recent: ``(n, N, 4)`` float32 those of the last ``SHARES``.
        ages: ``(n, N)`` float32 time since the first event, as a share of the span; NaN without one.
    """

    total: Float32s
    recent: Float32s
    ages: Float32s


@dataclass(frozen=True, eq=False)
class ItemTimes:
    """The times of the events of each item, in ``2 ** 31`` ticks from the first event to the last.

    Events of one tick are not told apart: an event is before a moment if its tick is. So no event counts at
    its own moment.

    Args:
        keys: ``(E,)`` int64, ascending: the item row times ``2 ** 32``, plus the tick.
        first: Seconds since 1970 of the first event.
        span: Seconds from the first event to the last, above 0.
    """

    keys: Ints
    first: float
    span: float

    @staticmethod
    def fit(item_rows: Rows, times: Floats) -> "ItemTimes | None":
        """Return the times of events; None where none of them has a time.

        Args:
            item_rows: ``(E,)`` int32.
            times: ``(E,)`` float64 seconds since 1970; events without a finite one are left out.
        """
        is_known = np.isfinite(times)
        if not is_known.any():
            return None
        times = np.asarray(times[is_known])
        first = float(times.min())
        span = float(times.max()) - first or 1.0
        keys = np.asarray(item_rows[is_known]).astype(np.int64) << 32 | _ticks(times - first, span)
        return ItemTimes(np.sort(keys), first, span)

    def as_of(self, item_rows: Rows, moments: Floats) -> "Counts":
        """Return what was known of items at a moment for each line, from the events before it.

        A moment after the last event, or none, counts as just after the last event.

        Args:
            item_rows: ``(n, N)`` int32.
            moments: ``(n,)`` float64 seconds since 1970.
        """
        ticks = self._ticks_of(moments)
        if (ticks <= _TICKS).any():
            return self._at(item_rows, ticks)
        known = np.minimum(item_rows, len(self._last.total) - 1)
        return Counts(*(each[known] for each in self._last))

    def events_before(self, item_rows: Rows, moments: Floats) -> Float32s:
        """Return ``total`` of ``as_of`` alone."""
        ticks = self._ticks_of(moments)
        if (ticks <= _TICKS).any():
            rows = item_rows.astype(np.int64) << 32
            ends = np.searchsorted(self.keys, rows + ticks[:, None])
            return (ends - np.searchsorted(self.keys, rows)).astype(np.float32)
        return self._last.total[np.minimum(item_rows, len(self._last.total) - 1)]

    def _ticks_of(self, moments: Floats) -> Ints:
        """Return the tick of each moment; after the last event, the one after it."""
        ticks, since = np.full(len(moments), _TICKS + 1, np.int64), moments - self.first
        is_early = since <= self.span
        ticks[is_early] = _ticks(np.maximum(since[is_early], 0), self.span)
        return ticks

    def _at(self, item_rows: Rows, ticks: Ints) -> "Counts":
        rows = item_rows.astype(np.int64) << 32
        starts = np.searchsorted(self.keys, rows)
        ends = np.searchsorted(self.keys, rows + ticks[:, None])
        recent = []
        for share in SHARES:
            since = np.maximum(ticks - int(share * _TICKS), 0)
            recent.append(ends - np.searchsorted(self.keys, rows + since[:, None]))
        ages = np.full(item_rows.shape, np.nan, np.float32)
        known = ends > starts
        first = self.keys[starts[known]] - rows[known]
        ages[known] = (np.broadcast_to(ticks[:, None], ages.shape)[known] - first) / _TICKS
        total = (ends - starts).astype(np.float32)
        return Counts(total, np.stack(recent, 2).astype(np.float32), ages)

    @cached_property
    def _last(self) -> "Counts":
        """What is known of each item row after the last event, by ``(num_rows, ...)``."""
        rows = np.arange(int(self.keys[-1] >> 32) + 2, dtype=np.int32)  # the last one has no event
        return Counts(*(each[0] for each in self._at(rows[None], np.array([_TICKS + 1]))))


def _ticks(since: Floats, span: float) -> Ints:
    """Return the ticks of moments that lie some seconds, from 0 up to ``span``, after the first event."""
    return np.asarray((since / span * _TICKS).astype(np.int64))
