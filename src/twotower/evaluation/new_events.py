"""Test events that are given to a bundle: later ones of the queries that it knows, or new sessions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.caller import passing
from twotower.data.columns import (
    Role,
    checked_ids,
    checked_labels,
    checked_ratings,
    find_roles,
    label_kind,
    targets_among,
)
from twotower.data.dataset import EntityTable, Interactions, Part
from twotower.data.splits import whole_sessions
from twotower.data.tables import Table, read_table
from twotower.data.times import times_in_seconds
from twotower.errors import DataError
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW, Vocabulary


@dataclass(frozen=True, eq=False)
class NewEvents:
    """Events in the order of time, those of a query.

    Args:
        query_rows: ``(n,)`` int32.
        item_rows: ``(n,)`` int32; items that the catalogue lacks are ``UNKNOWN_ROW``.
        parts: ``(n,)`` uint8, ``TEST`` or ``CONTEXT``.
        times: ``(n,)`` float64 seconds, or None where the bundle knows none.
        labels: ``(n,)`` float32 0 or 1, or None where all are positives.
        is_target: ``(n,)`` bool, False where an event is of a kind that is not asked for; None where all
            are asked for.
        columns: What a history reads of them beside their items, ``n`` lines, or None.
        notes: What is to be known of it.
    """

    query_rows: npt.NDArray[np.int32]
    item_rows: npt.NDArray[np.int32]
    parts: npt.NDArray[np.uint8]
    times: npt.NDArray[np.float64] | None = None
    labels: npt.NDArray[np.float32] | None = None
    is_target: npt.NDArray[np.bool_] | None = None
    columns: pl.DataFrame | None = None
    notes: tuple[str, ...] = ()

    def take(self, kept: npt.NDArray[np.integer]) -> "NewEvents":
        """Return the events at ``kept``."""
        columns = {k: v for k, v in vars(self).items() if k != "notes" and v is not None}
        return replace(self, **{name: column[kept] for name, column in columns.items()})


def queries_of(retriever: Retriever) -> EntityTable:
    """Return the queries that a bundle knows."""
    queries = retriever.contents.queries
    return EntityTable(queries.ids, queries.frame, queries.id_column)


def events_asked(
    retriever: Retriever, test: Table, columns: Mapping[Role, str]
) -> tuple[NewEvents, EntityTable]:
    """Return the events of a table that are of queries which can be answered, and all queries.

    Those are the bundle's; where its queries are text themselves, new searches after them.

    Args:
        retriever: The opened bundle.
        test: The table.
        columns: Those that are stated.

    Raises:
        DataError: The table cannot be used, or knows no query or item of the bundle.
    """
    queries = retriever.contents.queries
    are_texts = queries.transforms.reads_text_of(queries.id_column)
    asked, table = _read(retriever, test, "test", columns, with_new=are_texts)
    is_known = asked.query_rows >= FIRST_ROW
    if not is_known.any():
        raise DataError(
            f"test must hold queries that the bundle knows, got none among {len(is_known)} rows; "
            f"name the column: {passing(query_column='NAME')}."
        )
    if not is_known.all():
        note = (
            f"{(~is_known).sum():,} of the test's {len(is_known):,} rows are of queries that the "
            "bundle does not know, and were left out."
        )
        asked = replace(asked, notes=(note, *asked.notes))
    if asked.times is None and _has_times(retriever):
        # later than all that the bundle knows
        asked = replace(asked, times=np.full(len(is_known), np.inf))
    kept = np.flatnonzero(is_known)
    if asked.times is not None:
        kept = kept[np.argsort(asked.times[kept], kind="stable")]
    return asked.take(kept), table


def sessions_asked(
    retriever: Retriever, sessions: Table, columns: Mapping[Role, str]
) -> tuple[NewEvents, EntityTable]:
    """Return the events of new sessions, and the queries of the bundle with the sessions after them.

    A session that the bundle has as one of its own test is taken from the table.

    Args:
        retriever: The opened bundle.
        sessions: The table.
        columns: Those that are stated.

    Raises:
        DataError: The table cannot be used, a session was trained on, or none can be asked about.
    """
    asked, table = _read(retriever, sessions, "test_sessions", columns, with_new=True)
    if asked.times is None and _has_times(retriever):
        raise DataError(
            "test_sessions must have a column of times, as the training table had, got none; add it."
        )
    _check_unlearnt(retriever, asked.query_rows)
    rows = asked.query_rows
    asked = asked.take(np.lexsort((rows,) if asked.times is None else (asked.times, rows)))
    events = Interactions(
        query_rows=asked.query_rows,
        item_rows=asked.item_rows,
        offsets=np.searchsorted(asked.query_rows, np.arange(table.ids.num_rows + 1)),
        labels=asked.labels,
        is_target=asked.is_target,
    )
    parts = whole_sessions(events, np.ones(len(events), np.bool_), Part.TEST)
    # A history leaves out what the catalogue lacks, as in serving.
    parts[(parts == Part.CONTEXT) & (asked.item_rows < FIRST_ROW)] = Part.UNUSED
    if not (parts == Part.TEST).any():
        raise DataError(
            "test_sessions must hold sessions with an event before the one that is asked for, got none in "
            f"{len(np.unique(rows)):,}; name the column: {passing(query_column='NAME')}."
        )
    return replace(asked, parts=parts), table


def _with_new(table: EntityTable, ids: pl.Series) -> EntityTable:
    """Return the table with a line, of nothing but the id, for each id that it lacks."""
    new = ids.filter(pl.Series(table.ids.rows_of(ids) < FIRST_ROW))
    new = new.unique(maintain_order=True).rename("id")
    known = table.ids.ids
    if new.dtype != known.dtype:
        known, new = known.cast(pl.String), new.cast(pl.String)
    column = table.id_column
    frame = pl.concat(
        [table.frame.with_columns(known.rename(column)), new.rename(column).to_frame()],
        how="diagonal",
    )
    return EntityTable(Vocabulary(pl.concat([known, new])), frame, column)


def _check_unlearnt(retriever: Retriever, query_rows: npt.NDArray[np.int32]) -> None:
    contents = retriever.contents
    assert contents.histories is not None
    assert contents.history_parts is not None
    owners = np.repeat(np.arange(len(contents.histories)), contents.histories.lengths)
    learnt = np.unique(owners[np.isin(contents.history_parts, (Part.TRAIN, Part.VALID))])
    again = np.intersect1d(query_rows, learnt)
    if len(again):
        raise DataError(
            f"test_sessions must be new queries, got {len(again):,} ids that the bundle was trained on, "
            f"the first {contents.queries.ids.ids_of(again[:1])[0]!r}; number them on, or give later "
            "events of known queries as test."
        )


def _has_times(retriever: Retriever) -> bool:
    histories = retriever.contents.histories
    return histories is not None and histories.times is not None


def _read(
    retriever: Retriever, source: Table, what: str, columns: Mapping[Role, str], *, with_new: bool
) -> tuple[NewEvents, EntityTable]:
    """Return the events of a table in its order, and all queries.

    Args:
        retriever: The opened bundle.
        source: The table.
        what: Names it in messages.
        columns: Those that are stated.
        with_new: Whether queries that the bundle lacks are further ones.
    """
    contents = retriever.contents
    frame = read_table(source, what=what)
    data = contents.config.data
    given = {
        role: column
        for role, column in (
            (Role.QUERY, data.query_column or contents.queries.id_column),
            (Role.ITEM, data.item_column or contents.items.id_column),
            (Role.TIME, data.time_column),
            (Role.LABEL, data.label_column),
        )
        if column is not None and column in frame.columns
    }
    roles = find_roles(frame, given={**given, **columns}, what=what)
    query_ids, _ = checked_ids(frame[roles.query], role=Role.QUERY, drop_null=False)
    item_ids, _ = checked_ids(frame[roles.item], role=Role.ITEM, drop_null=False)
    item_rows = contents.items.ids.rows_of(item_ids)
    if not (item_rows >= FIRST_ROW).any():
        raise DataError(
            f"{what} must hold items of the catalogue, got none among {len(item_rows)} rows; "
            f"name the column: {passing(item_column='NAME')}."
        )
    times = None
    if roles.time is not None and _has_times(retriever):
        times = times_in_seconds(frame[roles.time], what=f"time column {roles.time!r}")
    is_target = None
    if data.event_column is not None:
        if data.event_column not in frame.columns:
            raise DataError(
                f"{what} must have the column of kinds of event {data.event_column!r}, as the "
                f"training table had, got {', '.join(frame.columns)}; add it."
            )
        is_target = targets_among(frame[data.event_column], data.target_events, every=False)
    labels = None
    if roles.label is not None:
        column, threshold = frame[roles.label], data.positive_threshold
        if is_target is not None:
            column = column.filter(pl.Series(is_target))
        if threshold is not None:
            labels = (checked_ratings(column) >= threshold).astype(np.float32)
        elif contents.target_labels is not None or label_kind(column) == "label":
            labels = checked_labels(column)
        if labels is not None and is_target is not None:
            of_targets, labels = labels, np.ones(len(frame), np.float32)
            labels[is_target] = of_targets
    notes: tuple[str, ...] = ()
    if data.positive_threshold is not None and labels is None:
        notes = (f"The {what} has no column of ratings: each of its rows counts as a positive.",)
    read = None
    if contents.events is not None and what == "test_sessions":  # the others are in no history
        names = contents.events.transforms.columns
        there = [name for name in names if name in frame.columns]
        read = frame.select(there) if there else None
        if len(there) < len(names):
            lacking = ", ".join(repr(name) for name in names if name not in there)
            notes += (f"The {what} has no column {lacking}: of its events that is unknown.",)
    table = queries_of(retriever)
    if with_new:
        table = _with_new(table, query_ids)
    asked = NewEvents(
        query_rows=table.ids.rows_of(query_ids),
        item_rows=item_rows,
        parts=np.full(len(frame), Part.TEST, np.uint8),
        times=times,
        labels=labels,
        is_target=is_target,
        columns=read,
        notes=notes,
    )
    return asked, table
