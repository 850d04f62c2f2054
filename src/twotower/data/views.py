"""Views: several kinds of item that share the queries, as one data set whose histories hold them all.

An item of the view ``sport`` whose id is ``17`` is called ``sport:17`` there, so that no two views
name the same item.

Source: Elkahky et al., WWW 2015, section 3 (MV-DNN).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.arrays import distinct
from twotower.config import SplitConfig
from twotower.data.dataset import Column, Dataset, EntityTable, Part, ViewItems, sorted_events
from twotower.data.drawn_validation import hold_out_validation
from twotower.data.splits import checked, split, temporal, test_fraction_of
from twotower.errors import ConfigError, DataError
from twotower.features.forms import FORMS, Form
from twotower.features.schema import VIEW, reads_as_text
from twotower.vocab import FIRST_ROW, Vocabulary

FEW_SHARED = 0.01
"""Below this share of the queries in more than one view, no view has much to learn from another."""


def qualified(ids: pl.Series, view: str) -> pl.Series:
    """Return ids as they are called beside those of other views."""
    return (view + ":" + ids.cast(pl.String)).rename(ids.name)


def split_views(
    datasets: Mapping[str, Dataset], is_split: Sequence[bool], config: SplitConfig
) -> Dataset:
    """Return the views as one split data set.

    ``auto`` cuts all views at the same two moments where all have times (``temporal``), and else at
    random per query; any other kind, and files, cut each view by itself. What is known of a query in
    another view ends at the moment that is asked about in any case (``Dataset.cases``).

    Args:
        datasets: Prepared, each under its view's name.
        is_split: Whether files gave the parts of each.
        config: How to split those that are not.

    Raises:
        ConfigError: Views were split by files and others were not, or the kind cannot be had.
        DataError: As ``merged``, or a part of a view is empty.
    """
    if any(is_split) != all(is_split):
        raise ConfigError("views must all be given as train and test, or none of them.")
    if any(is_split):
        parts = {name: hold_out_validation(each, config) for name, each in datasets.items()}
        return merged(parts)
    has_times = all(each.interactions.times is not None for each in datasets.values())
    kind = config.kind
    if kind == "auto":
        kind = "temporal" if has_times else "random"
    if kind != "temporal":
        return merged({name: split(each, config) for name, each in datasets.items()})
    if not has_times:
        raise ConfigError(
            "split.kind must not be 'temporal' where a view has no times; use 'random'."
        )
    whole = merged(datasets)
    test = test_fraction_of(config, kind)
    whole = whole.with_parts(temporal(whole.interactions, test, config.valid_fraction), "")
    notes = [note for note in whole.notes if note][:-1]  # the overlap is another with these parts
    notes.append(_overlap(whole))
    for name in whole.views:
        try:
            notes.append(f"{name}: {checked(whole.view(name), kind).notes[-1]}")
        except DataError as error:
            raise DataError(f"view {name!r}: {error}") from error
    return replace(whole, notes=tuple(n for n in notes if n))


def merged(datasets: Mapping[str, Dataset]) -> Dataset:
    """Return the views as one data set, each query's events in one order.

    Columns of the same name are one feature of all views. Impressions are left out.

    Args:
        datasets: Two or more, each under its view's name.

    Raises:
        DataError: A view's items have a column ``view``, or columns of one name are of types that do
            not go together.
    """
    _refuse_names_that_meet({name: each.items for name, each in datasets.items()})
    queries = _queries([each.queries for each in datasets.values()])
    items = _items({name: each.items for name, each in datasets.items()})
    views: dict[str, ViewItems] = {}
    query_rows, item_rows = [], []
    for name, each in datasets.items():
        of_queries = queries.ids.rows_of_all(each.queries.ids.ids)
        of_items = items.ids.rows_of_all(qualified(each.items.ids.ids, name))
        offered = np.zeros(items.ids.num_rows, np.bool_)
        offered[of_items[FIRST_ROW:]] = True
        views[name] = ViewItems(offered, each.repeats)
        query_rows.append(of_queries[each.interactions.query_rows])
        item_rows.append(of_items[each.interactions.item_rows])
    events = [each.interactions for each in datasets.values()]
    has_times = all(each.times is not None for each in events)
    ordered = all(each.ordered for each in datasets.values()) and has_times
    times = np.concatenate([e.times for e in events if e.times is not None]) if has_times else None

    def column(attribute: str, otherwise: Column) -> npt.NDArray[Column] | None:
        columns = [getattr(each, attribute) for each in events]
        if all(values is None for values in columns):
            return None
        return np.concatenate(
            [
                np.full(len(each), otherwise) if values is None else values
                for each, values in zip(events, columns, strict=True)
            ]
        )

    whole, order = sorted_events(
        np.concatenate(query_rows),
        queries.ids.num_rows,
        by_time=has_times,
        item_rows=np.concatenate(item_rows),
        times=times,
        labels=column("labels", np.float32(1)),
        weights=column("weights", np.float32(1)),
        positions=column("positions", np.int32(0)),
        is_target=column("is_target", np.bool_(True)),
    )
    notes = [f"{name}: {note}" for name, each in datasets.items() for note in each.notes if note]
    if any(each.times is not None for each in events) and not has_times:
        without = [name for name, each in datasets.items() if each.interactions.times is None]
        notes.append(
            f"No view has times, since {', '.join(without)} has none: histories have no order."
        )
    parts = np.concatenate([each.parts for each in datasets.values()])[order]
    dataset = Dataset(
        queries=queries,
        items=items,
        interactions=whole,
        parts=parts,
        ordered=ordered,
        repeats=any(each.repeats for each in datasets.values()),
        event_columns=_event_columns(datasets.values())[order],
        name=", ".join(datasets),
        views=views,
    )
    notes += _of_another(datasets)
    return replace(dataset, notes=(*notes, _overlap(dataset)))


def _of_another(datasets: Mapping[str, Dataset]) -> list[str]:
    """Return a sentence for each view whose items' table lists those of another view, too."""
    used, unused = {}, {}
    for name, each in datasets.items():
        events = distinct(each.interactions.item_rows)
        used[name] = set(each.items.ids.ids_of(events).cast(pl.String))
        unused[name] = set(each.items.ids.ids.cast(pl.String)) - used[name]
    return [
        f"{name}: {len(both):,} of its items have events in {other} alone, and may be answered "
        f"here all the same; give each view a table of its own items."
        for name, other in permutations(datasets, 2)
        if 2 * len(both := unused[name] & used[other]) > len(used[other])
    ]


