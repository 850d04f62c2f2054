"""The events of a bundle with those of a new day, as one data set."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from twotower.arrays import Bools, Ints
from twotower.data.dataset import Dataset, EntityTable, Interactions, Part, sorted_events
from twotower.evaluation.new_events import events_frame
from twotower.serving.bundle import Contents, SideContents
from twotower.updating.day import Day
from twotower.vocab import FIRST_ROW, rows_of_lines


@dataclass(frozen=True, eq=False)
class Events:
    """All events of a bundle and of a day, in any order.

    Args:
        frame: ``(n, ...)`` columns named like the fields of ``Interactions``; ``is_new``, whether they are
            of the day; and ``is_fresh``, whether the night must learn them: those of the day, and those
            that the night before held out.
        read: ``(n, ...)`` what the model reads of events; no columns where it reads nothing.
    """

    frame: pl.DataFrame
    read: pl.DataFrame

    def where(self, mask: Bools) -> "Events":
        """Return the events of ``mask``."""
        kept = pl.Series(mask)
        return Events(
            self.frame.filter(kept), self.read.filter(kept) if self.read.width else self.read
        )


def past_of(contents: Contents) -> Events:
    """Return the events that a bundle holds, those of its test included.

    Args:
        contents: Of the bundle, with histories.
    """
    histories, parts, targets = contents.histories, contents.history_parts, contents.targets
    assert histories is not None
    assert parts is not None
    assert targets is not None
    known = events_frame(
        histories, parts, weights=contents.history_weights, is_target=contents.history_is_target
    )
    kept = (targets.item_rows >= FIRST_ROW) & (targets.owners >= FIRST_ROW)
    if contents.target_labels is not None:
        kept &= contents.target_labels > 0
    tests = events_frame(targets, np.full(len(targets.item_rows), Part.TEST, np.uint8))
    tests = tests.filter(pl.Series(kept))
    # Those of a training are many, and no fresher than those that it learnt.
    was_updated = pl.lit(value="update" in contents.metrics)
    frame = pl.concat([known, tests], how="diagonal").with_columns(
        is_new=pl.lit(value=False), is_fresh=was_updated & (pl.col("parts") == Part.VALID)
    )
    frame = _filled(frame.drop("parts"))
    read = pl.DataFrame()
    if contents.events is not None:
        own = contents.events.frame
        read = pl.concat([own, own.clear(len(tests))])
    return Events(frame, read)


def events_of(day: Day, contents: Contents) -> Events:
    """Return the events of a day as rows of a bundle that has all their ids."""
    found: dict[str, Any] = {
        "query_rows": contents.queries.ids.rows_of(day.query_ids),
        "item_rows": contents.items.ids.rows_of(day.item_ids),
        "times": day.times,
        "weights": day.weights,
        "is_target": day.is_target,
        "is_new": np.ones(len(day), np.bool_),
        "is_fresh": np.ones(len(day), np.bool_),
    }
    return Events(pl.DataFrame({k: v for k, v in found.items() if v is not None}), day.frame)


def are_new(past: Events, day: Events) -> Bools:
    """Return which events of a day the past does not hold: ``(n,)`` bool.

    Events are the same if query, item, time and being predicted are, as far as both sides know them.
    """
    by = [
        name
        for name in ("query_rows", "item_rows", "times", "is_target")
        if name in past.frame.columns and name in day.frame.columns
    ]
    held = past.frame.select(by).unique().with_columns(is_held=pl.lit(value=True))
    found = day.frame.select(by).join(held, on=by, how="left", maintain_order="left")["is_held"]
    return found.is_null().to_numpy()


def together(past: Events, day: Events) -> Events:
    """Return the events of both; what one side does not say of its events is as it is of most."""
    frame = pl.concat([past.frame, day.frame], how="diagonal_relaxed")
    if "times" in frame.columns and frame["times"].has_nulls():
        frame = frame.drop("times")
    frame = _filled(frame)
    read = pl.concat([past.read, day.read]) if past.read.width else past.read
    return Events(frame, read)


def dataset_of(events: Events, contents: Contents) -> tuple[Dataset, Bools]:
    """Return events as a data set in which the last new event of each query is held out.

    Args:
        events: All of them.
        contents: Of the grown bundle.

    Returns:
        The data set: ``TRAIN`` is all that is known before the question, ``VALID`` are the events that are
        held out. And which events the night must learn, ``(E,)`` bool.
    """
    frame, num_rows = events.frame, contents.queries.ids.num_rows
    columns = {
        name: frame[name].to_numpy(writable=True) if name in frame.columns else None
        for name in ("item_rows", "times", "weights", "is_target")
    }
    found, order = sorted_events(
        frame["query_rows"].to_numpy(),
        num_rows,
        by_time=contents.ordered and columns["times"] is not None,
        **columns,
    )
    is_new, is_fresh = (frame[name].to_numpy()[order] for name in ("is_new", "is_fresh"))
    parts = np.full(len(found), Part.TRAIN, np.uint8)
    parts[last_of(found, is_new & found.is_positive)] = Part.VALID
    read = events.read[order] if events.read.width else pl.DataFrame()
    if contents.events is not None:
        found = replace(found, event_rows=rows_of_lines(len(found)))
    dataset = Dataset(
        queries=_table(contents.queries),
        items=_table(contents.items),
        interactions=found,
        parts=parts,
        ordered=contents.ordered,
        repeats=contents.repeats,
        event_columns=read,
        name=str(contents.provenance.get("data", "data")),
        offered=contents.offered,
        by_period=False,
    )
    return dataset, is_fresh & (parts == Part.TRAIN) & found.is_positive


def last_of(events: Interactions, mask: Bools) -> Ints:
    """Return the place of the last event of ``mask`` of each query that has one."""
    places = np.flatnonzero(mask)
    rows = events.query_rows[places]
    return places[np.append(rows[1:] != rows[:-1], True)] if len(places) else places


def _filled(frame: pl.DataFrame) -> pl.DataFrame:
    """Return events of which some lack a weight, or whether they are predicted: as most events are."""
    return frame.with_columns(
        cs.by_name("weights", require_all=False).fill_null(1.0),
        cs.by_name("is_target", require_all=False).fill_null(value=True),
    )


def _table(side: SideContents) -> EntityTable:
    return EntityTable(side.ids, side.frame, side.id_column)
