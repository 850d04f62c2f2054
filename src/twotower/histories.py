"""Histories: each query's earlier items as one ragged array, and windows cut from it in bulk."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from twotower.arrays import Bools, Floats, Ints, Rows, distinct
from twotower.vocab import PADDING_ROW

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Histories:
    """The items of ``n`` queries, oldest first, end to end.

    Args:
        offsets: ``(n + 1,)`` int64; history ``i`` is ``item_rows[offsets[i]:offsets[i + 1]]``.
        item_rows: ``(events,)`` int32.
        times: ``(events,)`` float64 seconds since 1970, or None where events have no time.
        event_rows: ``(events,)`` int32 where the features of each event stand in a table of them, whose
            first rows are reserved; None where nothing of an event is read but its item and time.
        asked: ``(n,)`` float64 seconds since 1970 when each history is asked about, not finite where that
            is not known; None where it is known of none.
    """

    offsets: Ints
    item_rows: Rows
    times: Floats | None = None
    event_rows: Rows | None = None
    asked: Floats | None = None

    def __len__(self) -> int:
        """Number of histories."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Number of events of each history: ``(n,)``."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> Ints:
        """The history of each event: ``(events,)``."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def of_one(self, position: int) -> Rows:
        """Return the item rows of one history."""
        return self.item_rows[self.offsets[position] : self.offsets[position + 1]]

    def take(self, positions: npt.NDArray[np.integer] | slice) -> "Histories":
        """Return the histories at ``positions``, in that order."""
        starts, lengths = self.offsets[:-1][positions], self.lengths[positions]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        times = None if self.times is None else self.times[index]
        event_rows = None if self.event_rows is None else self.event_rows[index]
        asked = None if self.asked is None else self.asked[positions]
        return Histories(offsets, self.item_rows[index], times, event_rows, asked)

    def where(self, mask: Bools) -> "Histories":
        """Return the histories with the events of ``mask`` alone."""
        kept = np.concatenate([[0], np.cumsum(mask)]).astype(np.int64)
        times = None if self.times is None else self.times[mask]
        event_rows = None if self.event_rows is None else self.event_rows[mask]
        return Histories(kept[self.offsets], self.item_rows[mask], times, event_rows, self.asked)

    @staticmethod
    def of(histories: "list[Rows]") -> "Histories":
        """Return the ragged array of a list of arrays of item rows, without times."""
        lengths = [len(history) for history in histories]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.concatenate([np.zeros(0, np.int32), *histories]).astype(np.int32)
        return Histories(offsets, rows)

    @staticmethod
    def of_pairs(owners: npt.NDArray[np.integer], item_rows: Rows, n: int) -> "Histories":
        """Return ``n`` sets of item rows without times, each row once in a set, and sorted.

        Args:
            owners: ``(m,)`` the set of each item row, in any order.
            item_rows: ``(m,)`` int32.
            n: Number of sets.
        """
        pairs = distinct(owners.astype(np.int64) << 32 | item_rows)
        offsets = np.searchsorted(pairs >> 32, np.arange(n + 1))
        return Histories(offsets, pairs.astype(np.int32))  # the lower half of a pair is its row

    @staticmethod
    def empty(n: int) -> "Histories":
        """Return ``n`` empty histories."""
        return Histories(np.zeros(n + 1, np.int64), np.zeros(0, np.int32))


def windows_before(ends: Ints, starts: Ints, length: int) -> tuple[Ints, Bools]:
    """Return positions of the last ``length`` events in ``[start, end)``, right-aligned.

    Args:
        ends: ``(B,)`` first position after each window.
        starts: ``(B,)`` first position that each window may hold.
        length: ``L``, at least 1; windows with fewer events are padded on the left.

    Returns:
        ``(B, L)`` positions (0 where padded) and the ``(B, L)`` mask of the real ones.
    """
    positions = ends[:, None] + np.arange(-length, 0, dtype=np.int64)  # (B, L)
    mask = positions >= starts[:, None]
    return np.where(mask, positions, 0), mask


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of ``n`` histories, oldest event first, right-aligned.

    Args:
        rows: ``(n, L)`` int32 item rows, ``PADDING_ROW`` where padded.
        times: ``(n, L)`` float64 seconds since 1970, 0 where padded; or None.
        event_rows: ``(n, L)`` int32, ``PADDING_ROW`` where padded; or None. See ``Histories``.
    """

    rows: Rows
    times: Floats | None = None
    event_rows: Rows | None = None


def last_windows(histories: Histories, length: int) -> Windows:
    """Return the most recent ``length`` events of each history."""
    positions, mask = windows_before(histories.offsets[1:], histories.offsets[:-1], length)

    def gathered(column: npt.NDArray[Number]) -> npt.NDArray[Number]:
        if not len(column):
            return np.zeros(mask.shape, column.dtype)
        return np.where(mask, column[positions], np.zeros((), column.dtype))

    assert PADDING_ROW == 0
    return Windows(
        rows=gathered(histories.item_rows),
        times=None if histories.times is None else gathered(histories.times),
        event_rows=None if histories.event_rows is None else gathered(histories.event_rows),
    )


def since_first(times: Floats, item_rows: Rows) -> Floats:
    """Return the seconds since each window's first real event: ``(n, L)`` float64, 0 where padded.

    What an encoder may read are differences between events.

    Args:
        times: ``(n, L)`` seconds since 1970.
        item_rows: ``(n, L)`` item rows, ``PADDING_ROW`` where padded.
    """
    is_real = item_rows != PADDING_ROW
    first = np.min(times, axis=1, keepdims=True, where=is_real, initial=np.inf)
    seconds = np.zeros(times.shape)
    np.subtract(times, first, where=is_real, out=seconds)
    return seconds
