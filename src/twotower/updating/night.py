"""One night: the ids and events of a bundle and of a day, together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from twotower.arrays import Bools, Ints
from twotower.caller import argument
from twotower.data.dataset import Dataset, Part
from twotower.data.input_files import read_files
from twotower.data.tables import Table
from twotower.errors import DataError
from twotower.features.schema import Side
from twotower.serving.arguments import features_of
from twotower.serving.bundle import Contents, SideContents
from twotower.serving.live_items import lines_of_table
from twotower.updating.day import Day, read_day
from twotower.updating.expiry import check_times, expired
from twotower.updating.growth import with_ids, with_known_ids
from twotower.updating.past import are_new, dataset_of, events_of, past_of, together
from twotower.vocab import FIRST_ROW


@dataclass(frozen=True, eq=False)
class Night:
    """What a model learns and is checked on in a night.

    Args:
        number: Updates of the bundle, this one included.
        before: The contents of the bundle as it was.
        grown: The same with all ids, features of all items and queries, and without what expired.
        dataset: All events. ``VALID`` are the last new ones of each query, ``TRAIN`` all others.
        is_fresh: ``(E,)`` bool, the events that are learnt: new ones, and those that the night before held
            out.
        learnt_before: By side, ``(num_rows,)`` the other events of each row.
        counts: What was read, by name, for the figures of the night.
    """

    number: int
    before: Contents
    grown: Contents
    dataset: Dataset
    is_fresh: Bools
    learnt_before: Mapping[Side, Ints]
    counts: Mapping[str, int]


def night_of(
    before: Contents,
    interactions: Table,
    *,
    items: Table | None,
    queries: Table | None,
    expire_days: float | None,
) -> Night:
    """Return a night of a bundle; the arguments are those of ``update``.

    Raises:
        DataError: A table cannot be used, or holds nothing new.
        ArgumentError: A line of ``items`` or ``queries`` does not fit.
    """
    day = read_day(before, interactions)
    of_items = _lines(before.items, items, "items")
    of_queries = _lines(before.queries, queries, "queries")
    grown = replace(
        before,
        items=with_ids(before.items, day.item_ids, of_items),
        queries=with_ids(before.queries, day.query_ids, of_queries),
    )
    grown = _with_lengths(grown, of_items)
    past, new = past_of(before), events_of(day, grown)
    is_new = are_new(past, new)
    if not is_new.any():
        raise DataError(
            f"{argument('interactions')} must hold a new event, got {len(day):,} that the bundle holds "
            "already; pass the events since its last day."
        )
    new = new.where(is_new)
    _check_known(day, before, of_items, of_queries)
    events = together(past, new)
    counts = {
        "events": int(is_new.sum()),
        "held_already": int((~is_new).sum()),
        "new_items": len(grown.items.ids) - len(before.items.ids),
        "new_queries": len(grown.queries.ids) - len(before.queries.ids),
    }
    if expire_days is not None:
        check_times(events, expire_days)
        offered, known = grown.num_items, len(grown.queries.ids)
        grown, events = expired(grown, events, expire_days)
        counts["expired_items"] = offered - grown.num_items
        counts["expired_queries"] = known - len(grown.queries.ids)
    dataset, is_fresh = dataset_of(events, grown)
    if not (dataset.parts == Part.VALID).any():
        raise DataError(
            f"{argument('interactions')} must hold a new event that the model predicts "
            f"(data.target_events), got {len(new.frame):,} of other kinds."
        )
    kept = dataset.interactions.is_positive & (dataset.parts == Part.TRAIN)
    grown = replace(
        grown,
        items=with_known_ids(grown.items, _counted(dataset, kept)["item"], _least(grown)),
        queries=with_known_ids(grown.queries, _counted(dataset, kept)["query"], _least(grown)),
    )
    return Night(
        number=int((before.metrics.get("update") or {}).get("night", 0)) + 1,
        before=before,
        grown=grown,
        dataset=dataset,
        is_fresh=is_fresh,
        learnt_before=_counted(dataset, kept & ~is_fresh),
        counts=counts,
    )


def _least(contents: Contents) -> int:
    return contents.config.features.min_count


def _counted(dataset: Dataset, mask: Bools) -> dict[Side, Ints]:
    """Return by side the events of ``mask`` of each row."""
    events = dataset.interactions
    return {
        "query": np.bincount(events.query_rows[mask], minlength=dataset.queries.ids.num_rows),
        "item": np.bincount(events.item_rows[mask], minlength=dataset.items.ids.num_rows),
    }


def _lines(side: SideContents, table: Table | None, what: str) -> pl.DataFrame | None:
    if table is None:
        return None
    return lines_of_table(side, features_of(read_files(table, what=what)), what=what)


def _with_lengths(grown: Contents, of_items: pl.DataFrame | None) -> Contents:
    """Return contents whose popularity and deleted items are as long as the items; given items are back."""
    more = grown.items.ids.num_rows - len(grown.popularity)
    gone = grown.gone
    if gone is not None:
        gone = np.append(gone, np.zeros(more, np.bool_))
        if of_items is not None:
            gone[grown.items.ids.rows_of(of_items[grown.items.id_column])] = False
        gone = gone if gone.any() else None
    popularity = np.append(grown.popularity, np.zeros(more, np.float32))
    return replace(grown, popularity=popularity, gone=gone)


def _check_known(
    day: Day, before: Contents, of_items: pl.DataFrame | None, of_queries: pl.DataFrame | None
) -> None:
    """Refuse events of which neither the query nor the item is known, not even from a given table.

    Raises:
        DataError: There are no others.
    """
    is_known = np.zeros(len(day), np.bool_)
    for side, ids, lines in (
        (before.queries, day.query_ids, of_queries),
        (before.items, day.item_ids, of_items),
    ):
        is_known |= side.ids.rows_of(ids) >= FIRST_ROW
        if lines is not None:
            is_known |= ids.is_in(lines[side.id_column].cast(ids.dtype).implode()).to_numpy()
    if not is_known.any():
        raise DataError(
            f"{argument('interactions')} must hold a query or an item that the bundle knows, got none "
            f"among {len(day):,} events, the first of query {day.query_ids[0]!r} and item "
            f"{day.item_ids[0]!r}; write ids as in the table of the training."
        )
