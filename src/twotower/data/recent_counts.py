"""How popular each item was at moments of the past: counts of events that fade with a half-life."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twotower.arrays import Float32s, Floats, Ints
from twotower.data.dataset import Interactions
from twotower.errors import ArgumentError, check_least, check_positive

MOMENTS = 16
"""Moments at which popularity is counted, with equally many events between them."""


@dataclass(frozen=True, eq=False)
class RecentCounts:
    """The logarithm of ``1 +`` the faded number of events of each item, at several moments.

    An event that is one half-life old counts half. Events with weights count by them, in proportion to the
    mean weight.

    Args:
        moments: ``(K,)`` ascending seconds; the first is minus infinity, when nothing had happened.
        logs: ``(K, num_item_rows)`` float32, at least 0: what was known before each moment. The last line
            knows all events.

    Source: Ji et al., SIGIR 2020, section 3 (popularity as of the moment of each event). Differs: older
        events fade, and a logarithm is taken, so that the score of a softmax over it is a share of events.
    """

    moments: Floats
    logs: Float32s

    @classmethod
    def of(
        cls, events: Interactions, num_item_rows: int, half_life: float, num: int = MOMENTS
    ) -> "RecentCounts":
        """Count the positive events that have a time.

        Args:
            events: The training events.
            num_item_rows: Rows of the item vocabulary.
            half_life: Seconds, above 0.
            num: Moments after the first, at least 1.

        Raises:
            ValueError: The events have no times, or an argument is out of range.
        """
        check_positive(half_life=half_life)
        check_least(1, num=num)
        if events.times is None:
            raise ArgumentError("events must have times, got none.")
        events = events.where(events.is_positive & np.isfinite(events.times))
        assert events.times is not None
        order = np.argsort(events.times, kind="stable")
        times, rows, weights = events.times[order], events.item_rows[order], np.ones(len(order))
        if events.weights is not None and len(order):
            weights = events.weights[order] / events.weights.mean()
        ends = len(times) * np.arange(1, num + 1) // num
        # The last counts all; the others what came before them, and nothing of their own moment.
        moments = [-np.inf, *(times[end] for end in ends[:-1] if end), np.inf]
        logs = np.zeros((len(moments), num_item_rows), np.float32)
        counts, done, before = np.zeros(num_item_rows), 0, times[0] if len(times) else 0.0
        for line, moment in enumerate(moments[1:], 1):
            until = int(np.searchsorted(times, moment, side="left"))
            now = times[-1] if until == len(times) and until else moment
            counts *= 0.5 ** ((now - before) / half_life)
            fresh = weights[done:until] * 0.5 ** ((now - times[done:until]) / half_life)
            counts += np.bincount(rows[done:until], fresh, num_item_rows)
            logs[line], done, before = np.log1p(counts), until, now
        return cls(np.array(moments), logs)

    def lines_at(self, seconds: npt.NDArray[np.float64]) -> Ints:
        """Return the line of the latest moment at or before each time, ``(n,)``; the first if unknown."""
        times = np.where(np.isfinite(seconds), seconds, -np.inf)
        return np.searchsorted(self.moments[1:-1], times, side="right")
