"""Test events that are given to a bundle: later ones of the queries that it knows, or new sessions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import polars.selectors as cs

from twotower.caller import passing
from twotower.data import columns
from twotower.data.columns import Role
from twotower.data.dataset import EntityTable, Interactions, Part
from twotower.data.input_files import is_prepared, read_files
from twotower.data.prepared.opening import read_prepared
from twotower.data.splits import whole_sessions
from twotower.data.tables import Table
from twotower.data.times import times_in_seconds
from twotower.errors import DataError
from twotower.histories import Histories
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW, Vocabulary

Asked = tuple[pl.DataFrame, EntityTable, tuple[str, ...]]


def events_frame(
    events: Histories, parts: npt.NDArray[np.uint8], **columns: npt.NDArray[Any] | None
) -> pl.DataFrame:
    """Return events as a table, with columns named like the fields of ``Interactions``.

    A table of new events may also have a column ``read``: the further values that a history reads of
    an event, as structs.

    Args:
        events: The items, and perhaps the times, of the events of each query.
        parts: ``(n,)`` the part of each event.
        columns: ``(n,)`` further columns; those that are None are left out.
    """
    found: dict[str, Any] = {
        "query_rows": events.owners.astype(np.int32),
        "item_rows": events.item_rows,
        "parts": parts,
        "times": events.times,
        **columns,
    }
    return pl.DataFrame({name: column for name, column in found.items() if column is not None})


def interactions_of(events: pl.DataFrame, num_query_rows: int) -> Interactions:
    """Return the interactions of an ``events_frame`` that is sorted by query row."""
    found: dict[str, Any] = {
        name: events[name].to_numpy(writable=True)
        for name in events.columns
        if name not in ("parts", "read")
    }
    offsets = np.searchsorted(found["query_rows"], np.arange(num_query_rows + 1))
    return Interactions(**found, offsets=offsets)


def queries_of(retriever: Retriever) -> EntityTable:
    """Return the queries that a bundle knows."""
    queries = retriever.contents.queries
    return EntityTable(queries.ids, queries.frame, queries.id_column)


def events_asked(
    retriever: Retriever, known: pl.DataFrame, test: Table, stated: Mapping[Role, str]
) -> Asked:
    """Return the events of a table that are of queries which can be answered.

    Those are the bundle's; where its queries are text themselves, new searches after them.

    Args:
        retriever: The opened bundle.
        known: The events that it knows.
        test: The table.
        stated: The names of its columns that are stated.

    Returns:
        The events, those of a query in the order of time, all queries, and notes.

    Raises:
        DataError: The table cannot be used, or knows no query or item of the bundle.
    """
    queries = retriever.contents.queries
    are_texts = queries.transforms.reads_text_of(queries.id_column)
    rows, table, notes = _read(retriever, known, test, "test", stated, with_new=are_texts)
    asked = rows.filter(pl.col("query_rows") >= FIRST_ROW)
    if not len(asked):
        raise DataError(
            f"test must hold queries that the bundle knows, got none among {len(rows)} rows; "
            f"name the column: {passing(query_column='NAME')}."
        )
    if len(asked) < len(rows):
        note = (
            f"{len(rows) - len(asked):,} of the test's {len(rows):,} rows are of queries that the "
            "bundle does not know, and were left out."
        )
        notes = (note, *notes)
    if "times" in known.columns and "times" not in asked.columns:
        # later than all that the bundle knows
        asked = asked.with_columns(times=pl.lit(float("inf")))
        if retriever.contents.config.towers.question_time == "on":
            note = (
                "The test's events have no times, so the model answers as if the time of each question "
                "were unknown."
            )
            notes = (note, *notes)
    if "times" in asked.columns:
        asked = asked.sort("times", maintain_order=True)
    return asked, table, notes


def sessions_asked(
    retriever: Retriever, known: pl.DataFrame, sessions: Table, stated: Mapping[Role, str]
) -> Asked:
    """Return the events of new sessions, which are queries after those of the bundle.

    A session that the bundle has as one of its own test is taken from the table.

    Args:
        retriever: The opened bundle.
        known: The events that it knows.
        sessions: The table.
        stated: The names of its columns that are stated.

    Returns:
        The events, those of a session in the order of time, all queries, and notes.

    Raises:
        DataError: The table cannot be used, a session was trained on, or none can be asked about.
    """
    asked, table, notes = _read(retriever, known, sessions, "test_sessions", stated, with_new=True)
    if "times" in known.columns and "times" not in asked.columns:
        raise DataError(
            "test_sessions must have a column of times, as the training table had, got none; add it."
        )
    learnt = known.filter(pl.col("parts").is_in([Part.TRAIN, Part.VALID]))
    again = np.intersect1d(asked["query_rows"].to_numpy(), learnt["query_rows"].to_numpy())
    if len(again):
        raise DataError(
            f"test_sessions must be new queries, got {len(again):,} ids that the bundle was trained on, "
            f"the first {table.ids.ids_of(again[:1])[0]!r}; number them on, or give later "
            "events of known queries as test."
        )
    by = cs.by_name("query_rows", "times", require_all=False)
    asked = asked.sort(by, maintain_order=True)
    events = interactions_of(asked, table.ids.num_rows)
    parts = whole_sessions(events, np.ones(len(events), np.bool_), Part.TEST)
    # A history leaves out what the catalogue lacks, as in serving.
    parts[(parts == Part.CONTEXT) & (events.item_rows < FIRST_ROW)] = Part.UNUSED
    if not (parts == Part.TEST).any():
        raise DataError(
            "test_sessions must hold sessions with an event before the one that is asked for, got none in "
            f"{asked['query_rows'].n_unique():,}; name the column: {passing(query_column='NAME')}."
        )
    return asked.with_columns(parts=pl.Series(parts)), table, notes


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


def _read(
    retriever: Retriever,
    known: pl.DataFrame,
    source: Table,
    what: str,
    stated: Mapping[Role, str],
    *,
    with_new: bool,
) -> Asked:
    """Return the events of a table in its order, all queries, and notes.

    Args:
        retriever: The opened bundle.
        known: The events that it knows.
        source: The table.
        what: Names it in messages.
        stated: The names of its columns that are stated.
        with_new: Whether queries that the bundle lacks are further ones.
    """
    contents = retriever.contents
    if isinstance(source, str | Path) and is_prepared(source):
        frame = read_prepared(source)
    else:
        frame = read_files(source, what=what)
    data = contents.config.data
    configured = {
        Role.QUERY: data.query_column or contents.queries.id_column,
        Role.ITEM: data.item_column or contents.items.id_column,
        Role.TIME: data.time_column,
        Role.LABEL: data.label_column,
    }
    given = {role: name for role, name in configured.items() if name and name in frame.columns}
    roles = columns.find_roles(frame, given={**given, **stated}, what=what)
    query_ids, _ = columns.checked_ids(frame[roles.query], role=Role.QUERY, drop_null=False)
    item_ids, _ = columns.checked_ids(frame[roles.item], role=Role.ITEM, drop_null=False)
    item_rows = contents.items.ids.rows_of(item_ids)
    if not (item_rows >= FIRST_ROW).any():
        raise DataError(
            f"{what} must hold items of the catalogue, got none among {len(item_rows)} rows; "
            f"name the column: {passing(item_column='NAME')}."
        )
    table = queries_of(retriever)
    if with_new:
        table = _with_new(table, query_ids)
    found: dict[str, Any] = {
        "query_rows": table.ids.rows_of(query_ids),
        "item_rows": item_rows,
        "parts": np.full(len(frame), Part.TEST, np.uint8),
    }
    notes = []
    if roles.time is not None and "times" in known.columns:
        found["times"] = times_in_seconds(frame[roles.time], what=f"time column {roles.time!r}")
    is_target = np.ones(len(frame), np.bool_)
    if data.event_column is not None:
        if data.event_column not in frame.columns:
            raise DataError(
                f"{what} must have the column of kinds of event {data.event_column!r}, as the "
                f"training table had, got {', '.join(frame.columns)}; add it."
            )
        is_target = columns.targets_among(frame[data.event_column], data.target_events, every=False)
        found["is_target"] = is_target
    if roles.label is not None:
        ratings = frame[roles.label].filter(pl.Series(is_target))
        labels: npt.NDArray[np.generic] | None = None
        if data.positive_threshold is not None:
            labels = columns.checked_ratings(ratings) >= data.positive_threshold
        elif contents.target_labels is not None or columns.label_kind(ratings) == "label":
            labels = columns.checked_labels(ratings)
        if labels is not None:
            found["labels"] = np.ones(len(frame), np.float32)
            found["labels"][is_target] = labels
    if data.positive_threshold is not None and "labels" not in found:
        notes.append(f"The {what} has no column of ratings: each of its rows counts as a positive.")
    if contents.events is not None and what == "test_sessions":  # the others are in no history
        names = contents.events.transforms.columns
        there = [name for name in names if name in frame.columns]
        for name in there:
            if frame[name].dtype == pl.Object:
                raise DataError(
                    f"{what} must have values of one type in {name!r}, got Python objects; write text."
                )
        if there:
            found["read"] = frame.select(there).to_struct()
        if len(there) < len(names):
            lacking = ", ".join(repr(name) for name in names if name not in there)
            notes.append(f"The {what} has no column {lacking}: of its events that is unknown.")
    return pl.DataFrame(found), table, tuple(notes)
