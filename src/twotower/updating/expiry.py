"""Ids that no event named for some days: items are no longer offered, and queries are forgotten."""

from dataclasses import replace

import numpy as np
import polars as pl

from twotower.arrays import Floats, Rows
from twotower.caller import argument
from twotower.errors import ArgumentError, BundleError, DataError
from twotower.serving.bundle import Contents
from twotower.updating.past import Events
from twotower.vocab import FIRST_ROW, Vocabulary

DAY = 86_400.0


def check_days(days: float | None, contents: Contents) -> None:
    """Refuse a number of days that is not above 0, or events without times.

    Raises:
        ArgumentError: It is not above 0.
        BundleError: The events of the bundle have no times.
    """
    if days is None:
        return
    if not 0 < days < float("inf"):
        raise ArgumentError(f"{argument('expire_days')} must be above 0, got {days:g}.")
    if contents.histories is None or contents.histories.times is None:
        raise BundleError(
            f"{argument('expire_days')} must go with a bundle whose events have times, got one without; "
            "leave it out."
        )


def check_times(events: Events, days: float) -> None:
    """Refuse a day most of whose events are themselves so old that they expire.

    One event with a wrong time in the future would otherwise drop all queries and nearly all items.

    Args:
        events: All of them.
        days: Above 0.

    Raises:
        DataError: They are.
    """
    times = events.frame["times"].to_numpy()
    new, last = times[events.frame["is_new"].to_numpy()], float(times.max())
    num_old = int((new < last - days * DAY).sum())
    if 2 * num_old > len(new):
        raise DataError(
            f"{argument('interactions')} must hold events of the last {days:g} days where ids expire, "
            f"got {num_old:,} of {len(new):,} new events before that, since the last event is of "
            f"{np.datetime64(int(last), 's')}; correct the times, or leave out {argument('expire_days')}."
        )


def expired(contents: Contents, events: Events, days: float) -> tuple[Contents, Events]:
    """Return contents and events without the ids that were seen last more than so many days ago.

    Items keep their rows and stay in histories, and are no longer offered. An item that had expired and is
    seen again is offered again. Queries are dropped with their events. An id without any event stays.

    Args:
        contents: With all ids.
        events: All of them; the last one is now.
        days: Above 0.
    """
    frame = events.frame
    times, is_new = frame["times"].to_numpy(), frame["is_new"].to_numpy()
    before = float(times.max()) - days * DAY
    items = frame["item_rows"].to_numpy()
    last = _last(items, times, contents.items.ids.num_rows)
    last_before = _last(items[~is_new], times[~is_new], len(last))
    # What was gone though it was seen lately was deleted, and stays so.
    limit = times[~is_new].max(initial=-np.inf) - days * DAY
    gone = np.zeros(len(last), np.bool_) if contents.gone is None else contents.gone.copy()
    gone &= ~((last >= before) & (last_before < limit) & (last > last_before))
    gone |= np.isfinite(last) & (last < before)
    gone[:FIRST_ROW] = False
    queries = frame["query_rows"].to_numpy()
    last = _last(queries, times, contents.queries.ids.num_rows)
    is_old = np.isfinite(last) & (last < before)
    is_old[:FIRST_ROW] = False
    contents = replace(contents, gone=gone if gone.any() else None)
    if not is_old.any():
        return contents, events
    side, kept = contents.queries, pl.Series(~is_old[FIRST_ROW:])
    ids = Vocabulary(side.ids.ids.filter(kept))
    contents = replace(contents, queries=replace(side, ids=ids, frame=side.frame.filter(kept)))
    new_rows = (np.cumsum(~is_old) - 1).astype(np.int32)
    events = events.where(~is_old[queries])
    rows = new_rows[events.frame["query_rows"].to_numpy()]
    return contents, replace(events, frame=events.frame.with_columns(query_rows=pl.Series(rows)))


def _last(rows: Rows, times: Floats, num: int) -> Floats:
    """Return the last time of each row, minus infinity where it has none: ``(num,)``."""
    last = np.full(num, -np.inf)
    np.maximum.at(last, rows, times)
    return last