def _refuse_names_that_meet(tables: Mapping[str, EntityTable]) -> None:
    """Refuse an id that would stand for an item of another view, too, in the bundle of its own."""
    for name, other in permutations(tables, 2):
        own = tables[name].ids.ids.cast(pl.String)
        both = own.filter(own.is_in(qualified(tables[other].ids.ids, other).implode()))
        if len(both):
            raise DataError(
                f"view {name!r}: an item id must not be what an item of view {other!r} is called "
                f"beside it, got {both[0]!r}; rename the view or the item."
            )


def _event_columns(datasets: Iterable[Dataset]) -> pl.DataFrame:
    """Return the columns of all events; a table of ids alone has none, and lines all the same."""
    row = "row of the events"
    frames = [
        each.event_columns.with_columns(pl.Series(row, np.arange(len(each.interactions))))
        for each in datasets
    ]
    return _stacked(frames, "events").drop(row)


def _overlap(dataset: Dataset) -> str:
    """Return how many queries have training events in more than one view, in a sentence."""
    events, views = dataset.interactions, dataset.views
    num = np.zeros(len(events.offsets), np.int64)
    for view in views.values():
        is_train = (dataset.parts == Part.TRAIN) & events.is_positive
        own = view.offered[events.item_rows] & is_train
        num[distinct(events.query_rows[own])] += 1
    shared, known = int((num > 1).sum()), int((num > 0).sum())
    said = f"{shared:,} of {known:,} queries have training events in more than one view."
    if shared < FEW_SHARED * known:
        said += " Warning: so few say little of what one view knows about another."
    return said


def _queries(tables: Sequence[EntityTable]) -> EntityTable:
    key = tables[0].id_column
    frames = [table.frame.rename({table.id_column: key}) for table in tables]
    if len({frame[key].dtype for frame in frames}) > 1:
        frames = [frame.with_columns(pl.col(key).cast(pl.String)) for frame in frames]
    frame = _stacked(frames, "queries").unique(key, keep="first", maintain_order=True).sort(key)
    return EntityTable(Vocabulary(frame[key]), frame, key, _forms(tables, frame))


def _items(tables: Mapping[str, EntityTable]) -> EntityTable:
    columns = {table.id_column for table in tables.values()}
    key = next(iter(columns)) if len(columns) == 1 else "item_id"
    frames = []
    for name, table in tables.items():
        ids, frame = table.frame[table.id_column], table.frame.drop(table.id_column)
        for taken in {key, VIEW} & set(frame.columns):
            raise DataError(
                f"view {name!r}: the items must have no column {taken!r}, which the views need for "
                "themselves; rename it."
            )
        own = [qualified(ids, name).rename(key), pl.Series(VIEW, [name] * len(ids), pl.String)]
        if reads_as_text(ids) and f"{key} as text" not in frame.columns:
            own.append(ids.rename(f"{key} as text"))
        frames.append(pl.DataFrame(own).hstack(frame))
    frame = _stacked(frames, "items")
    return EntityTable(Vocabulary(frame[key]), frame, key, _forms(tables.values(), frame))


def _forms(tables: Iterable[EntityTable], frame: pl.DataFrame) -> dict[str, Form]:
    """Return the forms of all tables' columns, but of those that the tables write in different ones."""
    written = [(name, form) for table in tables for name, form in table.forms.items()]
    forms = Counter(name for name, _ in {(name, form.name) for name, form in written})
    return {
        name: form
        for name, form in written
        if forms[name] == 1 and frame[name].dtype == FORMS[form.name].dtype
    }


def _stacked(frames: Sequence[pl.DataFrame], what: str) -> pl.DataFrame:
    try:
        return pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"columns of the {what} that have one name in several views must be of one type, got "
            f"{reason}; rename them, or write them alike."
        ) from error
