"""Test events that are given to a bundle: later ones of the queries that it knows, or new sessions."""

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
        return NewEvents(
            query_rows=self.query_rows[kept],
            item_rows=self.item_rows[kept],
            parts=self.parts[kept],
            times=None if self.times is None else self.times[kept],
            labels=None if self.labels is None else self.labels[kept],
            is_target=None if self.is_target is None else self.is_target[kept],
            columns=None if self.columns is None else self.columns[kept.astype(np.int64)],
            notes=self.notes,
        )


def events_asked(
    retriever: Retriever, test: Table, query_column: str | None, item_column: str | None
) -> tuple[NewEvents, EntityTable]:
    """Return the events of a table that are of queries which can be answered, and all queries.

    Those are the bundle's; where its queries are text themselves, new searches after them.

    Raises:
        DataError: The table cannot be used, or knows no query or item of the bundle.
    """
    contents = retriever.contents
    read = _Read.of(retriever, test, "test", query_column, item_column)
    queries = contents.queries
    table = EntityTable(queries.ids, queries.frame, queries.id_column)
    if queries.transforms.reads_text_of(queries.id_column):
        table = _with_new(table, read.query_ids)
    query_rows = table.ids.rows_of(read.query_ids)
    is_known = query_rows >= FIRST_ROW
    if not is_known.any():
        raise DataError(
            f"test must hold queries that the bundle knows, got none among {len(query_rows)} rows; "
            f"name the column: {passing(query_column='NAME')}."
        )
    notes = list(read.notes)
    if not is_known.all():
        notes.insert(
            0,
            f"{(~is_known).sum():,} of the test's {len(query_rows):,} rows are of queries that the "
            "bundle does not know, and were left out.",
        )
    times = read.times
    if times is None and _has_times(retriever):
        times = np.full(len(query_rows), np.inf)  # later than all that the bundle knows
    asked = NewEvents(
        query_rows=query_rows,
        item_rows=read.item_rows,
        parts=np.full(len(query_rows), Part.TEST, np.uint8),
        times=times,
        labels=read.labels,
        is_target=read.is_target,
        notes=tuple(notes),
    )
    kept = np.flatnonzero(is_known)
    if times is not None:
        kept = kept[np.argsort(times[kept], kind="stable")]
    return asked.take(kept), table


def sessions_asked(
    retriever: Retriever, sessions: Table, query_column: str | None, item_column: str | None
) -> tuple[NewEvents, EntityTable]:
    """Return the events of new sessions, and the queries of the bundle with the sessions after them.

    A session that the bundle has as one of its own test is taken from the table.

    Raises:
        DataError: The table cannot be used, a session was trained on, or none can be asked about.
    """
    contents = retriever.contents
    read = _Read.of(retriever, sessions, "test_sessions", query_column, item_column)
    if read.times is None and _has_times(retriever):
        raise DataError(
            "test_sessions must have a column of times, as the training table had, got none; add it."
        )
    _check_unlearnt(retriever, read.query_ids)
    queries = contents.queries
    table = EntityTable(queries.ids, queries.frame, queries.id_column)
    table = _with_new(table, read.query_ids)
    query_rows = table.ids.rows_of(read.query_ids)
    keys = (query_rows,) if read.times is None else (read.times, query_rows)
    order = np.lexsort(keys)
    asked = NewEvents(
        query_rows=query_rows,
        item_rows=read.item_rows,
        parts=np.full(len(query_rows), Part.TEST, np.uint8),
        times=read.times,
        labels=read.labels,
        is_target=read.is_target,
        columns=read.columns,
        notes=read.notes,
    ).take(order)
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
            f"{len(np.unique(query_rows)):,}; name the column: {passing(query_column='NAME')}."
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


def _check_unlearnt(retriever: Retriever, query_ids: pl.Series) -> None:
    contents = retriever.contents
    assert contents.histories is not None
    assert contents.history_parts is not None
    owners = np.repeat(np.arange(len(contents.histories)), contents.histories.lengths)
    learnt = np.unique(owners[np.isin(contents.history_parts, (Part.TRAIN, Part.VALID))])
    rows = np.unique(contents.queries.ids.rows_of(query_ids))
    again = np.intersect1d(rows[rows >= FIRST_ROW], learnt)
    if len(again):
        raise DataError(
            f"test_sessions must be new queries, got {len(again):,} ids that the bundle was trained on, "
            f"the first {contents.queries.ids.ids_of(again[:1])[0]!r}; number them on, or give later "
            "events of known queries as test."
        )


def _has_times(retriever: Retriever) -> bool:
    histories = retriever.contents.histories
    return histories is not None and histories.times is not None


@dataclass(frozen=True, eq=False)
class _Read:
    """The columns of a table of test events, in its order; those that can be None where it has them."""

    query_ids: pl.Series
    item_rows: npt.NDArray[np.int32]
    times: npt.NDArray[np.float64] | None
    labels: npt.NDArray[np.float32] | None
    is_target: npt.NDArray[np.bool_] | None
    columns: pl.DataFrame | None
    notes: tuple[str, ...]

    @staticmethod
    def of(
        retriever: Retriever,
        table: Table,
        what: str,
        query_column: str | None,
        item_column: str | None,
    ) -> "_Read":
        contents = retriever.contents
        frame = read_table(table, what=what)
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
        stated = ((Role.QUERY, query_column), (Role.ITEM, item_column))
        given |= {role: column for role, column in stated if column is not None}
        roles = find_roles(frame, given=given, what=what)
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
            notes = (
                f"The {what} has no column of ratings: each of its rows counts as a positive.",
            )
        columns = None
        if contents.events is not None and what == "test_sessions":  # the others are in no history
            names = contents.events.transforms.columns
            there = [name for name in names if name in frame.columns]
            columns = frame.select(there) if there else None
            if len(there) < len(names):
                lacking = ", ".join(repr(name) for name in names if name not in there)
                notes += (f"The {what} has no column {lacking}: of its events that is unknown.",)
        return _Read(query_ids, item_rows, times, labels, is_target, columns, notes)
